"""Differences between conditions: against published values, an independent search, and simulation."""

import math

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from m2ray.judging.contrasts import (
    PairedBinary,
    Unpaired,
    difference_of_samples,
    difference_of_systems,
    mean_difference,
    mean_ratio,
)
from m2ray.judging.statistics import retention


def test_tangos_interval_is_the_published_one():
    """12 and 2 discordant of 50: Newcombe (1998), table II, asymptotic score method, [0.0611, 0.3447]."""
    pairs = PairedBinary(50, 12, 2)
    assert pairs.value == 0.2
    assert pairs.tango_low(0.025) == pytest.approx(0.0611, abs=5e-5)
    assert -pairs.reversed.tango_low(0.025) == pytest.approx(0.3447, abs=5e-5)
    assert pairs.low(0.025) == pairs.tango_low(0.025), "where enough episodes differ, it decides"


def rejected_share(n, margin, level, losing):
    """Return the exact chance that a difference of `margin` is rejected; the second solves `losing` alone."""
    rejected = []
    for losses in range(n + 1):
        # More wins are more evidence: bisect for the fewest that are rejected.
        low, high = 0, n - losses + 1
        while low < high:
            wins = (low + high) // 2
            reject = PairedBinary(n, wins, losses).p_above(margin) <= level
            low, high = (low, wins) if reject else (wins + 1, high)
        rejected.append(low)
    losses_L = np.arange(n + 1)
    more = scipy.stats.binom.sf(np.array(rejected) - 1, n - losses_L, (losing + margin) / (1 - losing))
    return float((scipy.stats.binom.pmf(losses_L, n, losing) * more).sum())


@pytest.mark.parametrize("n", [30, 100, 200])
@pytest.mark.parametrize("margin", [0.1, -0.03, -0.1])
def test_a_difference_of_the_margin_is_rejected_as_often_as_the_level_says(n, margin):
    """Tango's test alone rejects up to 8.7 % at a level of 5 % where one condition solves nothing alone."""
    for losing in (0.0, 0.01, 0.03, 0.1, 0.3):
        for level in (0.05, 0.01):
            assert rejected_share(n, margin, level, losing - min(margin, 0)) <= 1.2 * level


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.data(), st.sampled_from([0.05, 0.025, 0.01]))
def test_where_only_one_condition_solves_episodes_alone_the_bound_is_exact(n, data, level):
    count = data.draw(st.integers(1, n))
    low, high = proportion_confint(count, n, alpha=2 * level, method="beta")
    for pairs, exact in ((PairedBinary(n, count, 0), low), (PairedBinary(n, 0, count), -high)):
        assert pairs.low(level) == pytest.approx(min(exact, pairs.tango_low(level)))


def score_by_search(n, wins, losses, margin):
    """Return the score statistic with the constrained estimate found by maximizing the likelihood."""
    low, high = max(0.0, -margin), (1 - margin) / 2

    def minus_likelihood(share):  # of the second's sole successes
        cells = ((wins, share + margin), (losses, share), (n - wins - losses, 1 - 2 * share - margin))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    found = scipy.optimize.minimize_scalar(
        minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    share = min((low, found.x, high), key=minus_likelihood)
    return (wins - losses - n * margin) / math.sqrt(n * (2 * share + margin - margin**2))


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 200), st.data(), st.floats(-0.5, 0.5))
def test_the_score_is_that_of_the_likelihoods_own_maximum(n, data, margin):
    wins = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - wins))
    if abs(margin) < 0.01:
        return
    expected = scipy.stats.norm.sf(score_by_search(n, wins, losses, margin))
    # The binomial of the difference is the only other test, and is asked where its p-value is larger.
    excess = wins - losses
    binomial = (
        scipy.stats.binom.sf(excess - 1, n, margin) if margin > 0 else scipy.stats.binom.cdf(-excess, n, -margin)
    )
    assert PairedBinary(n, wins, losses).p_above(margin) == pytest.approx(max(expected, binomial), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.data(), st.sampled_from([0.2, 0.05, 0.025, 0.01]))
def test_a_bound_is_where_the_test_turns(n, data, level):
    wins = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - wins))
    first, second = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    for contrast in (PairedBinary(n, wins, losses), Unpaired((first, n), (second, n))):
        low = contrast.low(level)
        assert -1 <= low <= contrast.value + 1e-6 or n < 3
        if low > -0.999:
            assert contrast.p_above(low - 1e-3) <= level + 1e-9
        if -1 < low + 1e-3 < 1:
            assert contrast.p_above(low + 1e-3) >= level - 1e-9


