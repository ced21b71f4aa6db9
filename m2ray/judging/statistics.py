"""Confidence intervals, tests and power, from scipy and statsmodels.

Shares are successes over n, in 0..1.

statsmodels is imported inside functions, for start-up time: loading it takes longer than everything that a sweep
needs before it judges.

Shapes: E episodes, C conditions, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.stats on first use
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Return whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


def wilson(successes: int, n: int, alpha: float = ALPHA) -> Interval:
    """Return the Wilson score interval of a share (Wilson 1927), sound at small n and at shares near 0 and 1.

    Raises:
        ValueError: n is below 1, or successes are not in 0..n.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(f"{successes}/{n} is not a count of successes")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    # At 0 and n successes, rounding may put a bound 1e-17 on the wrong side of the share.
    share = successes / n
    return Interval(max(0.0, min(share, float(low))), min(1.0, max(share, float(high))))


def wilson_of_clusters(share: float, n: int, variance: float, clusters: float, alpha: float = ALPHA) -> Interval:
    """Return Wilson's interval of a share at the effective n of clusters (Dean and Pagano 2015).

    Its quantile is that of t. The interval of the mean itself is far too narrow where few episodes succeed, or
    few fail.

    Args:
        share: The mean success.
        n: Episodes.
        variance: Variance of the mean, with clusters. Where it is 0, each cluster counts as one episode.
        clusters: Effective number of clusters, at least 2.
        alpha: Level of the two-sided interval.
    """
    spread = share * (1 - share)
    effective = min(float(n), spread / variance) if variance > 0 and spread > 0 else float(clusters)
    t = float(scipy.stats.t.isf(alpha / 2, clusters - 1))
    center = (share + t * t / (2 * effective)) / (1 + t * t / effective)
    half = t * math.sqrt(spread / effective + (t / (2 * effective)) ** 2) / (1 + t * t / effective)
    return Interval(max(0.0, min(share, center - half)), min(1.0, max(share, center + half)))


def _stack_outcomes(*outcomes_E: ArrayLike) -> NDArray[np.float64]:
    """Stack outcomes of the same episodes side by side, [E, C].

    Raises:
        ValueError: there are no episodes, or the numbers of episodes differ.
    """
    arrays = [np.asarray(outcome_E, dtype=float) for outcome_E in outcomes_E]
    if arrays[0].size == 0 or len({array.shape for array in arrays}) != 1:
        sizes = ", ".join(str(array.size) for array in arrays)
        raise ValueError(f"paired outcomes need the same episodes, at least one: {sizes} given")
    return np.stack(arrays, axis=1)


class McNemar(NamedTuple):
    """Result of an exact McNemar test; only episodes on which the two outcomes differ count."""

    only_first: int  # episodes that only the first solves
    only_second: int
    p_greater: float  # one-sided: the first succeeds more often


def mcnemar(first_E: ArrayLike, second_E: ArrayLike) -> McNemar:
    """Run an exact McNemar test: a binomial test of the discordant pairs (McNemar 1947).

    Raises:
        ValueError: there are no episodes, or the numbers of episodes differ.
    """
    first, second = (column.astype(bool) for column in _stack_outcomes(first_E, second_E).T)
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    if wins + losses == 0:
        return McNemar(0, 0, 1.0)
    greater = scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    return McNemar(wins, losses, float(greater))


class Estimate(NamedTuple):
    """A value with its confidence interval; bounds are NaN where there is none."""

    value: float
    low: float
    high: float


