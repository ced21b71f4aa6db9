"""Intervals and tests of episodes in groups: their coverage by simulation, and the count that the board shows."""

import numpy as np
import pandas as pd
import pytest
from made_rows import make_rows

from m2ray.cli.evaluate import wilson_table
from m2ray.config.gate_file import load_gate
from m2ray.evaluation.rows import GROUP
from m2ray.judging import statistics as stats
from m2ray.judging.arms import ScoreArms
from m2ray.judging.row_arms import RowArms
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard
from m2ray.reporting.leaderboard_text import display_cells
from m2ray.util.text import percent

QUESTIONS = 10  # a group


def draw(rng, groups, rate, like=None):
    """Return outcomes of all questions of some groups, whose rates vary with an intraclass correlation of 0.1."""
    correlation = 0.1
    spread = (1 - correlation) / correlation
    if like is None:
        like = rng.beta(rate * spread, (1 - rate) * spread, groups)
    return (rng.random((groups, QUESTIONS)) < like[:, None]).astype(float).ravel()[None], like


def arms_of(**scores):
    groups = next(iter(scores.values())).size // QUESTIONS
    return ScoreArms(scores, [0], np.repeat(np.arange(groups), QUESTIONS))


@pytest.mark.parametrize("groups", [20, 40])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.95])
def test_the_interval_of_grouped_successes_holds_the_true_rate_as_often_as_it_says(groups, rate):
    rng, held, ignoring, times = np.random.default_rng(groups), 0, 0, 500
    for _ in range(times):
        success, _ = draw(rng, groups, rate)
        low, high = arms_of(normal=success).interval("normal", 0.05)
        held += low <= rate <= high
        low, high = stats.wilson(int(success.sum()), success.size)
        ignoring += low <= rate <= high
    assert 0.92 <= held / times <= 0.99
    assert ignoring / times < 0.92, "an interval that ignores groups does not hold what it says"


@pytest.mark.parametrize("groups", [30, 100])
def test_bounds_of_a_difference_of_grouped_successes(groups):
    """The true difference is 10 points: the one-sided lower bound exceeds it in 5 % of draws at most.

    Fewer where there are few groups: others, which lose, may have been missed.
    """
    rng, above, times = np.random.default_rng(groups), 0, 600
    for _ in range(times):
        control, like = draw(rng, groups, 0.3)
        normal, _ = draw(rng, groups, 0.4, np.clip(like + 0.1 + rng.normal(0, 0.1, groups), 0, 1))
        above += arms_of(normal=normal, P0=control).contrast("normal", "P0").low(0.05) > 0.1
    assert (0.01 if groups == 100 else 0.0) <= above / times <= 0.07


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_groups_that_are_all_alike_prove_nothing_by_that(value):
    def contrast_of(groups):
        same = np.full((1, groups * QUESTIONS), value)
        arms = arms_of(P0=np.zeros_like(same), P1=same)
        return arms.contrast("P1", "P0"), arms.interval("P1", 0.05)

    few, interval = contrast_of(4)
    assert few.value == value
    assert interval.high - interval.low > 0.3
    assert few.low(0.05) < value - 0.3
    assert few.p_equivalent(0.1) > 0.05
    many, interval = contrast_of(100)
    assert interval.high - interval.low < 0.1
    assert many.low(0.05) > value - 0.1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("variance", [0.0, 1e-9, 0.001, 0.2])
def test_intervals_of_clusters_lie_in_0_to_1_around_the_share(share, variance):
    low, high = stats.wilson_of_clusters(share, 200, variance, 20)
    assert 0 <= low <= share <= high <= 1
    if variance == 0:  # never narrower than that of as many episodes
        plain = stats.wilson(round(200 * share), 200)
        assert high - low >= plain.high - plain.low


def grouped_rows(groups):
    rows = make_rows(n=200)
    return rows.assign(message=[f"{GROUP}g{episode % groups}" for episode in rows.episode])


def test_the_board_counts_groups_and_the_verdict_says_so():
    rows, gate = grouped_rows(25), load_gate()
    board = make_leaderboard(rows, judge_runs(rows, gate), gate)
    assert board.groups.tolist() == [25] * len(board)
    cells = display_cells(board)
    assert {cell["groups"] for cell in cells} == {"25"}
    assert {cell["n"] for cell in cells} == {"200"}
    assert "the tests count 25 groups, not 200 episodes" in board.reason[0]


def test_evaluate_prints_the_intervals_of_groups():
    rows = grouped_rows(25)
    low, high = RowArms(rows).interval("normal", 0.05)
    assert f"[{percent(low)}, {percent(high)}]" in wilson_table(rows)
    of_one = rows.assign(message=f"{GROUP}a")
    assert RowArms(of_one).interval("normal", 0.05) == (0, 1), "nothing is known of how groups differ"
    assert "[0.0%, 100.0%]" in wilson_table(of_one)


def test_groups_count_from_the_first_pair_on_and_messages_only_where_many_repeat():
    """A file that names groups says which episodes belong together; equal messages may be chance."""
    pairs = grouped_rows(200)
    first = pairs.episode == pairs.episode.min()
    pairs.loc[first, "message"] = pairs.message[pairs.episode == pairs.episode.max()].iloc[0]
    assert RowArms(pairs).clusters == 199
    assert RowArms(pairs).unit == "groups"
    messages = pairs.assign(message=pairs.message.str.removeprefix(GROUP))
    assert RowArms(messages).clusters is None
    assert pd.unique(messages.message).size == 199


def outcome_rows(**groups):
    """Return rows of 40 episodes under the conditions of `groups`, with a group for each."""
    parts = [
        pd.DataFrame({"config": "a", "seed": 0, "k": 4, "condition": name, "episode": range(40), "success": 1.0})
        for name in groups
    ]
    return pd.concat([part.assign(group=named) for part, named in zip(parts, groups.values(), strict=True)])


def test_an_episode_in_two_groups_is_refused():
    groups = [str(one % 20) for one in range(40)]
    assert RowArms(outcome_rows(normal=groups, P0=groups)).clusters == 20
    assert RowArms(outcome_rows(normal=groups, P0=[""] * 40)).clusters == 20, "given once is enough"
    with pytest.raises(ValueError, match="episode 0: in the groups 0 and x0; give one"):
        RowArms(outcome_rows(normal=groups, P0=[f"x{one}" for one in groups]))
