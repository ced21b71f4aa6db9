"""The diagnosis: its figures are those of evaluation, never of confirm, and bad input is one line."""

import json
import re
import subprocess
import sys
from functools import partial

import pytest
import torch

from m2ray.cli.diagnose import main
from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.config.task import parse_seeds
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis import measure, messages
from m2ray.diagnosis.free_vectors import free_vectors
from m2ray.diagnosis.measure import answer_nll_parts, diagnose
from m2ray.diagnosis.messages import (
    check_messages,
    first_fresh_seed,
    held_out_episodes,
    probe_messages,
    training_messages,
)
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.evaluation.runner import answer_episodes, evaluate
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import episodes, part_of
from m2ray.tasks.registry import level
from m2ray.training.trainer import train
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

EASY = level("easy")
SUBJECT = CheckpointId("test", 0, "", 2, "{}")


def config(receiver, **changes) -> TrialConfig:
    tree = {
        "receiver": receiver.name,
        "splits": {"train": "100:300", "search": "1000:1100", "select": "1100:1200", "confirm": "1200:1300"},
        "codec": {"encoder": "segments", "k": 3, "width": 16, "layers": 1},
        "losses": {"ce": {}},
        "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16},
        "evaluation": {"max_new_tokens": 2, "constant_samples": 64, "batch_size": 100},
    }
    return validate(TrialConfig, tree | changes, "test")


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return train(config(tiny), 5, tiny, tmp_path_factory.mktemp("run"), lambda m, at: None, {"config": "test"})


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(messages, "PROBE_MESSAGES", 300)
    monkeypatch.setattr(measure, "free_vectors", partial(free_vectors, max_steps=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "shuffle", "null", "P0", "P1"])
def test_digits_are_evaluations_nats_and_the_rest_is_the_rest_of_the_answer(tiny, name):
    torch.manual_seed(0)
    part = episodes(EASY, range(9), "search")
    codec = Codec(config(tiny).codec, tiny).eval()
    injection = get_condition(name).inject(ConditionInputs(tiny, part, codec, None, 4))
    found = answer_nll_parts(tiny, part, injection, 4)
    nll_E = answer_episodes(tiny, part, injection, config(tiny).evaluation).nll_E
    torch.testing.assert_close(found.digits_E, nll_E)
    frame = tiny.answer_frame(EASY)
    texts, prefix = injection.texts, None
    if injection.prefixes is not None:
        texts, prefix = 3, torch.stack(list(injection.prefixes))
    with torch.no_grad():
        logits = tiny.logits(tiny.layout(part, texts, injection.place), prefix, len(frame.ids_A))
    total = answer_nll(logits, frame, tiny.targets(part)).sum(1)
    parts = found.digits_E * 4 + found.format_E * (len(frame.ids_A) - 4)
    torch.testing.assert_close(parts, total, rtol=1e-4, atol=1e-4)


def test_gaps_and_success_are_those_of_the_rows(tiny, small, tmp_path):
    torch.manual_seed(0)
    conf, part = config(tiny), episodes(EASY, range(120), "search")
    codec = Codec(conf.codec, tiny).eval()
    found, shown = diagnose(tiny, codec, conf, part, SUBJECT, tmp_path, free_episodes=0)
    again, _ = diagnose(tiny, codec, conf, part, SUBJECT, tmp_path, free_episodes=0)
    assert again.json() == found.json()
    assert {name: len(rows) for name, rows in shown.features.items()} == dict.fromkeys(found.maps, 120)
    rows = evaluate(tiny, part, "search", ["normal", "shuffle", "null", "P0", "P1"], conf.evaluation, codec=codec)
    by = {name: group for name, group in rows.groupby("condition")}
    for name, gap in found.gaps.items():
        paired = by[name].nll.to_numpy() - by["normal"].nll.to_numpy()
        assert gap.digits.value == pytest.approx(paired.mean(), abs=1e-5)
        assert gap.digits.low <= gap.digits.value <= gap.digits.high
    for name, success in found.success.items():
        assert (success.successes, success.n) == (int(by[name].success.sum()), 120)
        assert success.digits == pytest.approx(by[name].nll.mean(), abs=1e-5)
    assert set(found.success) == set(by)
    assert (found.about["config"], found.about["seed"]) == ("test", 0)
    with torch.no_grad():
        prefix = codec(tiny.encode_messages([e.message for e in part])).prefix_BKD
    unit = prefix.norm(dim=-1).mean() / tiny.embedding_norm
    assert found.norms.mean == pytest.approx(float(unit), rel=1e-4)
    assert found.norms.scale_gate == pytest.approx(1.5)
    assert found.path == ("tokens", "latent", "prefix")


# --- which episodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "seeds"), [(None, None), ("search", None), ("select", None), (None, "1200:1210")]
)
def test_no_message_of_the_confirm_part_is_ever_looked_at(tiny, monkeypatch, split, seeds):
    monkeypatch.setattr(messages, "HELD_OUT_MESSAGES", 30)
    part = held_out_episodes(config(tiny), tiny, split, seeds)
    assert {part_of(episode.sender) for episode in part} == {split or "search"}
    if seeds is None and split is None:
        assert [episode.seed for episode in part] == list(range(1300, 1330))


def test_default_seeds_lie_past_the_receivers_own_training(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "card", {"train_seeds": "5000:9000"})
    assert first_fresh_seed(config(tiny), tiny) == 9000


