"""The judge's statistics against statsmodels, scipy, published values and simulation."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats import contingency_tables, proportion

from m2ray.judging import statistics as stats
from m2ray.judging.holm import holm

SEED = np.random.default_rng
untimed = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [(11, 12.8, 35.2), (12, 14.3, 37.4), (14, 17.5, 41.7), (16, 20.8, 45.8), (10, 11.2, 33.0)],
)
def test_wilson_gives_the_reference_reports_intervals(successes, low, high):
    interval = stats.wilson(successes, 50)
    assert (round(100 * interval.low, 1), round(100 * interval.high, 1)) == (low, high)


def test_wilson_gives_newcombes_published_intervals():
    # Newcombe 1998, table I, method 3
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert stats.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@untimed
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(count):
    successes, n = count
    low, high = stats.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = stats.wilson(n - successes, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_not_a_count(successes, n):
    with pytest.raises(ValueError, match="not a count"):
        stats.wilson(successes, n)


def pairs(both, first, second, neither):
    """Paired outcomes with that many episodes of each kind."""
    kinds = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return np.array(kinds, dtype=bool).reshape(-1, 2).T


tables = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda table: sum(table) > 0)


@untimed
@given(tables)
def test_mcnemar_is_statsmodels_and_its_sides_agree(table):
    both, only_first, only_second, neither = table
    first, second = pairs(*table)
    ours, swapped = stats.mcnemar(first, second), stats.mcnemar(second, first)
    theirs = contingency_tables.mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    two_sided = min(1.0, 2 * min(ours.p_greater, swapped.p_greater))
    assert two_sided == pytest.approx(min(1.0, theirs))
    assert (ours.only_first, ours.only_second) == (only_first, only_second)
    if only_first + only_second:
        assert ours.p_greater == pytest.approx(scipy.stats.binom.sf(only_first - 1, only_first + only_second, 0.5))


def test_mcnemar_sees_only_discordant_pairs_and_none_is_no_evidence():
    assert stats.mcnemar(*pairs(0, 9, 2, 0)) == stats.mcnemar(*pairs(500, 9, 2, 300))
    assert stats.mcnemar(*pairs(5, 0, 0, 5)) == (0, 0, 1.0)


@pytest.mark.parametrize("columns", [([], []), ([True], [True, False])])
def test_paired_statistics_refuse_unpaired_outcomes(columns):
    for function in (stats.mcnemar, stats.paired_difference):
        with pytest.raises(ValueError, match="same episodes"):
            function(*columns)


def test_bootstrap_repeats_itself_and_keeps_pairs_together():
    first = SEED(0).random(300) < 0.5
    assert stats.paired_difference(first, ~first, seed=3) == stats.paired_difference(first, ~first, seed=3)
    # Equal in every episode: resampling the conditions apart would give an interval of some width.
    assert stats.paired_difference(first, first) == (0.0, 0.0, 0.0)


def test_bootstrap_difference_matches_scipys_and_the_normal_interval():
    rng = SEED(1)
    first, second = rng.random(400) < 0.6, rng.random(400) < 0.4
    ours = stats.paired_difference(first, second, draws=20_000)
    difference = first.astype(float) - second
    theirs = scipy.stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=9999, rng=0)
    assert ours.value == pytest.approx(difference.mean())
    assert ours[1:] == pytest.approx(theirs.confidence_interval, abs=0.01)
    assert ours.high - ours.value == pytest.approx(1.96 * difference.std() / 20, rel=0.06)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = SEED(2)
    covered = 0
    for seed in range(300):
        shared = rng.random(200)  # one draw decides all three: paired, as episodes are
        normal, p0, p1 = (shared < rate for rate in (0.56, 0.34, 0.9))
        interval = stats.retention(normal, p0, p1, draws=800, seed=seed)
        covered += interval.low <= (0.56 - 0.34) / (0.9 - 0.34) <= interval.high
    assert 0.91 <= covered / 300 <= 0.985


def test_retention_at_its_fixed_points():
    rng = SEED(3)
    p0, p1 = rng.random(500) < 0.3, rng.random(500) < 0.9
    assert stats.retention(p1, p0, p1) == (1.0, 1.0, 1.0)
    assert stats.retention(p0, p0, p1) == (0.0, 0.0, 0.0)


def test_retention_without_worth_has_no_value():
    p0, normal, nothing = pairs(10, 10, 5, 25)[0], np.ones(50), np.zeros(50)
    for p1 in (p0, nothing):
        assert all(math.isnan(x) for x in stats.retention(normal, p0, p1))


def test_retention_is_unbounded_just_where_the_interval_of_the_worth_touches_zero():
    seen = set()
    for gained in range(1, 14):
        p1, p0 = pairs(0, gained, 4, 46 - gained)
        kept, worth = stats.retention(p1, p0, p1), stats.paired_difference(p1, p0)
        bounded = not math.isnan(kept.low)
        assert bounded == (not math.isnan(kept.high))
        assert math.isnan(kept.value) == (gained <= 4)
        if abs(worth.low) > 0.021:  # one episode off the edge: quantile conventions cannot matter
            assert bounded == (worth.low > 0)
        seen.add(bounded)
    assert seen == {True, False}


@untimed
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_definition(p_values):
    adjusted = holm(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        assert adjusted[index] == pytest.approx(running)


def test_holm_of_a_textbook_family_and_of_none():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(("n", "needed"), [(50, 22), (100, 39), (200, 73), (500, 171), (1000, 329)])
def test_successes_needed_are_those_known(n, needed):
    assert stats.successes_needed(n, 0.30) == needed


@untimed
@given(st.integers(1, 400), st.floats(0.001, 1))  # statsmodels' own bound at no success is 1e-17, not 0
def test_successes_needed_is_the_fewest(n, threshold):
    reached = [c for c in range(n + 1) if proportion.proportion_confint(c, n, method="wilson")[0] >= threshold]
    assert stats.successes_needed(n, threshold) == (reached[0] if reached else None)


def test_a_bar_of_zero_needs_no_success():
    assert stats.successes_needed(50, 0.0) == 0
    assert stats.minimum_detectable_rate(50, 0.0) == 0.0


def power(n, rate, threshold):
    """The chance that n episodes at a true rate put the Wilson lower bound at a threshold or above."""
    needed = stats.successes_needed(n, threshold)
    return 0.0 if needed is None else scipy.stats.binom.sf(needed - 1, n, rate)


def test_power_is_what_simulation_gives():
    draws = SEED(4).binomial(100, 0.42, 20_000)
    simulated = np.mean([stats.wilson(int(c), 100).low >= 0.3 for c in range(101)] @ np.eye(101)[:, draws])
    assert power(100, 0.42, 0.3) == pytest.approx(simulated, abs=0.015)
    assert power(3, 1.0, 0.9) == 0.0


def test_the_chance_that_some_of_64_idle_configurations_clear_the_bar():
    # known: about 0.8 at n = 50, all truly at 30 %
    assert 1 - (1 - power(50, 0.3, 0.3)) ** 64 == pytest.approx(0.8, abs=0.05)


@untimed
@given(st.integers(5, 500), st.floats(0.05, 0.9), st.floats(0.5, 0.95))
def test_minimum_detectable_rate_has_just_that_power(n, threshold, wanted):
    rate = stats.minimum_detectable_rate(n, threshold, wanted)
    if stats.successes_needed(n, threshold) is None:
        assert math.isnan(rate)
    else:
        assert power(n, rate, threshold) == pytest.approx(wanted, abs=1e-6)


def test_minimum_detectable_difference_has_about_that_power():
    n, discordant = 400, 0.3
    difference = stats.minimum_detectable_difference(n, discordant)
    first, second = (discordant + difference) / 2, (discordant - difference) / 2
    draws = SEED(5).multinomial(n, [first, second, 1 - discordant], 4000)
    found = np.mean(scipy.stats.binom.sf(draws[:, 0] - 1, draws[:, 0] + draws[:, 1], 0.5) <= 0.05)
    assert 0.72 <= found <= 0.83  # the exact test is conservative, so below 0.8 if anything


def test_minimum_detectable_difference_shrinks_and_is_honest_about_few_episodes():
    by_n = [stats.minimum_detectable_difference(n, 0.3) for n in (50, 200, 1000)]
    assert by_n == sorted(by_n, reverse=True)
    assert math.isnan(stats.minimum_detectable_difference(5, 0.3))
    with pytest.raises(ValueError, match="discordant"):
        stats.minimum_detectable_difference(100, 0.0)


def test_intervals_overlap_where_they_share_a_point():
    one = stats.Interval(0.1, 0.3)
    assert one.overlaps(stats.Interval(0.3, 0.5))
    assert one.overlaps(stats.Interval(0.15, 0.2))
    assert not one.overlaps(stats.Interval(0.31, 0.5))