def test_no_difference_at_all_is_not_proof_of_equivalence():
    assert PairedBinary(10, 0, 0).p_equivalent(0.1) > 0.05
    assert PairedBinary(300, 0, 0).p_equivalent(0.1) < 0.001


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0528, 0.3382),
        ((9, 10), (3, 10), 0.1700, 0.8406),
        ((6, 7), (2, 7), 0.0342, 0.8534),
        ((5, 56), (0, 29), -0.0326, 0.1933),
        ((10, 10), (0, 20), 0.7156, 1.0),
    ],
)
def test_the_unpaired_interval_is_the_published_one(first, second, low, high):
    """Newcombe (1998), Statistics in Medicine 17, p. 873, table II: Miettinen and Nurminen's interval."""
    contrast = Unpaired(first, second)
    assert contrast.score_low(0.025) == pytest.approx(low, abs=5e-5)
    assert -contrast.reversed.score_low(0.025) == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("n", [35, 100, 200])
def test_counts_at_the_margin_above_nothing_pass_as_often_as_the_level_says(n):
    """The score test alone: 7.3 % at n = 100."""
    passed = [Unpaired((count, n), (0, n)).p_above(0.1) <= 0.05 for count in range(n + 1)]
    assert scipy.stats.binom.pmf(np.arange(n + 1), n, 0.1)[passed].sum() <= 0.05


def unpaired_by_search(first, second, margin):
    """The score test's p-value, with the likelihood's maximum found by a search instead of by the cubic's root."""
    (a, n), (b, m) = first, second

    def slope(rate):
        return a / (rate + margin) - (n - a) / (1 - rate - margin) + b / rate - (m - b) / (1 - rate)

    low, high = max(0, -margin) + 1e-11, min(1, 1 - margin) - 1e-11
    rate = low if slope(low) <= 0 else high if slope(high) >= 0 else scipy.optimize.brentq(slope, low, high)
    own = rate + margin
    variance = (own * (1 - own) / n + rate * (1 - rate) / m) * (n + m) / (n + m - 1)
    return scipy.stats.norm.sf((a / n - b / m - margin) / math.sqrt(variance))


@settings(max_examples=200, deadline=None)
@given(st.integers(5, 900), st.integers(5, 900), st.data(), st.floats(-0.6, 0.6))
def test_the_unpaired_test_is_that_of_the_likelihoods_own_maximum(n, m, data, margin):
    first = (data.draw(st.integers(0, n)), n)
    second = (data.draw(st.integers(0, m)), m)
    if abs(margin) < 0.01:
        return
    p_value = Unpaired(first, second).score_p_above(margin)
    assert p_value == pytest.approx(unpaired_by_search(first, second, margin), abs=1e-5)
    assert p_value == pytest.approx(1 - Unpaired(second, first).score_p_above(-margin), abs=1e-9)


def test_no_variance_at_all_is_no_evidence():
    assert Unpaired((0, 50), (0, 50)).p_above(0.0) == 0.5


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_two_systems_hold_the_true_difference_as_often_as_they_say(paired):
    """Each system has its own training seeds, of which some are better; the episodes are as hard for both."""
    rng, held, times = np.random.default_rng(0), 0, 2000
    for _ in range(times):
        hard_E = rng.normal(0, 0.2, 150)
        systems = []
        for mean in (0.6, 0.5):
            hard_E = hard_E if paired else rng.normal(0, 0.2, 150)
            chance_SE = np.clip(mean + rng.normal(0, 0.04, (3, 1)) + hard_E, 0, 1)
            systems.append((rng.random((3, 150)) < chance_SE).astype(float))
        if paired:
            difference = difference_of_systems(*systems)
        else:
            difference = difference_of_samples(*(mean_difference(own) for own in systems))
        held += difference.p_above(0.1) > 0.025 and difference.reversed.p_above(-0.1) > 0.025
    assert 0.94 <= held / times <= 1.0


def test_a_mean_over_one_seed_is_the_paired_t_test():
    difference = np.random.default_rng(0).normal(0.2, 1.0, (1, 80))
    mean = mean_difference(difference)
    expected = scipy.stats.ttest_1samp(difference[0], 0.1, alternative="greater")
    assert mean.t_p_above(0.1) == pytest.approx(expected.pvalue)
    assert mean.t_low(0.05) == pytest.approx(
        scipy.stats.ttest_1samp(difference[0], 0.0, alternative="greater").confidence_interval(0.95).low
    )


def test_groups_are_clusters():
    """Ten copies of each episode are not ten times the evidence."""
    difference = np.random.default_rng(0).normal(0.2, 1.0, 40)
    copies = np.repeat(difference, 10)[None]
    grouped = mean_difference(copies, np.repeat(np.arange(40), 10))
    assert grouped.error == pytest.approx(mean_difference(difference[None]).error)
    assert mean_difference(copies).error < grouped.error / 3


