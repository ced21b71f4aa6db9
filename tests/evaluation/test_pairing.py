"""Rows of one checkpoint and those that it is paired with, against hand calculations."""

import pandas as pd
import pytest
from made_rows import rows_with

from m2ray.evaluation.row_selection import judged_rows, outcomes
from m2ray.judging.selection import paired_gain
from m2ray.util.errors import UserError

FREE = {"config": "", "seed": -1, "checkpoint": "", "step": 0, "params": ""}
SLOTLESS = {**FREE, "k": 0, "place": ""}


def test_a_configuration_is_judged_by_its_last_checkpoint_and_the_rows_that_pair_with_it():
    wanted_rows = [{}, {"condition": "null", **FREE}, {"condition": "P0", **SLOTLESS}]
    others = [
        {"step": 5, "checkpoint": "earlier"},
        {"config": "b", "checkpoint": "cb"},
        {"seed": 1, "checkpoint": "c1"},
        {"split": "search"},
        {"condition": "null", **FREE, "k": 8},
        {"condition": "null", **FREE, "place": "before"},
        *({"condition": "P0", **SLOTLESS, key: "other"} for key in ("receiver", "task", "split", "decoding")),
    ]
    rows = rows_with(*others, *wanted_rows)
    found, wanted = (
        frame.sort_values("condition", ignore_index=True)
        for frame in (judged_rows(rows, "a", 0, "confirm"), rows_with(*wanted_rows))
    )
    pd.testing.assert_frame_equal(found, wanted)


def test_a_checkpoints_own_rows_come_before_those_that_older_files_share():
    shared, own = {"condition": "constant", **FREE}, {"condition": "constant", "success": False}
    assert judged_rows(rows_with({}, shared), "a", 0, "confirm").success.tolist() == [True, True]
    found = judged_rows(rows_with({}, shared, own), "a", 0, "confirm")
    assert found[found.condition == "constant"].success.tolist() == [False]


@pytest.mark.parametrize(
    ("config", "seed", "split"), [("b", 0, "confirm"), ("a", 1, "confirm"), ("a", 0, "select")]
)
def test_a_configuration_without_rows_is_named(config, seed, split):
    with pytest.raises(UserError, match=f"configuration '{config}', seed {seed}, split {split}: no rows; check"):
        judged_rows(rows_with({}), config, seed, split)


def test_outcomes_are_aligned_by_episode_whatever_the_order_of_rows():
    rows = rows_with(
        {"episode": 2, "condition": "normal", "success": False, "nll": 2.0},
        {"episode": 1, "condition": "P0", "success": False, "nll": 10.0},
        {"episode": 1, "condition": "normal", "success": True, "nll": 1.0},
        {"episode": 2, "condition": "P0", "success": True, "nll": 20.0},
    )
    normal, p0 = outcomes(rows, ["normal", "P0"])
    assert (normal.tolist(), p0.tolist()) == ([True, False], [False, True])
    assert [column.tolist() for column in outcomes(rows, ["P0", "normal"], "nll")] == [[10.0, 20.0], [1.0, 2.0]]
    assert [column.tolist() for column in outcomes(rows, ["P0", "P0"], "nll")] == [[10.0, 20.0]] * 2


def test_outcomes_of_a_missing_condition_or_of_other_episodes_are_refused():
    rows = rows_with({"episode": 1}, {"episode": 2}, {"episode": 1, "condition": "P0"})
    with pytest.raises(UserError, match="condition P1: missing; evaluate with --conditions P1 as well"):
        outcomes(rows, ["normal", "P1"])
    with pytest.raises(
        UserError, match=r"condition P0: not on the episodes of normal; evaluate both on the same ones$"
    ):
        outcomes(rows, ["normal", "P0"])


@pytest.mark.parametrize(
    ("normal", "shuffle", "p0", "gain"),
    [
        # P0: ((0.5 - 0.1) + (0.6 - 0.2) + (0.4 - 0.3)) / 3 = 0.3; shuffle: (0.9 + 0.8 + 0.7) / 3 = 0.8
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [0.5, 0.6, 0.4], 0.3),
        # mere priming: far better than nothing, no better than with another's message
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [1.0, 1.0, 1.0], 0.0),
        # a wrong message hurts, the right one does not help
        ([0.5, 0.5, 0.5], [9.0, 9.0, 9.0], [0.5, 0.5, 0.5], 0.0),
        # backwards
        ([0.5, 0.5, 0.5], [0.2, 0.2, 0.2], [0.6, 0.6, 0.6], -0.3),
    ],
)
def test_the_paired_gain_is_the_smaller_of_the_two_gains(normal, shuffle, p0, gain):
    conditions = {"normal": normal, "shuffle": shuffle, "P0": p0}
    cells = [
        {"condition": name, "episode": i, "nll": nll}
        for name, column in conditions.items()
        for i, nll in enumerate(column)
    ]
    rows = rows_with(*cells).sample(frac=1, random_state=0)
    assert paired_gain(rows) == pytest.approx(gain)
