"""Diagnosis and distortion of a codec for a task in free text: what needs no puzzle, and what does not apply."""

import json
import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from m2ray.cli import diagnose, distortion
from m2ray.config.task import TaskConfig
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis import measure
from m2ray.diagnosis.distortion import FACTS, MOST_CUTS, TEXT, send_text
from m2ray.diagnosis.free_vectors import free_vectors
from m2ray.diagnosis.messages import held_out_episodes
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.scoring import value_nll
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.trainer import train
from m2ray.util.strict_yaml import validate

EASY = level("easy")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    lines = [
        {
            "id": str(e.seed),
            "message": e.message,
            "prompt": f"A {{message}} B {e.context} ?",
            "target": write_answer(EASY, e.solution, "values"),
            "choices": sorted({write_answer(EASY, e.solution, "values"), "0 0 0 0", "2 2 2 2"}),
            "group": f"g{e.seed // 2}",
        }
        for e in episodes(EASY, range(400), "search")
    ]
    path = tmp_path_factory.mktemp("text") / "easy.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module", params=["exact", "choice"])
def trial(request, file, tiny) -> TrialConfig:
    tree = {
        "receiver": tiny.name,
        "task": {"file": str(file), "scorer": request.param},
        "codec": {"encoder": "segments", "k": 3, "width": 16, "layers": 1},
        "losses": {"ce": {}},
        "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16},
        "evaluation": {"max_new_tokens": 2, "constant_samples": 64, "batch_size": 100},
    }
    return validate(TrialConfig, tree, "test")


@pytest.fixture(scope="module")
def checkpoint(trial, tiny, tmp_path_factory):
    return train(trial, 5, tiny, tmp_path_factory.mktemp("run"), lambda m, at: None, {"config": "test"})


def test_a_diagnosis_measures_all_but_the_facts(checkpoint, trial, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "free_vectors", partial(free_vectors, max_steps=50))
    assert diagnose.main([str(checkpoint), "--split", "search", "--ceilings", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "does not apply to a task in free text: probes look for the facts of a puzzle" in printed
    assert "nats per answer token" in printed
    assert "per digit" not in printed
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["probes"] == {}
    assert set(found["success"]) == {"normal", "shuffle", "null", "P0", "P1", "constant", "free"}
    assert found["success"]["free"]["n"] == 2
    assert set(found["maps"]) >= {"tokens", "latent", "prefix"}
    assert "but intervals count episodes" in found["about"]["groups"]
    assert (tmp_path / "maps.png").is_file()


def test_bits_are_counted_without_a_code_for_facts(checkpoint, tmp_path, capsys):
    assert distortion.main([str(checkpoint), "--messages", "64", "--out", str(tmp_path)]) == 0
    assert "a fixed code for its facts, do not apply to a task in free text" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "distortion.csv")
    assert FACTS not in set(table.sender)
    assert {"slot", "entry"} <= set(table.scheme)
    assert (tmp_path / "distortion.png").is_file()


def test_long_texts_are_cut_at_few_places(trial, tiny):
    long = [
        replace(e, message="; ".join([e.message] * 5)) for e in held_out_episodes(trial, tiny, "search", None)[:3]
    ]
    sent = list(send_text(tiny, trial, long, []))
    assert {each.sender for each in sent} == {TEXT}
    longest = max(len(e.message) for e in long)
    assert [each.bits for each in sent][-1] == 8 * longest
    assert len(sent) <= MOST_CUTS + 2
    assert sent[1].bits / 8 == math.ceil(longest / MOST_CUTS)


@pytest.mark.parametrize("scorer", ["exact", "choice"])
def test_free_vectors_make_the_right_text_likely(scorer, file, tiny):
    part = open_source(TaskConfig(file=str(file), scorer=scorer)).get(range(3), "search")
    start, fitted = (free_vectors(tiny, part, 2, "message", steps, 8) for steps in (0, 60))
    nll = [value_nll(tiny, part, 2, fit.vectors_EKD, "message") for fit in (start, fitted)]
    assert (nll[1] < nll[0]).all()
    assert len(fitted.solved) == 3
