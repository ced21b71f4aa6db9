"""Gaffke's test of a bounded mean: against the exact binomial, random weights, and draws at the margin."""

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.judging.contrasts import mean_difference
from m2ray.judging.contrasts.bounded import BoundedSample, bounded_sample


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 1000), st.data(), st.floats(0.001, 0.999))
def test_of_successes_it_is_the_exact_binomial_test(n, data, margin):
    count = data.draw(st.integers(0, n))
    sample = bounded_sample(np.repeat([0.0, 1.0], [n - count, count]), np.ones(n), 0.0, 1.0)
    for found, exact in (
        (sample.p_at_most(margin), scipy.stats.binom.sf(count - 1, n, margin)),
        (sample.reversed.p_at_most(-margin), scipy.stats.binom.cdf(count, n, margin)),
    ):
        assert found == pytest.approx(exact, rel=2e-3, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(2, 500), st.floats(-0.9, 1), st.floats(0.001, 0.999))
def test_of_values_that_are_alike_it_is_the_chance_to_miss_all_that_lose(count, value, share):
    sample = BoundedSample(np.array([value]), np.ones(1), np.array([count]), -1.0, 1.0)
    margin = value - share * (value + 1)
    assert sample.p_at_most(margin) == pytest.approx((1 - share) ** count, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("n", [3, 20, 200])
def test_it_is_the_share_of_random_weights_with_a_mean_below_the_margin(n):
    rng = np.random.default_rng(n)
    value, size = rng.random(n), rng.integers(1, 6, n).astype(float)
    weights = rng.standard_exponential((100_000, n + 1)) * np.append(size, size.max())
    means = (weights @ np.append(value, -0.5)) / weights.sum(axis=1)
    for margin in np.quantile(means, [0.01, 0.05, 0.3, 0.6, 0.95]):
        found = bounded_sample(value, size, -0.5, 1.0).p_at_most(float(margin))
        assert found == pytest.approx((means <= margin).mean(), abs=0.006)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.sampled_from([0.2, 0.05, 0.01]))
def test_a_bound_is_where_the_test_turns(values, level):
    sample = bounded_sample(np.array(values), np.ones(len(values)), 0.0, 1.0)
    low = sample.low(level, float(np.mean(values)))
    assert 0 <= low <= np.mean(values)
    if 0.001 < low < np.mean(values):
        assert sample.p_at_most(low - 1e-4) <= level + 1e-6
        assert sample.p_at_most(low + 1e-4) >= level - 1e-6


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_few_scores_that_lose_all_are_not_overlooked(n, share, noise):
    """At a true difference of 10 points the t-test alone passes in up to 14 % of draws."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(500):
        gain = (0.1 + share) / (1 - share) + noise * rng.standard_normal(n)
        difference = np.where(rng.random(n) < share, -1.0, gain)
        passed += mean_difference(difference[None]).p_above(0.1) <= 0.05
    assert passed / 500 <= 0.07


def test_seeds_that_lose_the_same_episodes_are_not_as_good_as_the_text():
    """5 % of episodes lost by all seeds: at the margin of 5 points the t-test alone passes in 12 % of draws."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(500):
        lost = -(rng.random(100) < 0.05).astype(float)
        passed += mean_difference(np.repeat(lost[None], 3, axis=0)).p_above(-0.05) <= 0.05
    assert passed / 500 <= 0.07


def test_it_costs_little_power():
    """Three seeds, n = 300, the margin + 10 points: at most three in a hundred draws pass by the t-test only."""
    rng, by_t, by_both = np.random.default_rng(0), 0, 0
    for _ in range(300):
        control = rng.random(300) < 0.35
        normal = np.where(
            rng.random((3, 300)) < 0.6, rng.random((3, 300)) < 0.5, control | (rng.random(300) < 0.23)
        )
        contrast = mean_difference(normal - control.astype(float))
        by_t += contrast.t_p_above(0.05) <= 0.05
        by_both += contrast.p_above(0.05) <= 0.05
    assert by_t > 250
    assert by_t - by_both <= 9


@pytest.mark.parametrize(("groups", "spread", "threshold"), [(100, 0.7, 11), (150, 1.0, 21)])
def test_large_groups_that_lose_are_not_overlooked(groups, spread, threshold):
    """At a true difference of 10 points; with the weight of an average group, 15 to 17 % of draws passed."""
    rng, passed = np.random.default_rng(0), 0

    def sizes(count):
        return np.maximum(1, np.round(np.exp(rng.normal(1, spread, count)))).astype(int)

    many = sizes(1_000_000)
    share = many[many > threshold].sum() / many.sum()
    for _ in range(400):
        size = sizes(groups)
        gain = np.where(size > threshold, -1.0, (0.1 + share) / (1 - share)) + 0.05 * rng.standard_normal(groups)
        group = np.repeat(np.arange(groups), size)
        passed += mean_difference(gain[group][None], group).p_above(0.1) <= 0.05
    assert passed / 400 <= 0.08


@pytest.mark.parametrize("tiny", [1e-300, 1e-231, 9.5e-155])
def test_scores_next_to_nothing_are_no_trouble(tiny):
    """Unsmoothed BLEU gives 1.3e-231 to an answer that has nothing in common with the right one."""
    alike = mean_difference(np.full((1, 60), tiny), lowest=0.0)
    assert alike.high(0.025) == pytest.approx(1 - 0.025 ** (1 / 60), rel=1e-3)
    assert alike.low(0.025) == pytest.approx(0.0, abs=1e-9)
    assert mean_difference(np.tile([tiny, 0.0, 1.2 * tiny], 20)[None], lowest=0.0).high(0.025) < 0.1
