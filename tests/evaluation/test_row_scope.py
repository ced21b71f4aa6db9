"""Rows name exactly what they depend on, so that checkpoints share all others."""

import pandas as pd
import pytest
from made_codecs import make_codec

from m2ray.codec.checkpoints import CheckpointId
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import CONDITIONS
from m2ray.evaluation.row_scope import RowScope, distinct_scopes, is_shared_with, row_scope
from m2ray.evaluation.rows import KEY
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

EPISODES = episodes(level("easy"), range(1000, 1006), "search")
DECODING = EvaluationConfig(max_new_tokens=4)
K, PLACE = 3, "after"
FIRST, SECOND = (CheckpointId(f"c{n}", n, f"digest{n}", 96 + n, f'{{"n": {n}}}') for n in range(2))
OWN = {name for name, condition in CONDITIONS.items() if condition.depends_on == "checkpoint"}


def rows_of(receiver: Receiver, checkpoint: CheckpointId, k: int = K, place: str = PLACE) -> pd.DataFrame:
    """Return the rows of all built-in conditions for one checkpoint; the constant prefix is the same for all."""
    codec = make_codec(receiver, checkpoint.seed, k=k, place=place)
    constant = make_codec(receiver, 9, k=k, place=place, encoder="constant")
    return evaluate(receiver, EPISODES, "search", list(CONDITIONS), DECODING, checkpoint, codec, constant)


@pytest.fixture(scope="module")
def first(tiny) -> pd.DataFrame:
    return rows_of(tiny, FIRST)


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_rows_of_a_condition_have_its_scope(first, name):
    found = first[first.condition == name][list(RowScope._fields)]
    assert len(found) == len(EPISODES)
    expected = row_scope(CONDITIONS[name].depends_on, FIRST, K, PLACE)
    assert set(found.itertuples(index=False, name=None)) == {tuple(expected)}


def test_two_checkpoints_of_the_same_k_and_place_share_exactly_the_rows_that_depend_on_neither(tiny, first):
    second = rows_of(tiny, SECOND)
    both = pd.concat([first, second], ignore_index=True)
    repeated = both[both.duplicated(KEY)]
    assert set(repeated.condition) == set(CONDITIONS) - OWN
    assert len(repeated) == len(EPISODES) * len(set(CONDITIONS) - OWN)
    shared, own = (first[first.condition.isin(OWN) == flag] for flag in (False, True))
    pd.testing.assert_frame_equal(repeated.reset_index(drop=True), shared.reset_index(drop=True))
    assert is_shared_with(both, K, PLACE).equals(~both.condition.isin(OWN))
    assert len(both.drop_duplicates(KEY)) == len(shared) + 2 * len(own)


@pytest.mark.parametrize(("k", "place"), [(K + 1, PLACE), (K, "before")])
def test_a_checkpoint_of_another_k_or_place_shares_only_what_depends_on_the_receiver(tiny, first, k, place):
    both = pd.concat([first, rows_of(tiny, SECOND, k, place)], ignore_index=True)
    of_receiver = {name for name, condition in CONDITIONS.items() if condition.depends_on == "receiver"}
    assert set(both[both.duplicated(KEY)].condition) == of_receiver
    assert set(first[is_shared_with(first, k, place)].condition) == of_receiver


@pytest.mark.parametrize("depends_on", ["checkpoint", "slots", "receiver"])
def test_as_many_scopes_are_counted_as_there_are(depends_on):
    evaluations = [(FIRST, 3, "after"), (SECOND, 3, "after"), (CheckpointId("c2", 0, "d", 9, ""), 4, "after")]
    scopes = {row_scope(depends_on, *evaluation) for evaluation in evaluations}
    assert len(scopes) == distinct_scopes(3, 2)[depends_on]
    assert distinct_scopes(0, 0)[depends_on] == 0
