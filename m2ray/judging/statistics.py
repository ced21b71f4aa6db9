"""The statistics of the judge: intervals and tests of scipy and statsmodels, with their limits said.

Shares are successes over n, in 0..1. E stands for episodes.

statsmodels is imported where it is used: it takes longer than all that a sweep needs before it judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # which loads scipy.stats where it is first used
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two share a point."""
        return self.low <= other.high and other.low <= self.high


def wilson(successes: int, n: int, alpha: float = ALPHA) -> Interval:
    """Wilson score interval of a share (Wilson 1927): sound at small n and at shares near 0 and 1.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(f"{successes}/{n} is no count of successes")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    # Rounding may leave the bounds 1e-17 inside the share at 0 and at n.
    share = successes / n
    return Interval(max(0.0, min(share, float(low))), min(1.0, max(share, float(high))))


def _columns(*columns_E: ArrayLike) -> NDArray[np.float64]:
    """Outcomes of the same episodes side by side, [E, C]."""
    arrays = [np.asarray(column, dtype=float) for column in columns_E]
    if arrays[0].size == 0 or len({array.shape for array in arrays}) != 1:
        sizes = ", ".join(str(array.size) for array in arrays)
        raise ValueError(f"paired outcomes need the same episodes, at least one: {sizes} given")
    return np.stack(arrays, axis=1)


class McNemar(NamedTuple):
    """An exact test on paired outcomes: only the episodes where the two differ speak."""

    only_first: int
    only_second: int
    p_greater: float  # one-sided: the first succeeds more often
    p_two_sided: float


def mcnemar(first_E: ArrayLike, second_E: ArrayLike) -> McNemar:
    """Exact McNemar test: the binomial test of the discordant pairs (McNemar 1947).

    Raises:
        ValueError: no episodes, or not the same number of them.
    """
    first, second = (column.astype(bool) for column in _columns(first_E, second_E).T)
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    if wins + losses == 0:
        return McNemar(0, 0, 1.0, 1.0)
    greater = scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    return McNemar(wins, losses, float(greater), float(scipy.stats.binomtest(wins, wins + losses).pvalue))


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def _resamples(columns_EC: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Column means over bootstrap resamples of the episodes, [draws, C]: rows stay whole, so pairs stay paired."""
    count = len(columns_EC)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means: NDArray[np.float64] = weights @ columns_EC / count
    return means


def paired_difference(
    first_E: ArrayLike, second_E: ArrayLike, alpha: float = ALPHA, draws: int = 4000, seed: int = 0
) -> Estimate:
    """Mean of first - second over episodes, with a percentile bootstrap interval (Efron 1979)."""
    columns_EC = _columns(first_E, second_E)
    means = _resamples(columns_EC, draws, seed)
    low, high = np.quantile(means[:, 0] - means[:, 1], [alpha / 2, 1 - alpha / 2])
    return Estimate(float(columns_EC[:, 0].mean() - columns_EC[:, 1].mean()), float(low), float(high))


