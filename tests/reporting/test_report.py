"""Leaderboard, reports and figures: from rows alone, the same every time, in the results folder only."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from made_reports import BAD, results_folder, run_rows
from made_rows import GOOD
from statsmodels.stats.multitest import multipletests

from m2ray.cli.report import main
from m2ray.cli.runner import run_command
from m2ray.config.gate_file import load_gate
from m2ray.evaluation.row_selection import judged_rows
from m2ray.evaluation.rows import KEY, failure_row
from m2ray.judging.gate import judge
from m2ray.reporting.build import build
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard
from m2ray.reporting.leaderboard_text import reasons
from m2ray.util.errors import UserError

LOOK = "2026-01-01 00:00:00 evaluate epoch-02"


def leaderboard_of(*parts):
    """Return the leaderboard without writing a file."""
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(KEY)
    return make_leaderboard(rows, judge_runs(rows, load_gate("reference")), load_gate("reference"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a results folder of five configurations by the reference gate. Tests must not write into it."""
    folder = results_folder(
        tmp_path_factory.mktemp("results"),
        run_rows("winner", gain=0.3),
        run_rows("loser", BAD, gain=0.01),
        run_rows("unlucky", gain=0.1, splits=("search", "select")),
        run_rows("early", gain=-0.1, splits=("search",)),
        failure_row("broken", 8, "easy", "seed 0: loss nan at step 3;\n lower lr"),
    )
    (folder / "confirm-looks.log").write_text(LOOK + "\n")
    command = [sys.executable, "-m", "m2ray.report", str(folder), "--gate", "reference"]
    # The environment is named because readline, which pytest imports, sets COLUMNS behind Python's back.
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    return folder, pd.read_csv(folder / "leaderboard.csv"), done.stdout


@pytest.fixture
def folder(built, tmp_path):
    """Return a folder with a copy of the rows."""
    shutil.copy(built[0] / "rows.parquet", tmp_path)
    return tmp_path


def test_the_leaderboard_is_ordered_and_gives_reasons(built):
    _, leaderboard, _ = built
    assert list(leaderboard.config) == ["winner", "loser", "unlucky", "early", "broken"]
    assert list(leaderboard.verdict) == ["PASS", "FAIL", "not confirmed", "not confirmed", "failed"]
    reasons = dict(zip(leaderboard.config, leaderboard.reason, strict=True))
    assert reasons["winner"] == "all criteria hold"
    assert reasons["loser"].startswith("BACKWARDS: a wrong message does better than the right one; 'normal clears")
    assert reasons["unlucky"].startswith("others did better on select (score +0.100 nats, 2 of 4 on search); ")
    assert reasons["early"].startswith("not selected (score -0.100 nats, 4 of 4 on search); ")
    assert reasons["broken"] == "seed 0: loss nan at step 3; lower lr"


def test_the_csv_has_the_columns_that_users_rely_on_and_the_rates_of_the_rows(built):
    leaderboard = built[1].set_index("config")
    wanted = {
        "seed",
        "k",
        "n",
        "normal",
        "normal_ci_low",
        "normal_ci_high",
        "null",
        "random",
        "shuffle",
        "P0",
        "P1",
    }
    wanted |= {
        "retention",
        "gate1",
        "gate2",
        "verdict",
        "reason",
        "training.lr",
        "codec.encoder",
        "score",
        "split",
    }
    assert wanted <= set(leaderboard.columns)
    one = leaderboard.loc["winner"]
    shares = {name: one[name] for name in ("normal", "null", "random", "shuffle", "P0", "P1")}
    assert shares == {name: GOOD[name] for name in shares}
    assert one.retention == pytest.approx((0.75 - 0.3) / (0.9 - 0.3), abs=1e-4)
    assert (one.normal_ci_low, one.normal_ci_high) == pytest.approx((0.6857, 0.8049), abs=2e-4)  # Wilson, 150/200
    assert (one.n, one.k, one.score, one.gate1) == (200, 4, 0.3, "PASS")
    assert leaderboard.loc["broken"].drop(["k", "verdict", "reason"]).isna().all()


def test_counts_stay_integers_beside_a_failed_line(built):
    first = (built[0] / "leaderboard.csv").read_text().splitlines()[1]
    assert first.startswith("winner,0,0,4,")  # config, seed, seeds, k


def test_the_printed_leaderboard_shows_conditions_retention_verdict_and_reason(built):
    lines = built[2].splitlines()
    assert lines[1].split() == (
        [
            "config",
            "seed",
            "k",
            "split",
            "n",
            "normal",
            "%",
            "95",
            "%",
            "CI",
            "null",
            "shuffle",
            "P0",
            "P1",
            "retention",
            "score",
            "verdict",
        ]
    )
    winner = next(line for line in lines if line.startswith("winner "))
    assert winner.split()[:9] == ["winner", "0", "4", "confirm", "200", "75.0", "[68.6,", "80.5]", "30.0"]
    assert winner.split()[9:] == ["15.0", "30.0", "90.0", "0.75", "+0.300", "PASS"]
    assert "broken: failed: seed 0: loss nan at step 3; lower lr" in lines
    assert lines[-1].startswith("written:")


