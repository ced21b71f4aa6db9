"""Rows that need no codec: evaluated once per receiver, split and decoding, then read from a checked cache."""

import datetime
import os
from dataclasses import replace

import pandas as pd
import pytest
import tiny_tokenizers
import transformers
from transformers.utils import chat_template_utils

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation import row_cache
from m2ray.evaluation.row_cache import cached_rows
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.held_out import HeldOut
from m2ray.tasks.registry import level

EPISODES = episodes(level("easy"), range(20), "search")
NAMES = ("P0", "P1", "identity", "text-16")
DATED = "Today is {{ strftime_now('%d %b %Y') }}\n" + tiny_tokenizers.CHAT
DECODING = EvaluationConfig(max_new_tokens=12)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "m2ray" / "rows"


@pytest.fixture
def evaluated(monkeypatch):
    """The evaluations that were really run."""
    calls = []

    def counted(receiver, batch, split, names, config):
        calls.append((receiver.digest, len(batch), split, tuple(names), config.max_new_tokens))
        return evaluate(receiver, batch, split, names, config)

    monkeypatch.setattr(row_cache, "evaluate", counted)
    return calls


def test_cached_rows_are_not_evaluated_again_and_are_the_same(tiny, cache, evaluated):
    first = cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    again = cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    assert len(evaluated) == 1
    columns = ["condition", "episode"]
    pd.testing.assert_frame_equal(
        first.sort_values(columns, ignore_index=True),
        again.sort_values(columns, ignore_index=True)[first.columns],
        check_dtype=False,
    )


def test_rows_name_the_task_with_what_is_held_out_and_are_cached_apart(tiny, cache, evaluated):
    held_out = [replace(episode, held_out=HeldOut(facts=0.1)) for episode in EPISODES]
    tasks = [set(cached_rows(tiny, part, "search", NAMES, DECODING).task) for part in (EPISODES, held_out)]
    assert tasks == [{"easy"}, {f"easy+held_out-{HeldOut(facts=0.1).digest}"}]
    assert len(evaluated) == 2


@pytest.mark.parametrize("other", ["episodes", "split", "names", "decoding", "receiver"])
def test_other_settings_are_evaluated(tiny, cache, evaluated, other):
    cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    cached_rows(
        load_receiver("mini") if other == "receiver" else tiny,
        EPISODES[:-1] if other == "episodes" else EPISODES,
        "select" if other == "split" else "search",
        NAMES[:-1] if other == "names" else NAMES,
        EvaluationConfig(max_new_tokens=9) if other == "decoding" else DECODING,
    )
    assert len(set(evaluated)) == 2


def test_rows_of_a_prompt_with_todays_date_are_those_of_today(cache, evaluated, monkeypatch):
    made = [tiny_tokenizers.receiver(tiny_tokenizers.bpe(DATED), "chat")]
    cached_rows(made[0], EPISODES, "search", ["P1"], DECODING)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=3)

    made.append(Receiver(made[0].model, made[0].tokenizer, "chat", "made", {}))
    cached_rows(made[1], EPISODES, "search", ["P1"], DECODING)
    assert len(evaluated) == 1
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    made.append(Receiver(made[0].model, made[0].tokenizer, "chat", "made", {}))
    cached_rows(made[2], EPISODES, "search", ["P1"], DECODING)
    assert len({receiver.digest for receiver in made}) == 1
    assert len(evaluated) == 2


def test_rows_of_another_version_of_transformers_are_evaluated_again(tiny, cache, evaluated, monkeypatch):
    cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    assert len(evaluated) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"no rows", lambda data: b""])
def test_a_damaged_file_is_evaluated_again(tiny, cache, evaluated, damage):
    first = cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    assert len(evaluated) == 2
    assert again.success.tolist() == first.success.tolist()
    cached_rows(tiny, EPISODES, "search", NAMES, DECODING)
    assert len(evaluated) == 2


def test_a_cache_that_cannot_be_written_costs_no_result(tiny, cache, evaluated):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert os.path.isfile(cache)
    assert len(cached_rows(tiny, EPISODES, "search", NAMES, DECODING)) == 80
