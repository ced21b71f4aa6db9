"""Simulated codecs that carry nothing: what is drawn, the pipeline's own steps, the results, the command."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_rows import make_rows

from m2ray.cli.false_pass import main
from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.config.gate_file import load_gate
from m2ray.config.trial import CodecConfig, EvaluationConfig
from m2ray.evaluation.rows import outcomes, write_rows
from m2ray.evaluation.runner import evaluate
from m2ray.judging import false_pass
from m2ray.judging.gate import judge
from m2ray.judging.selection import best_configs, gain, paired_gain
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

SHARES = {"normal": 0.75, "null": 0.3, "random": 0.3, "shuffle": 0.15, "P0": 0.3, "P1": 0.9, "constant": 0.35}
SIZES = {"search": 60, "select": 80, "confirm": 150}


def swept(**shares):
    """Rows of a sweep of two configurations, k = 4 and 16, on all splits; likelihoods go with success."""
    parts = [
        make_rows({**SHARES, **shares}, config, k=k, split=split, n=n)
        for split, n in SIZES.items()
        for config, k in (("a", 4), ("b", 16))
    ]
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(["config", "split", "k", "condition", "episode"])
    return rows.assign(nll=np.where(rows.success, 0.2, 1.2))


def splits(**shares):
    rows = swept(**shares)
    return {split: false_pass.read_columns(rows, split) for split in SIZES}


# --- the steps of the pipeline -------------------------------------------------------------------------------


def test_the_gain_of_arrays_is_the_gain_of_rows():
    normal, shuffle, p0 = np.random.default_rng(0).random((3, 50))
    frames = [
        pd.DataFrame({"condition": name, "episode": np.arange(50), "nll": nll})
        for name, nll in (("normal", normal), ("shuffle", shuffle), ("P0", p0))
    ]
    assert paired_gain(pd.concat(frames)) == gain(normal, shuffle, p0)
    assert gain(normal, shuffle, p0) == pytest.approx(min(p0.mean(), shuffle.mean()) - normal.mean())


def test_the_best_have_the_highest_mean_over_seeds_and_ties_go_by_name():
    gains = {"c": [0.1, 0.3], "a": [0.2, 0.2], "d": [0.9, -0.9], "b": [0.25]}
    assert best_configs(gains, 3) == ["b", "a", "c"]
    assert best_configs(gains, 9) == ["b", "a", "c", "d"]
    assert best_configs({}, 2) == []


# --- what is drawn -------------------------------------------------------------------------------------------


def test_columns_are_the_last_checkpoints_outcomes_over_the_same_episodes():
    rows = swept()
    early = rows[rows.config == "a"].assign(step=3, success=False, checkpoint="early")
    columns = false_pass.read_columns(pd.concat([early, rows]), "confirm")
    assert {(c.condition, c.k) for c in columns} >= {("P0", 0), ("null", 4), ("null", 16), ("random", 16)}
    by_name = {(c.condition, c.k): c for c in columns}
    normal = rows[(rows.config == "a") & (rows.split == "confirm") & (rows.condition == "normal")]
    assert by_name["normal", 4].success_E.tolist() == normal.sort_values("episode").success.tolist()
    assert false_pass.judgeable_slots(columns) == [4, 16]


def test_an_outcome_is_one_that_a_content_free_condition_really_had_in_that_episode():
    columns = splits()["confirm"]
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(len(false_pass.CONTENT_FREE)), size=5)
    drawn = false_pass.simulate_split(columns, shares, 2, 400, generator)
    free = np.stack([c.success_E for c in columns if c.condition in false_pass.CONTENT_FREE])[:, drawn.picks_N]
    for outcome in (drawn.normal_CSN, drawn.shuffle_CSN):
        assert outcome.shape == (5, 2, 400)
        assert (outcome >= free.all(axis=0)).all()
        assert (outcome <= free.any(axis=0)).all()
    # Right or wrong message: no difference but chance.
    assert abs(drawn.normal_CSN.mean() - drawn.shuffle_CSN.mean()) < 0.03


def test_a_configuration_that_is_all_constant_answers_as_the_constant_did():
    columns = splits()["confirm"]
    only = np.array([[name == "constant" for name in false_pass.CONTENT_FREE]], dtype=float)
    drawn = false_pass.simulate_split(columns, only, 1, 100, np.random.default_rng(0))
    constants = [c.success_E[drawn.picks_N] for c in columns if c.condition == "constant"]
    assert len(constants) == 2  # of 4 and of 16 slots
    assert np.logical_or(*(drawn.normal_CSN[0, 0] == outcome for outcome in constants)).all()


# --- the judge -----------------------------------------------------------------------------------------------


def test_a_training_that_really_carries_the_message_passes_so_the_simulated_judge_passes_some():
    columns, gate = splits()["confirm"], load_gate("reference")
    generator = np.random.default_rng(0)
    idle = false_pass.simulate_split(columns, np.full((1, len(false_pass.CONTENT_FREE)), 1 / 6), 1, 150, generator)
    full = {(c.condition, c.k): c.success_E[idle.picks_N] for c in columns}
    real = idle._replace(normal_CSN=full["normal", 4][None, None], shuffle_CSN=full["shuffle", 4][None, None])
    for k in (4, 16):
        idle_one, real_one = (false_pass.training_outcomes(columns, drawn, 0, 0, k) for drawn in (idle, real))
        assert not false_pass.anything_passes([idle_one, idle_one], k, gate)
        assert false_pass.anything_passes([idle_one, real_one], k, gate)
        assert false_pass.fails_quick_checks(idle_one, k, gate)
        assert not false_pass.fails_quick_checks(real_one, k, gate)


def test_a_real_constant_codec_answers_alike_under_every_message_and_fails():
    receiver, trial = load_receiver("mini"), EvaluationConfig(max_new_tokens=12)
    names = ["normal", "shuffle", "null", "random", "P0", "P1", "identity"]
    drawn = episodes(level("easy"), range(3_000_000, 3_000_040), "search")
    for k in (4, 16):
        codec = Codec(CodecConfig(encoder="constant", k=k), receiver)
        subject = CheckpointId("constant", 0, codec.digest, 1, "{}")
        rows = evaluate(receiver, drawn, "search", names, trial, subject, codec)
        assert np.array_equal(*outcomes(rows, ["normal", "shuffle"], "answer"))
        verdict = judge(rows, load_gate("reference"))
        assert not verdict.passed
        tests = {r.name: r for r in verdict.results if r.gate == "semantic"}
        assert tests["right beats wrong"].p_value == 1.0
        assert paired_gain(rows) <= 0


def test_the_short_cut_never_hides_a_pass():
    """A training that `fails_quick_checks` turns away fails the whole judge as well."""
    gates = [load_gate("reference"), false_pass.tests_alone(load_gate("reference"))]
    columns, generator = splits(normal=0.4)["confirm"], np.random.default_rng(1)
    shares = np.full((12, len(false_pass.CONTENT_FREE)), 1 / 6)
    drawn = false_pass.simulate_split(columns, shares, 1, 50, generator)
    turned_away = 0
    for c in range(12):
        trained = false_pass.training_outcomes(columns, drawn, c, 0, 4)
        for gate in gates:
            if false_pass.fails_quick_checks(trained, 4, gate):
                turned_away += 1
                assert not judge(false_pass.gate_rows(trained, gate), gate).passed
    assert turned_away > 12


def test_hardly_any_simulated_sweep_passes_and_the_naive_readings_pass_most(monkeypatch):
    monkeypatch.setattr(false_pass, "CONFIGURATIONS", (1, 16))
    lines = false_pass.pass_rates(splits(P0=0.42, null=0.42, random=0.42, constant=0.44), 25, 1, 0)
    rate = {(line.reading, line.n, line.configurations): line for line in lines}
    assert {n for _, n, _ in rate} == {50, 150}
    for (reading, _, _), line in rate.items():
        assert line.sweeps == 25
        assert line.ci_low <= line.rate == line.passed / 25 <= line.ci_high
        if reading.startswith("gate"):
            assert line.rate <= 0.05
    assert {reading for reading, _, _ in rate if reading.startswith("gate")} == {
        f"gate reference{part}, k = {k}" for part in ("", ", its tests alone") for k in (4, 16)
    }
    naive = [rate["naive: CI_low(normal) >= 30 %", 150, c].rate for c in false_pass.CONFIGURATIONS]
    assert naive == sorted(naive)
    assert naive[-1] > 0.9
    assert rate["naive: normal >= 30 %", 150, 1].rate > 0.9


# --- the command ---------------------------------------------------------------------------------------------


def test_the_command_writes_table_and_figures_and_the_same_again(tmp_path, capsys):
    write_rows(tmp_path / "rows.parquet", swept())
    texts = []
    for name in ("one", "two"):
        argv = [tmp_path / "rows.parquet", "--out", tmp_path / name, "--sweeps", 2, "--seeds", 1]
        assert main([str(word) for word in argv]) == 0
        texts.append([(tmp_path / name / f"false-pass.{kind}").read_text() for kind in ("json", "md")])
    assert texts[0] == texts[1]
    data, page = json.loads(texts[0][0]), texts[0][1]
    assert len(data["lines"]) == 2 * 3 * 7
    assert "| Reading" in page
    assert page in capsys.readouterr().out


@pytest.mark.parametrize("condition", ["P0", "P1", "identity", "null", "random"])
def test_a_missing_condition_is_named(condition):
    rows = swept()
    with pytest.raises(UserError, match=f"split select, condition {condition}: missing"):
        false_pass.read_columns(rows[rows.condition != condition], "select")


def test_rows_of_two_receivers_or_of_other_episodes_are_refused():
    rows = swept()
    with pytest.raises(UserError, match="of several receivers"):
        false_pass.read_columns(pd.concat([rows, rows.assign(receiver="other")]), "search")
    with pytest.raises(UserError, match="condition constant: lacks episodes"):
        false_pass.read_columns(rows[(rows.condition != "constant") | (rows.episode > 2010)], "search")


@pytest.mark.parametrize("argv", [["--sweeps", "0"], ["--seeds", "0"], ["--draws", "-1"]])
def test_a_number_out_of_range_is_refused(argv):
    with pytest.raises(UserError, match=f"{argv[0]} {argv[1]}: give"):
        main(["rows.parquet", "--out", "out", *argv])


def test_the_command_names_a_missing_file_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "m2ray.false_pass", "none.parquet", "--out", "out"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: none.parquet: no such file; give a rows file or a results folder\n"