def test_training_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = (rng.random((3, 300)) < 0.6) - (rng.random((1, 300)) < 0.3).astype(float)
    apart = np.stack([(rng.random(300) < p) for p in (0.95, 0.6, 0.25)]) - (rng.random((1, 300)) < 0.3).astype(
        float
    )
    assert mean_difference(alike).low(0.05) > 0.2
    assert mean_difference(apart).low(0.05) < 0.0


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_bound_covers_as_often_as_it_says(seeds):
    """True difference 10 points, n = 300: the lower bound exceeds it in at most 5 % of draws, within noise."""
    rng, above, draws = np.random.default_rng(seeds), 0, 1500
    for _ in range(draws):
        ability = rng.random(300)
        control = ability < 0.37
        if seeds == 1:
            normal = np.where(rng.random(300) < 0.5, rng.random(300) < 0.47, ability < 0.47)
            wins, losses = int((normal & ~control).sum()), int((~normal & control).sum())
            contrast = PairedBinary(300, wins, losses)
        else:
            rates = np.clip(0.47 + rng.normal(0, 0.03, (3, 1)), 0, 1)
            normal = np.where(rng.random((3, 300)) < 0.5, rng.random((3, 300)) < rates, ability < rates)
            contrast = mean_difference(normal - control.astype(float))
        above += contrast.p_above(0.10) <= 0.05
    assert above / draws <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / draws)
    assert above / draws >= 0.01


@pytest.mark.parametrize("clusters", [4, 10, 30, 300])
def test_outcomes_that_are_all_alike_leave_room_for_those_not_seen(clusters):
    """The bound is about that of Tango's test, which has a width also where no episode differs."""
    won, equal = (mean_difference(np.full((3, clusters), share)) for share in (1.0, 0.0))
    assert won.low(0.05) == pytest.approx(PairedBinary(clusters, clusters, 0).low(0.05), abs=0.6 / clusters**0.5)
    assert won.high(0.05) == 1.0
    assert equal.low(0.05) == -equal.high(0.05) == pytest.approx(-(1 - 0.05 ** (1 / clusters)), rel=1e-4)
    for margin in (-0.5, -0.1, 0.2, 0.7):
        for mean in (won, equal):
            assert (mean.p_above(margin) < 0.05) == (mean.low(0.05) > margin), "test and bound agree"


def test_missed_clusters_cover_as_often_as_the_bound_says():
    """2 % of episodes lose. Samples of 100 often show none of them, but the bound seldom exceeds the truth."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(2000):
        difference = np.where(rng.random(100) < 0.02, -1.0, 1.0)
        above += mean_difference(np.repeat(difference[None], 3, axis=0)).p_above(0.96) < 0.05
    assert above / 2000 <= 0.05


@pytest.mark.parametrize(("share", "loss"), [(0.1, -0.6), (0.05, -1.0), (0.2, -0.3)])
@pytest.mark.parametrize("count", [30, 50])
def test_few_groups_that_lose_much_are_not_overlooked(share, loss, count):
    """At a true difference of 10 points; the t-interval alone exceeds it in 7 to 21 % of draws."""
    rng, group, above = np.random.default_rng(count), np.repeat(np.arange(count), 4), 0
    for _ in range(1000):
        gain_G = np.where(rng.random(count) < share, loss, (0.1 - share * loss) / (1 - share))
        gain = (gain_G + rng.normal(0, 0.05, count))[None, group]
        above += mean_difference(gain, group).p_above(0.1) < 0.05
    assert above / 1000 <= 0.05


def test_seeds_that_differ_are_judged_as_so_many_seeds():
    """Where episodes hardly vary, the bound is the t-test's of three numbers."""
    seeds = np.array([0.5, 0.6, 0.8])
    mean = mean_difference(np.repeat(seeds[:, None], 300, axis=1))
    expected = scipy.stats.ttest_1samp(seeds, 0.3, alternative="greater")
    assert mean.t_p_above(0.3) == pytest.approx(expected.pvalue)
    assert mean.t_low(0.05) == pytest.approx(expected.confidence_interval(0.95).low)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.floats(-0.3, 0.9))
def test_over_seeds_a_bound_is_where_the_test_turns(seeds, seed, margin):
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.3, 0.7, (seeds, 1))
    mean = mean_difference((rng.random((seeds, 60)) < rates).astype(float))
    p = mean.t_p_above(margin)
    assert mean.t_p_above(margin) == pytest.approx(1 - mean.reversed.t_p_above(-margin))
    if 1e-6 < p < 0.49:
        assert mean.t_low(p) == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.08), (3, 0.08), (2, 0.04)])