def retention(
    normal_E: ArrayLike, p0_E: ArrayLike, p1_E: ArrayLike, alpha: float = ALPHA, draws: int = 4000, seed: int = 0
) -> Estimate:
    """(normal - P0) / (P1 - P0): the share of what the text is worth that the prefix keeps.

    A percentile bootstrap over episodes, all three conditions of an episode together. Where P1 does not beat P0
    there is nothing to keep: value and bounds are NaN. Where the interval of P1 - P0 touches 0, the ratio has no
    bounded interval (as in Fieller 1954): the value stands and both bounds are NaN.
    """
    columns_EC = _columns(normal_E, p0_E, p1_E)
    normal, p0, p1 = columns_EC.mean(axis=0)
    if p1 <= p0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float((normal - p0) / (p1 - p0))
    means = _resamples(columns_EC, draws, seed)
    worth = means[:, 2] - means[:, 1]
    if np.quantile(worth, alpha / 2, method="lower") <= 0:
        return Estimate(value, math.nan, math.nan)
    ratio = (means[:, 0] - means[:, 1]) / np.where(worth > 0, worth, 1.0)
    # The few resamples without worth could put the ratio anywhere: they widen the interval at both ends.
    low = np.quantile(np.where(worth > 0, ratio, -np.inf), alpha / 2, method="lower")
    high = np.quantile(np.where(worth > 0, ratio, np.inf), 1 - alpha / 2, method="higher")
    return Estimate(value, float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): compare each with alpha as it is."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def successes_needed(n: int, threshold: float, alpha: float = ALPHA) -> int | None:
    """The fewest successes of n whose Wilson lower bound reaches a threshold; None where no count does."""
    # Wilson's bound inverts the score test, so it is reached at n t + z sqrt(n t (1 - t)); `wilson` has the last
    # word on rounding.
    z = float(scipy.stats.norm.isf(alpha / 2))
    bounded = min(max(threshold, 0.0), 1.0)
    count = min(n, math.ceil(n * bounded + z * math.sqrt(n * bounded * (1 - bounded))))
    while count > 0 and wilson(count - 1, n, alpha).low >= threshold:
        count -= 1
    while count <= n and wilson(count, n, alpha).low < threshold:
        count += 1
    return count if count <= n else None


def power(n: int, rate: float, threshold: float, alpha: float = ALPHA) -> float:
    """The chance that n episodes at a true success rate put the Wilson lower bound at the threshold or above."""
    needed = successes_needed(n, threshold, alpha)
    return 0.0 if needed is None else float(scipy.stats.binom.sf(needed - 1, n, rate))


def minimum_n(rate: float, threshold: float, wanted: float = 0.8, alpha: float = ALPHA) -> int | None:
    """The fewest episodes that give a true rate that chance of clearing a threshold.

    Power climbs in saw teeth with n; this is the n from which it stays at or above `wanted` for the next 20.
    None where the rate is not above the threshold, or more than 100,000 episodes would not do.
    """
    if rate <= threshold:
        return None
    low, high = 1, 1
    while power(high, rate, threshold, alpha) < wanted:
        low, high = high, high * 2
        if high > 100_000:
            return None
    n = low
    while any(power(m, rate, threshold, alpha) < wanted for m in range(n, n + 20)):
        n += 1
    return n


def minimum_detectable_rate(n: int, threshold: float, wanted: float = 0.8, alpha: float = ALPHA) -> float:
    """The lowest true rate that n episodes let clear a threshold with that chance; NaN where none does."""
    needed = successes_needed(n, threshold, alpha)
    if needed is None:
        return math.nan
    if needed == 0:
        return 0.0
    # P(X >= needed) at rate p is the Beta(needed, n - needed + 1) distribution function at p.
    return float(scipy.stats.beta.ppf(wanted, needed, n - needed + 1))


def minimum_detectable_difference(n: int, discordant: float, wanted: float = 0.8, alpha: float = ALPHA) -> float:
    """The smallest paired difference of success that McNemar's one-sided test finds with that chance.

    Normal approximation (Connor 1987), for a share `discordant` of episodes on which the two differ. A
    difference cannot exceed that share, so NaN where n is too small to find even `discordant`.

    Raises:
        ValueError: not n >= 1 and 0 < discordant <= 1.
    """
    if not (n >= 1 and 0 < discordant <= 1):
        raise ValueError(f"n = {n}, discordant = {discordant}: give n >= 1 and a share above 0")
    z_alpha, z_power = scipy.stats.norm.ppf([1 - alpha, wanted])
    # d = (z_a sqrt(psi) + z_b sqrt(psi - d^2)) / sqrt(n), solved for d
    a = 1 + z_power**2 / n
    b = -2 * z_alpha * math.sqrt(discordant / n)
    c = (z_alpha**2 - z_power**2) * discordant / n
    difference = (-b + math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
    return float(difference) if difference <= discordant else math.nan