def test_a_configuration_has_a_line_over_its_seeds_and_below_it_one_that_names_each_seed(tmp_path):
    folder = results_folder(tmp_path, *(run_rows("a", gain=0.1 * (seed + 1), seed=seed) for seed in range(3)))
    leaderboard = build(folder, "reference")
    assert leaderboard.seed.tolist()[1:] == [0, 1, 2]
    assert leaderboard.seeds.tolist() == ["0 1 2", "0", "1", "2"]
    assert pd.isna(leaderboard.seed[0])
    assert leaderboard.score.tolist() == pytest.approx([0.2, 0.1, 0.2, 0.3])
    assert [line.split(":")[0] for line in reasons(leaderboard)] == ["a", "a, seed 0", "a, seed 1", "a, seed 2"]
    text = (folder / "attempts" / "a.md").read_text()
    assert "- Over 3 training seeds: PASS: all criteria hold\n- Training seed 0: PASS: " in text
    assert [text.count(f"## Training seed {seed}, split confirm") for seed in range(3)] == [1, 1, 1]


def test_tests_are_corrected_over_all_that_are_judged_on_confirm():
    rows = pd.concat([run_rows(f"c{i}", splits=("confirm",)) for i in range(5)], ignore_index=True)
    rows = rows.drop_duplicates(KEY)
    tests = [
        [r.p_value for r in run.verdict.results if r.p_value is not None]
        for run in judge_runs(rows, load_gate("reference"))
    ]
    alone = judge(judged_rows(rows, "c0", 0, "confirm"), load_gate("reference"))
    raw = [r.p_value for r in alone.results if r.p_value is not None]
    assert len(raw) == 2
    expected = multipletests(raw * 5, method="holm")[1].reshape(5, 2)
    np.testing.assert_allclose(tests, expected)


def test_a_configuration_that_failed_has_one_line_whatever_rows_it_has(tmp_path):
    folder = results_folder(
        tmp_path, run_rows("a"), run_rows("b", splits=("search",)), failure_row("b", 4, "easy", "died")
    )
    assert list(zip(*build(folder)[["config", "verdict"]].values.T, strict=True)) == [
        ("a", "PASS"),
        ("b", "failed"),
    ]


def test_a_leaderboard_of_failures_alone_is_written(tmp_path):
    folder = results_folder(tmp_path, failure_row("a", 4, "easy", "died"), failure_row("b", 8, "easy", "nan"))
    leaderboard = build(folder)
    assert list(leaderboard.verdict) == ["failed", "failed"]
    assert {"normal", "null", "shuffle", "P0", "P1", "retention", "gate1"} <= set(leaderboard.columns)
    assert "| b " in (folder / "leaderboard.md").read_text()


def test_rows_cut_short_by_a_kill_are_incomplete_on_the_leaderboard():
    rows = run_rows("half", splits=("search",))
    leaderboard = leaderboard_of(run_rows("whole"), rows[rows.condition != "shuffle"]).set_index("config")
    assert leaderboard.loc["half", "verdict"] == "incomplete"
    assert "condition shuffle: missing" in leaderboard.loc["half", "reason"]
    assert leaderboard.loc["whole", "verdict"] == "PASS"


def test_figures_open_and_show_something(built):
    folder = built[0] / "figures"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        f"{n}.{kind}"
        for n in ("conditions", "slots", "scale_gate", "outcomes", "scores")
        for kind in ("png", "svg")
    }
    for path in folder.glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels[::7, ::7, :3])) > 10


def test_another_build_from_rows_in_another_order_writes_the_same_bytes(built, tmp_path):
    def contents(folder):
        # Except for the digest of the rows' file, which has its rows in another order.
        digest = hashlib.sha256((folder / "rows.parquet").read_bytes()).hexdigest().encode()
        return {
            p.relative_to(folder): p.read_bytes().replace(digest, b"digest")
            for p in folder.rglob("*")
            if p.suffix != ".parquet" and p.is_file()
        }

    first, folder = built[0], tmp_path / built[0].name
    rows = pd.read_parquet(first / "rows.parquet").sample(frac=1, random_state=0)
    folder.mkdir()
    rows.to_parquet(folder / "rows.parquet")
    shutil.copy(first / "confirm-looks.log", folder)
    build(folder, "reference")
    assert contents(folder) == contents(first)
    assert len(contents(first)) == 1 + 1 + 2 + 4 + 10


def test_later_looks_at_confirm_are_listed(built):
    for name in ("leaderboard.md", "attempts/winner.md"):
        assert f"Looked at confirm again: {LOOK}" in (built[0] / name).read_text()