def test_few_seeds_that_happen_to_be_alike_do_not_narrow_the_interval(seeds, spread):
    """By Satterthwaite's degrees of freedom 5 to 8.5 % of draws pass at the margin."""
    rng, passed, draws = np.random.default_rng(seeds), 0, 1000
    for _ in range(draws):
        rates = 0.4 + spread * 3**0.5 * rng.uniform(-1, 1, (seeds, 1))
        ability = np.where(rng.random((seeds, 300)) < 0.5, rng.random(300), rng.random((seeds, 300)))
        passed += mean_difference((ability < rates) - (rng.random(300) < 0.3).astype(float)).p_above(0.1) <= 0.05
    assert passed / draws <= 0.05 + 2 * (0.05 * 0.95 / draws) ** 0.5


def test_a_difference_without_variance():
    for value, expected in ((0.3, 0.0), (0.1, 0.5), (0.0, 1.0)):
        found = mean_difference(np.full((1, 1000), value)).p_above(0.1)
        assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="two episodes"):
        mean_difference(np.array([[0.5]]))


def test_the_ratio_of_one_seed_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    ability = rng.random(600)
    normal, p0, p1 = (
        ((0.5 * ability + 0.5 * rng.random(600)) < share).astype(float) for share in (0.7, 0.4, 0.95)
    )
    fieller = mean_ratio((normal - p0)[None], (p1 - p0)[None], 0.05)
    bootstrap = retention(normal, p0, p1)
    assert fieller.value == pytest.approx(bootstrap.value)
    assert fieller.low == pytest.approx(bootstrap.low, abs=0.01)
    assert fieller.high == pytest.approx(bootstrap.high, abs=0.01)


def test_the_ratios_interval_is_wider_where_seeds_differ():
    rng = np.random.default_rng(0)
    p0, p1 = (rng.random((1, 400)) < 0.3).astype(float), (rng.random((1, 400)) < 0.95).astype(float)
    alike, apart = (
        np.stack([rng.random(400) < rate for rate in rates]) - p0 for rates in ([0.7] * 3, [0.9, 0.7, 0.5])
    )
    narrow, wide = mean_ratio(alike, p1 - p0, 0.05), mean_ratio(apart, p1 - p0, 0.05)
    assert narrow.high - narrow.low < 0.22
    assert wide.high - wide.low > 0.4


def test_a_ratio_without_a_gain_is_not_defined():
    flat = np.zeros((1, 50))
    assert math.isnan(mean_ratio(flat + 0.5, flat, 0.05).value)
    touching = np.array([[1.0, -1.0] * 20 + [1.0] * 3])
    assert math.isnan(mean_ratio(touching, touching, 0.05).low)


@pytest.mark.parametrize("giant", [10, 200, 600])
@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_groups_of_unequal_size_do_not_narrow_the_interval(giant, alike):
    """At a true difference of the margin, a group of half the episodes passed 20 to 25 % of draws."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), [giant, *[10] * 29])

    def draw(rate):
        variable = alike**0.5 * rng.standard_normal(30)[group] + (1 - alike) ** 0.5 * rng.standard_normal(
            len(group)
        )
        return (variable < scipy.stats.norm.ppf(rate)).astype(float)

    passed = sum(mean_difference((draw(0.4) - draw(0.3))[None], group).p_above(0.1) <= 0.05 for _ in range(600))
    assert passed / 600 <= 0.075


def test_groups_of_one_size_have_the_usual_variance():
    rng = np.random.default_rng(0)
    difference, group = rng.normal(0.1, 1, (1, 120)), np.arange(120) % 24
    means = np.array([difference[0, group == one].mean() for one in range(24)])
    found = mean_difference(difference, group)
    assert found.error == pytest.approx(means.std(ddof=1) / 24**0.5)
    assert found.parts[0][1] == pytest.approx(23)


@pytest.mark.parametrize("seeds", [1, 3])
def test_scores_that_are_alike_but_for_rounding_are_alike(seeds):
    """Sums of 0.1 are not exact; in groups a variance of rounding left the interval no width."""
    group = np.arange(100) % 25
    for normal, control in ((0.3, 0.1), (0.7, 0.1), (0.9, 0.3)):
        found = mean_difference(np.full((seeds, 100), normal) - control, group)
        assert found.mean - found.low(0.05) > 0.1


def test_two_samples_of_outcomes_that_are_all_alike():
    """Scores start at 0: the difference of two samples has no more room than each of them."""
    alike = mean_difference(np.full((3, 100), 0.99), lowest=0.0)
    both = difference_of_samples(alike, alike)
    assert both.high(0.025) == pytest.approx(1 - 0.025 ** (1 / 100))
