"""Rows that need no codec: played once a receiver, split and decoding; found again, and never trusted blindly."""

import os

import pandas as pd
import pytest

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation import row_cache
from m2ray.evaluation.row_cache import cached_rows
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

PLAYED = episodes(level("easy"), range(20), "search")
NAMES = ("P0", "P1", "identity", "text-16")
DECODING = EvaluationConfig(max_new_tokens=12)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "m2ray" / "rows"


@pytest.fixture
def played(monkeypatch):
    """What was really played, call by call."""
    calls = []

    def counted(receiver, played, split, names, config):
        calls.append((receiver.digest, len(played), split, tuple(names), config.max_new_tokens))
        return evaluate(receiver, played, split, names, config)

    monkeypatch.setattr(row_cache, "evaluate", counted)
    return calls


def test_what_was_played_is_not_played_again_and_says_the_same(tiny, cache, played):
    first = cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    again = cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    assert len(played) == 1
    columns = ["condition", "episode"]
    pd.testing.assert_frame_equal(
        first.sort_values(columns, ignore_index=True),
        again.sort_values(columns, ignore_index=True)[first.columns],
        check_dtype=False,
    )


@pytest.mark.parametrize("other", ["episodes", "split", "names", "decoding", "receiver"])
def test_another_question_is_played(tiny, cache, played, other):
    cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    cached_rows(
        load_receiver("mini") if other == "receiver" else tiny,
        PLAYED[:-1] if other == "episodes" else PLAYED,
        "select" if other == "split" else "search",
        NAMES[:-1] if other == "names" else NAMES,
        EvaluationConfig(max_new_tokens=9) if other == "decoding" else DECODING,
    )
    assert len(set(played)) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"no rows", lambda data: b""])
def test_a_damaged_file_is_played_again(tiny, cache, played, damage):
    first = cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    assert len(played) == 2
    assert again.success.tolist() == first.success.tolist()
    cached_rows(tiny, PLAYED, "search", NAMES, DECODING)
    assert len(played) == 2


def test_a_cache_that_cannot_be_written_costs_no_result(tiny, cache, played):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert os.path.isfile(cache)
    assert len(cached_rows(tiny, PLAYED, "search", NAMES, DECODING)) == 80