def test_the_gate_of_the_sweep_is_the_reports_unless_another_is_given(tmp_path):
    folder = results_folder(tmp_path, run_rows("winner", splits=("confirm",)))
    gate = load_gate("reference").model_dump()
    gate["name"] = "strict"
    gate["criteria"] = [
        {"gate": "gate1", "name": "high", "kind": "lower_bound", "condition": "normal", "at_least": 0.95}
    ]
    (folder / "sweep.yaml").write_text(json.dumps({"gate": gate}))
    leaderboard = build(folder)
    assert leaderboard.reason[0] == "'high' does not hold: CI_low(normal) = 68.6% < 95.0%"
    assert "by gate `strict`" in (folder / "leaderboard.md").read_text()


def test_another_gate_writes_files_of_its_own_whatever_it_calls_itself(tmp_path, capsys):
    folder = results_folder(tmp_path / "results", run_rows("loser", BAD, splits=("confirm",)))
    gate = load_gate("reference")
    (folder / "sweep.yaml").write_text(json.dumps({"gate": gate.model_dump()}))
    assert build(folder).verdict[0] == "FAIL"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    bar = {"gate": "gate1", "name": "low", "kind": "lower_bound", "condition": "normal", "at_least": 0.1}
    loose = tmp_path / "loose.yaml"
    loose.write_text(json.dumps({"name": "reference", "criteria": [bar]}))
    digest = load_gate(loose).digest
    assert main([str(folder), "--gate", str(loose)]) == 0
    printed = capsys.readouterr().out
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    new = {file.name for file in after.keys() - before.keys()}
    assert new == {f"leaderboard-by-{digest}.csv", f"leaderboard-by-{digest}.md", f"report-by-{digest}.html"}
    assert {file: after[file] for file in before} == before
    assert pd.read_csv(folder / f"leaderboard-by-{digest}.csv").verdict[0] == "PASS"
    note = (
        f"Not the registered gate: judged anew by `reference` ({digest}); the sweep was registered with "
        f"`reference` ({gate.digest}), whose verdicts are in leaderboard.md."
    )
    text = (folder / f"leaderboard-by-{digest}.md").read_text()
    assert note in printed
    assert note in text
    assert f"by gate `reference ({digest}, not the registered gate)`" in text
    assert "Not the registered gate" in (folder / f"report-by-{digest}.html").read_text()


def test_the_registered_criteria_under_another_name_are_the_registered_gate(tmp_path):
    folder = results_folder(tmp_path / "results", run_rows("winner", splits=("confirm",)))
    gate = load_gate("reference").model_dump()
    (folder / "sweep.yaml").write_text(json.dumps({"gate": gate}))
    same = tmp_path / "same.yaml"
    same.write_text(json.dumps({**gate, "name": "same"}))
    build(folder, same)
    assert not list(folder.glob("*-by-*"))
    assert "by gate `reference`" in (folder / "leaderboard.md").read_text()


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command, check that it writes nothing, and return its one line of error."""

    def refuse(*argv):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["m2ray.report", *map(str, argv)])
        with pytest.raises(SystemExit) as exit_:
            run_command(main)
        printed = capsys.readouterr()
        assert (exit_.value.code, printed.out) == (2, "")
        assert len(printed.err.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return refuse


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a\nb", "..", ".", " ", "a/b", "a\\b", "a\0b", ".hidden", "x" * 200]
)
def test_a_name_that_is_not_a_file_name_is_refused(tmp_path, name):
    inside = tmp_path / "deep" / "results"
    results_folder(inside, run_rows(name, splits=("confirm",)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is not a plain name; fix the rows"):
        build(inside)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hostile_name_is_one_line_on_the_command_line(tmp_path, refused):
    folder = results_folder(tmp_path / "r", run_rows("../x", splits=("confirm",)))
    assert "'../x' is not a plain name" in refused(folder)


def test_a_folder_that_is_not_there_or_holds_no_rows_is_refused(tmp_path, refused):
    assert "no such folder; give results/NAME" in refused(tmp_path / "nothing")
    assert "holds no rows; run the sweep" in refused(tmp_path)


def test_rows_with_missing_columns_are_refused(folder, refused):
    rows = pd.read_parquet(folder / "rows.parquet").drop(columns="nll")
    rows.to_parquet(folder / "rows.parquet")
    line = refused(folder)
    assert f"{folder}/rows.parquet: column nll: missing" in line


def test_rows_that_lack_a_judged_condition_throughout_are_refused(tmp_path, refused):
    rows = run_rows("a", splits=("confirm",))
    folder = results_folder(tmp_path / "r", rows[rows.condition != "P0"])
    assert "condition P0: missing" in refused(folder)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("gate: {name: x}", "sweep.yaml: gate: criteria: missing; add it"),
        ("gate: [", "sweep.yaml: not valid YAML"),
        ("- 1", "sweep.yaml: expected a mapping"),
    ],
)
def test_a_damaged_sweep_yaml_is_refused(folder, refused, content, error):
    (folder / "sweep.yaml").write_text(content)
    assert error in refused(folder)