def test_probes_are_fitted_on_fresh_messages_of_the_training_part_each_once(tiny, small):
    conf = config(tiny, task={"level": "lookup-4x5"})
    fit = probe_messages(conf, tiny, 300)
    assert {part_of(episode.sender) for episode in fit} == {"train"}
    assert len({episode.content for episode in fit}) == len(fit) < 300
    assert min(episode.seed for episode in fit) >= 1300


def test_trained_messages_are_those_of_the_training(tiny):
    conf = config(tiny)
    train_seeds = parse_seeds(conf.splits.train)
    seen = training_messages(conf, 5, 1000)
    assert len({episode.seed for episode in seen}) == len(seen) == 32
    assert {episode.seed for episode in seen} <= set(train_seeds)
    assert {part_of(episode.sender) for episode in seen} == {"train"}


def test_lines_of_a_file_that_are_in_training_or_on_confirm_are_refused(tiny, tmp_path):
    lines = [
        {
            "receiver_context": episode.context,
            "sender_message": episode.message,
            "receiver_output": json.dumps(dict(zip(EASY.names, episode.solution, strict=True))),
        }
        for part in ("train", "search", "confirm")
        for episode in episodes(EASY, range(20), part)
    ]
    file = tmp_path / "episodes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = {"train": "0:20", "search": "20:30", "select": "30:40", "confirm": "40:60"}
    conf = config(tiny, task={"file": str(file)}, splits=splits)
    assert [e.seed for e in held_out_episodes(conf, tiny, None, None)] == list(range(20, 30))
    assert [e.seed for e in held_out_episodes(conf, tiny, None, "32:36")] == list(range(32, 36))
    assert {e.seed for e in probe_messages(conf, tiny, 300)} <= set(range(20))
    with pytest.raises(UserError, match="--episodes"):
        held_out_episodes(conf, tiny, None, "10:30")
    with pytest.raises(UserError, match="which a diagnosis must not use; choose other lines"):
        held_out_episodes(conf, tiny, None, "38:42")


# --- command -------------------------------------------------------------------------------------------------


def test_the_command_writes_figures_findings_and_pictures(tiny, checkpoint, small, tmp_path, capsys):
    out = tmp_path / "found"
    assert main([str(checkpoint), "--seeds", "0:120", "--ceilings", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    whole = json.loads((out / "diagnosis.json").read_text())
    assert whole["about"]["n"] == 120
    assert whole["about"]["seeds"] == "0:120"
    assert whole["success"]["free"]["n"] == 4
    assert 0 <= whole["free_converged"] <= 4
    assert set(whole["gaps"]) == {"shuffle", "null", "P0", "P1", "constant"}
    text = (out / "diagnosis.md").read_text()
    assert whole["findings"]
    assert whole["root_cause"][0] == ["Question", "Measured", "Answer"]
    assert {path.name for path in out.iterdir()} == {"diagnosis.json", "diagnosis.md", "maps.png", "stages.png"}
    for finding in whole["findings"]:
        assert f"- {finding['name']}: {finding['sentence']}" in printed
        assert finding["sentence"] in text
    for name in ("maps", "stages"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text


def test_the_command_says_that_it_ran_on_another_receiver(checkpoint, small, other_folder, tmp_path, capsys):
    words = [str(checkpoint), "--seeds", "0:40", "--ceilings", "0", "--receiver", str(other_folder)]
    with pytest.raises(UserError, match="use the receiver it was trained with"):
        main(words)
    capsys.readouterr()
    assert main([*words, "--other-receiver", "--out", str(tmp_path / "found")]) == 0
    whole = json.loads((tmp_path / "found" / "diagnosis.json").read_text())
    assert whole["findings"][0]["name"] == "other_receiver"
    assert whole["findings"][0]["sentence"] in capsys.readouterr().out
    assert whole["about"]["trained_with"] in whole["findings"][0]["sentence"]
    assert whole["about"]["config"].startswith("test-of-tiny")
    with pytest.raises(UserError, match="--other-receiver: needs a receiver; name it with --receiver"):
        main([str(checkpoint), "--other-receiver"])


def test_too_few_messages_for_diagnoses_are_refused_before_a_sweep(tiny):
    check_messages(config(tiny), tiny, 120)
    with pytest.raises(UserError, match="no fact is stated by 5 of 6 held-out messages"):
        check_messages(config(tiny), tiny, 6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--seeds", "5:5"], r"--episodes: '5:5' is not a range of seeds"),
        (["--split", "confirm"], r"argument --split: invalid choice: 'confirm'"),
        (["--ceilings", "-1"], r"--ceilings -1: give a number of episodes, or 0"),
        (["--seeds", "0:3"], r"no fact is stated by 5 of 3 held-out messages"),
        (["--receiver", "/nowhere"], r"receiver /nowhere: no such folder"),
        (["--out", "{checkpoint}/config.json/x"], r"config.json is a file; choose another folder"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(checkpoint, small, arguments, error):
    with pytest.raises(UserError, match=error):
        main([str(checkpoint), *(argument.format(checkpoint=checkpoint) for argument in arguments)])


def test_a_folder_that_is_not_a_checkpoint_exits_2_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "m2ray.diagnose", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*no config.json; give a checkpoint folder that m2ray.train wrote\n", done.stderr)
    assert not done.stdout
