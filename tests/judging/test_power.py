"""What the leaderboard states about its own power, against simulation with the judge's own tests."""

import re

import numpy as np
import pandas as pd
import pytest

from m2ray.config.gate_file import load_gate
from m2ray.judging import statistics as stats
from m2ray.judging.contrasts import mean_difference
from m2ray.judging.criteria import clusters_needed, episodes_needed
from m2ray.reporting.leaderboard_text import legend

STATED = re.compile(
    r"At n = (\d+), a paired difference of ([0-9.]+) points is detected with 80 % power \(one-sided McNemar, "
    r"5 % before Holm, 30 % of episodes discordant\); a lower bound of 30 % needs (\d+) successes\."
)


def stated(n):
    """The last line below the leaderboard: n, points, successes."""
    found = STATED.search(legend(pd.DataFrame({"n": [n]}), load_gate("reference"))[-1])
    assert found, "the leaderboard no longer states what its n can show"
    return int(found[1]), float(found[2]), int(found[3])


@pytest.mark.parametrize("n", [200, 500, 1000])
def test_the_difference_that_the_leaderboard_calls_detectable_is_found_four_times_in_five(n):
    shown, points, _ = stated(n)
    assert shown == n
    ahead = (0.3 + points / 100) / 2
    generator, found, times = np.random.default_rng(n), 0, 1000
    for _ in range(times):
        wins, losses, _ = generator.multinomial(n, [ahead, 0.3 - ahead, 0.7])
        first = np.arange(n) < wins
        second = (np.arange(n) >= wins) & (np.arange(n) < wins + losses)
        found += stats.mcnemar(first, second).p_greater <= stats.ALPHA
    low, high = stats.wilson(found, times)
    # The exact test is conservative: a few points below 80 % at small n, never above.
    assert high > 0.75
    assert low < 0.80


@pytest.mark.parametrize("n", [50, 500, 1000])
def test_the_successes_that_the_leaderboard_names_are_the_fewest_that_clear_30_percent(n):
    _, _, needed = stated(n)
    assert stats.wilson(needed, n).low >= 0.3 > stats.wilson(needed - 1, n).low


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.3])
def test_scores_are_found_with_the_chance_that_is_promised(spread):
    """A codec at the margin + 10 points, of which the bound is Gaffke's."""
    n = max(clusters_needed(0.1, 0.05), episodes_needed(spread**2, 0.1, 0.05, 1.2))
    rng, draws = np.random.default_rng(0), 400
    found = sum(
        mean_difference(np.clip(0.2 + spread * rng.standard_normal((1, n)), -1, 1)).p_above(0.1) <= 0.05
        for _ in range(draws)
    )
    assert found / draws >= 0.76