def _bootstrap_means(outcomes_EC: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Return the means per condition over bootstrap resamples of the episodes, [R, C].

    An episode is drawn with all its conditions, so outcomes stay paired.
    """
    count = len(outcomes_EC)
    weights_RE = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means_RC: NDArray[np.float64] = weights_RE @ outcomes_EC / count
    return means_RC


def paired_difference(
    first_E: ArrayLike, second_E: ArrayLike, alpha: float = ALPHA, draws: int = 4000, seed: int = 0
) -> Estimate:
    """Return the mean of first - second over episodes, with a percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: there are no episodes, or the numbers of episodes differ.
    """
    outcomes_EC = _stack_outcomes(first_E, second_E)
    means_RC = _bootstrap_means(outcomes_EC, draws, seed)
    low, high = np.quantile(means_RC[:, 0] - means_RC[:, 1], [alpha / 2, 1 - alpha / 2])
    return Estimate(float(outcomes_EC[:, 0].mean() - outcomes_EC[:, 1].mean()), float(low), float(high))


def retention(
    normal_E: ArrayLike, p0_E: ArrayLike, p1_E: ArrayLike, alpha: float = ALPHA, draws: int = 4000, seed: int = 0
) -> Estimate:
    """Return (normal - P0) / (P1 - P0): the share of the text's gain over no message that the prefix keeps.

    The interval is a percentile bootstrap over episodes, with all three conditions of an episode together. Where
    P1 does not beat P0, retention is not defined: value and bounds are NaN. Where the interval of P1 - P0 touches
    0, the ratio has no bounded interval (as in Fieller 1954): the value is returned and both bounds are NaN.

    Raises:
        ValueError: there are no episodes, or the numbers of episodes differ.
    """
    outcomes_EC = _stack_outcomes(normal_E, p0_E, p1_E)
    means = [float(mean) for mean in outcomes_EC.mean(axis=0)]
    return _ratio(means, _bootstrap_means(outcomes_EC, draws, seed), alpha)


def retention_of_counts(
    normal: tuple[int, int], p0: tuple[int, int], p1: tuple[int, int], alpha: float = ALPHA, draws: int = 20000
) -> Estimate:
    """Return retention from bare counts (successes, n), with draws of independent shares.

    Shares are drawn from their posterior under Jeffreys' prior, Beta(successes + 1/2, failures + 1/2): resamples
    of 25 successes of 25 would all be alike, and leave the interval no width.

    Raises:
        ValueError: n is below 1.
    """
    counts = (normal, p0, p1)
    if min(n for _, n in counts) < 1:
        raise ValueError("counts need n of at least 1")
    rng = np.random.default_rng(0)
    shares = [rng.beta(successes + 0.5, n - successes + 0.5, size=draws) for successes, n in counts]
    means_RC = np.stack(shares, axis=1)
    return _ratio([successes / n for successes, n in counts], means_RC, alpha)


def _ratio(means: Sequence[float], means_RC: NDArray[np.float64], alpha: float) -> Estimate:
    """Return retention from the observed and the drawn means of normal, P0 and P1."""
    normal, p0, p1 = means
    if p1 <= p0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float((normal - p0) / (p1 - p0))
    text_gain_R = means_RC[:, 2] - means_RC[:, 1]
    if np.quantile(text_gain_R, alpha / 2, method="lower") <= 0:
        return Estimate(value, math.nan, math.nan)
    defined_R = text_gain_R > 0
    ratio_R = (means_RC[:, 0] - means_RC[:, 1]) / np.where(defined_R, text_gain_R, 1.0)
    # Where a resample's P1 does not beat its P0 the ratio could be anything: it widens the interval at both ends.
    low = np.quantile(np.where(defined_R, ratio_R, -np.inf), alpha / 2, method="lower")
    high = np.quantile(np.where(defined_R, ratio_R, np.inf), 1 - alpha / 2, method="higher")
    return Estimate(value, float(low), float(high))


def successes_needed(n: int, threshold: float, alpha: float = ALPHA) -> int | None:
    """Return the fewest successes of n whose Wilson lower bound reaches a threshold; None where none does."""
    # Wilson's bound inverts the score test, so it is reached at n t + z sqrt(n t (1 - t)); the loops then correct
    # that count by `wilson` itself, for rounding.
    z = float(scipy.stats.norm.isf(alpha / 2))
    bounded = min(max(threshold, 0.0), 1.0)
    count = min(n, math.ceil(n * bounded + z * math.sqrt(n * bounded * (1 - bounded))))
    while count > 0 and wilson(count - 1, n, alpha).low >= threshold:
        count -= 1
    while count <= n and wilson(count, n, alpha).low < threshold:
        count += 1
    return count if count <= n else None


def minimum_detectable_rate(n: int, threshold: float, power: float = 0.8, alpha: float = ALPHA) -> float:
    """Return the lowest true success rate that n episodes detect as above a threshold with a given power.

    Detected means that the Wilson lower bound reaches the threshold.

    Args:
        n: Episodes.
        threshold: The share that the lower bound must reach.
        power: Probability of detection.
        alpha: Level of the two-sided interval.

    Returns:
        A share; NaN where no number of successes reaches the threshold.
    """
    needed = successes_needed(n, threshold, alpha)
    if needed is None:
        return math.nan
    if needed == 0:
        return 0.0
    # P(X >= needed) at rate p is the Beta(needed, n - needed + 1) distribution function at p.
    return float(scipy.stats.beta.ppf(power, needed, n - needed + 1))


def minimum_detectable_difference(n: int, discordant: float, power: float = 0.8, alpha: float = ALPHA) -> float:
    """Return the smallest difference in success that McNemar's one-sided test detects with a given power.

    It is the normal approximation of Connor (1987).

    Args:
        n: Episodes, each with both outcomes.
        discordant: Share of episodes on which the two outcomes differ.
        power: Probability of detection.
        alpha: Level of the one-sided test.

    Returns:
        A difference of shares. It cannot exceed `discordant`: NaN where n is too small to detect even that.

    Raises:
        ValueError: n is below 1, or `discordant` is not in 0..1 and above 0.
    """
    if not (n >= 1 and 0 < discordant <= 1):
        raise ValueError(f"n = {n}, discordant = {discordant}: give n >= 1 and a share above 0")
    z_alpha, z_power = scipy.stats.norm.ppf([1 - alpha, power])
    # d = (z_alpha sqrt(psi) + z_power sqrt(psi - d^2)) / sqrt(n), solved for d; psi is `discordant`.
    a = 1 + z_power**2 / n
    b = -2 * z_alpha * math.sqrt(discordant / n)
    c = (z_alpha**2 - z_power**2) * discordant / n
    difference = (-b + math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
    return float(difference) if difference <= discordant else math.nan
