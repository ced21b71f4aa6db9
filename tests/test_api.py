"""`import m2ray`: a trained codec passes a message between two agents, is judged, saved and loaded again."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_rows import make_rows

import m2ray
import m2ray.api
from m2ray.cli import sweep
from m2ray.codec.codec import Codec
from m2ray.config.task import TaskConfig
from m2ray.config.trial import CodecConfig, EvaluationConfig
from m2ray.evaluation.confirm_ledger import ConfirmLedger
from m2ray.receiver.text_source import TextSource
from m2ray.util.errors import UserError

BEST = Path(__file__).parent.parent / "results" / "recipe-mini" / "best-k4"


def test_importing_it_is_at_once():
    code = "import m2ray, sys; assert m2ray.level('easy').domain == 3; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_thing"):
        m2ray.no_such_thing  # noqa: B018


def test_a_trained_codec_passes_a_message_between_two_agents():
    receiver = m2ray.load_receiver("mini")
    codec = m2ray.Codec.from_pretrained(BEST, receiver=receiver)
    episodes = m2ray.episodes(m2ray.level("easy"), range(6_000_000, 6_000_200))
    episode = episodes[0]
    with torch.no_grad():
        prefix_1KD = codec(
            receiver.encode_messages([episode.message])
        ).prefix_BKD  # agent A's message as four vectors
    (answer,) = receiver.decode([episode], codec.config.k, prefix_1KD, codec.config.place)  # agent B
    assert m2ray.verify(episode, answer, receiver.style.answer).parsed

    importlib.import_module("m2ray.evaluate")  # the command of that name does not stand in the function's way
    rows = m2ray.evaluate(codec, receiver, episodes)
    mine = rows[(rows.condition == "normal") & (rows.episode == episode.seed)].iloc[0]
    assert mine.answer == answer
    assert set(rows.split) == {"6000000:6000200"}, "the seeds that were evaluated, not a split of a sweep"
    verdict = m2ray.judge(rows)
    assert verdict.verdict == "PASS"
    assert verdict.counts["normal"][1] == 200
    with pytest.raises(UserError, match="shuffle"):
        m2ray.judge(rows[rows.condition != "shuffle"])


def test_a_codec_is_run_on_another_receiver_only_where_asked_to(tmp_path, tiny, other_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "codec"
    codec = Codec(CodecConfig.model_validate({"encoder": "segments", "k": 2, "width": 16}), tiny).eval()
    codec.save(folder, {"receiver": "tiny"})
    other, episodes = m2ray.load_receiver(str(other_folder)), m2ray.episodes(m2ray.level("easy"), range(20))
    with pytest.raises(
        UserError, match=r"not the one that the codec was loaded for, .*tiny.*; give that, or load"
    ):
        m2ray.evaluate(codec, other, episodes)
    with pytest.raises(UserError, match=r"trained with receiver tiny .*; use the receiver it was trained with"):
        m2ray.Codec.from_pretrained(folder, receiver=other)
    loaded = m2ray.Codec.from_pretrained(folder, receiver=other, other_receiver=True)
    rows = m2ray.evaluate(loaded, other, episodes, ["normal", "P0"], EvaluationConfig(max_new_tokens=2))
    assert set(rows[rows.condition == "normal"].config) == {"codec-of-tiny"}
    assert set(rows.receiver) == {other.digest}


def test_evaluating_messages_is_a_look_at_them(recwarn):
    receiver = m2ray.load_receiver("mini")
    codec = m2ray.Codec.from_pretrained(BEST, receiver=receiver)
    episodes = m2ray.episodes(m2ray.level("easy"), range(6_000_000, 6_000_008))
    ledger = ConfirmLedger("easy", receiver.digest)
    for count in (1, 2):
        m2ray.evaluate(codec, receiver, episodes, ["P0"])
        assert len(ledger.looks()) == count
    assert not recwarn.list, "a published codec has its verdict"
    (look, _) = ledger.looks()
    assert (look.split, look.n, look.subject) == ("6000000:6000008", 8, f"codec {codec.digest}")
    codec.record.pop("published")
    with pytest.warns(UserWarning, match="episodes 6000000:6000005: 5 of 5 messages were looked at before, by 20"):
        m2ray.evaluate(codec, receiver, episodes[:5], ["P0"])


def test_messages_that_codec_or_receiver_may_have_been_trained_on_are_refused(monkeypatch):
    receiver = m2ray.load_receiver("mini")
    codec = m2ray.Codec.from_pretrained(BEST, receiver=receiver)
    judged, trained = (m2ray.episodes(m2ray.level("easy"), range(4), part) for part in ("confirm", "train"))
    with pytest.raises(
        UserError, match=r"episodes: seed 2: .* in the part that receiver mini was trained on; use"
    ):
        m2ray.evaluate(codec, receiver, [*judged, trained[2]], ["P0"])
    monkeypatch.delitem(receiver.card, "train_seeds")
    with pytest.raises(UserError, match=r"episodes: seed 2: .* in the part that the codec was trained on; use"):
        m2ray.evaluate(codec, receiver, [*judged, trained[2]], ["P0"])
    with pytest.raises(UserError, match=r"episodes: none; give some"):
        m2ray.evaluate(codec, receiver, [], ["P0"])


def test_the_public_names_are_listed_and_exist():
    assert dir(m2ray) == sorted(m2ray.__all__)
    assert dir(m2ray.api) == sorted(m2ray.api.__all__)
    assert set(m2ray.__all__) <= set(m2ray.api.__all__)
    assert all(getattr(m2ray.api, name) is not None for name in m2ray.api.__all__)


def test_rows_that_cannot_be_judged_are_refused_by_name():
    rows = pd.concat([make_rows(), make_rows(config="b")])
    with pytest.raises(UserError, match=r"rows: column success: missing; give the frame of m2ray\.evaluate"):
        m2ray.judge(rows.drop(columns="success"))
    with pytest.raises(UserError, match="rows: none; give the frame of"):
        m2ray.judge(rows.iloc[:0])
    with pytest.raises(UserError, match="rows: a list; give the frame of"):
        m2ray.judge([1, 2])
    with pytest.raises(UserError, match=r"rows: hold 2 values of config \(a, b\); name one, such as config='a'"):
        m2ray.judge(rows)
    with pytest.raises(UserError, match="config: 'c' is not in the rows; choose from a, b"):
        m2ray.judge(rows, config="c")
    with pytest.raises(UserError, match=r"rows: hold 2 values of split \(confirm, search\); name one"):
        m2ray.judge(pd.concat([make_rows(), make_rows(split="search")]))
    with pytest.raises(UserError, match="rows: column k: missing"):
        m2ray.draw_conditions(rows.drop(columns="k"))


def test_one_configuration_of_a_sweeps_rows_is_judged_with_the_shared_rows_of_its_own_slots():
    rows = m2ray.read_rows(BEST.parent)
    verdict = m2ray.judge(rows, config="k8", split="confirm")
    assert verdict.verdict == "PASS"
    assert m2ray.judge(rows[(rows.config == "k8") | (rows.config == "")], split="confirm") == verdict


def test_a_printed_verdict_reads_like_the_board():
    verdict = m2ray.judge(make_rows(), "reference")
    first, second = str(verdict).splitlines()
    assert first == "PASS: all criteria hold"
    assert second == (
        "solved of n = 200: normal 75.0%, null 30.0%, random 30.0%, shuffle 15.0%, P0 30.0%, P1 90.0%, "
        "identity 90.0%"
    )


def test_a_training_is_started_and_its_checkpoint_loaded(tmp_path, tiny_folder, tiny):
    splits = {"train": "100:400", "search": "1000:1012", "select": "4000:4004", "confirm": "2000:2012"}
    training = {"epochs": 1, "epoch_samples": 32, "batch_size": 16}
    codec = {"k": 3, "width": 32, "layers": 1}
    config = {"receiver": str(tiny_folder), "splits": splits, "codec": codec, "training": training}
    importlib.import_module("m2ray.train")  # the command
    checkpoint = m2ray.train(config, seed=1, out=tmp_path / "out")
    assert checkpoint == (tmp_path / "out" / "seed-1" / "epoch-01").resolve()
    assert m2ray.Codec.from_pretrained(checkpoint, receiver=tiny).config.k == 3
    with pytest.raises(UserError, match=r"config: codec\.k: 0 is below 1"):
        m2ray.train({"codec": {"k": 0}})


def test_a_sweep_is_checked_as_on_the_command_line(tmp_path):
    importlib.import_module("m2ray.sweep")
    with pytest.raises(UserError, match=r"--set: codec\.k: 0 is below 1"):
        m2ray.sweep(results=tmp_path, settings={"codec.k": 0})
    assert sweep.results_folder(["gate1", "--results", str(tmp_path), "--name", "x"]) == tmp_path / "x"


def test_a_codec_is_saved_and_loaded_as_on_the_hub(tmp_path):
    codec = m2ray.Codec.from_pretrained(BEST)  # with the receiver that its record names
    codec.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "codec.safetensors",
        "config.json",
        "README.md",
    }
    again = m2ray.Codec.from_pretrained(str(tmp_path / "mine"))
    assert again.digest == codec.digest
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == json.loads(
        (BEST / "config.json").read_text()
    )
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: m2ray\n") or "library_name: m2ray" in card.split("---")[1]
    assert "Verdict: PASS on confirm, n = 1000: normal 77.5 % over training seeds 0, 1, 2; of this" in card
    assert codec.receiver_digest in card


def test_what_is_pushed_to_the_hub_is_the_folder(tmp_path, monkeypatch):
    """The hub itself is not reached from a test: what would be sent is looked at."""
    sent = {}

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}
            return "sent"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert m2ray.Codec.from_pretrained(BEST).push_to_hub("someone/best-k4") == "sent"
    assert sent == {"someone/best-k4": {"codec.safetensors", "config.json", "README.md"}}


def test_episodes_in_free_text_are_evaluated_like_others(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        {
            "id": i,
            "message": f"x1 = {i % 3} ; x2 = {i // 3 % 3}",
            "prompt": "A {message} B ?",
            "target": str(i % 3),
        }
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    receiver = m2ray.load_receiver("mini")
    codec = Codec(CodecConfig(encoder="segments", k=2), receiver)
    chosen = TextSource(TaskConfig(file=str(path), scorer="contains")).get(range(6), "confirm")
    rows = m2ray.evaluate(codec, receiver, chosen, ["normal", "P0", "P1"])
    assert rows.groupby("condition").episode.nunique().to_dict() == {"normal": 6, "P0": 6, "P1": 6}
    assert rows[rows.condition == "P1"].success.all()


def test_episodes_of_any_task(tmp_path):
    """Of puzzles those that m2ray.episodes draws, of sentences and files those of the part."""
    assert m2ray.task_episodes("easy", range(5, 8)) == m2ray.episodes(m2ray.level("easy"), range(5, 8))
    (first, second) = m2ray.task_episodes("sentences-4x4", range(2), "select")
    assert first.message != second.message
    assert len(first.sentences()) == 4
    path = tmp_path / "own.jsonl"
    lines = [{"id": i, "message": f"Code {i}{i * 7}.", "prompt": "?", "target": "x"} for i in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"file": str(path), "scorer": "exact"}
    parts = {part: m2ray.task_episodes(task, range(3), part) for part in ("train", "search", "select", "confirm")}
    assert all(len(found) == 3 for found in parts.values())
    assert len({episode.id for found in parts.values() for episode in found}) == 12


@pytest.mark.parametrize(
    ("task", "seeds", "part", "fault"),
    [
        ("easier", range(3), "confirm", "task: level: level 'easier' does not exist; use one of easy"),
        ("easy", range(3), "test", "part: 'test' does not exist; use one of train, search, select, confirm"),
        ("easy", range(3, 3), "confirm", "seeds: range.3, 3.: not seeds in order; give some"),
        ({"scorer": "exact"}, range(3), "confirm", "task: scorer: level easy checks its answers itself"),
    ],
)
def test_a_task_that_does_not_exist_is_refused_in_one_line(task, seeds, part, fault):
    with pytest.raises(m2ray.UserError, match=fault) as error:
        m2ray.task_episodes(task, seeds, part)
    assert "\n" not in str(error.value)


def test_a_level_in_free_text_names_the_function_that_draws_it():
    with pytest.raises(m2ray.UserError, match=r"in free text; draw its episodes with m2ray\.task_episodes"):
        m2ray.level("sentences-4x4")
