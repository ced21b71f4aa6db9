"""Differences between means: scores in 0..1, several training seeds, or episodes in groups.

Shapes: S training seeds, E episodes, G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from m2ray.judging.contrasts.bounded import BoundedSample, Floats, bounded_sample
from m2ray.judging.contrasts.contrast import Contrast
from m2ray.judging.statistics import Estimate
from m2ray.util.errors import UserError

ROUNDING = 1e-12  # outcomes that differ by less are alike: sums of scores are not exact
SMALLEST = 1e-15  # p-value over several seeds


@dataclass(frozen=True, eq=False)
class MeanDifference(Contrast):
    """A mean over clusters (episodes, groups) and training seeds.

    Two tests must reject a margin. The t-test takes the means of both samples for normal: its bound's distance is
    the root of the sum of the squares of those that each sample has by itself (Banerjee 1960). The usual one, of
    the summed variances at Satterthwaite's degrees of freedom, rejects too easily where few seeds happen to be
    alike. Gaffke's test (see `BoundedSample`) knows of no seeds, and takes nothing for normal.

    Attributes:
        mean: The mean.
        parts: The variance of the mean over clusters, and over seeds, each with its degrees of freedom.
        sample: The values of the clusters, means over training seeds.
    """

    mean: float
    parts: tuple[tuple[float, float], ...]
    sample: BoundedSample

    @property
    def value(self) -> float:
        """The observed difference."""
        return self.mean

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(sum(variance for variance, _ in self.parts))

    @property
    def reversed(self) -> MeanDifference:
        """The second condition minus the first."""
        return MeanDifference(-self.mean, self.parts, self.sample.reversed)

    def t_p_above(self, margin: float) -> float:
        """Return the p-value of the t-test alone."""
        excess = self.mean - margin
        if abs(excess) < ROUNDING:
            return 0.5
        p = self._chance_beyond(abs(excess))
        return p if excess > 0 else 1 - p

    def _chance_beyond(self, distance: float) -> float:
        """Return the level at which the t-test's bound is this far from the mean."""
        parts = [(variance, freedom) for variance, freedom in self.parts if variance > 0]
        if not parts:
            return 0.0
        if len(parts) == 1:
            return float(scipy.stats.t.sf(distance / math.sqrt(parts[0][0]), parts[0][1]))

        def beyond(logarithm: float) -> float:
            """Return how much farther the bound of a level is."""
            return self._distance(math.exp(logarithm)) - distance

        if beyond(math.log(SMALLEST)) <= 0:
            return SMALLEST
        return math.exp(float(scipy.optimize.brentq(beyond, math.log(SMALLEST), math.log(0.5))))

    def _distance(self, level: float) -> float:
        """Return how far the t-test's bound is from the mean."""
        return math.sqrt(
            sum(variance * float(scipy.special.stdtrit(freedom, level)) ** 2 for variance, freedom in self.parts)
        )

    def p_above(self, margin: float) -> float:
        """Return the p-value of the t-test, or of Gaffke's if it is larger."""
        t_test = self.t_p_above(margin)
        return t_test if t_test >= 0.5 else max(t_test, self.sample.p_at_most(margin))

    def t_low(self, level: float) -> float:
        """Return the bound at which the t-test alone turns, at a level below 0.5."""
        return self.mean - self._distance(level)

    def low(self, level: float) -> float:
        """Return the bound at which both tests reject."""
        return self.sample.low(level, self.t_low(level))


def effective_clusters(group_E: NDArray[np.int64]) -> float:
    """Return the effective number of groups: the inverse sum of squared shares of the episodes (Kish 1965)."""
    share_G = np.bincount(group_E) / len(group_E)
    return 1 / float((share_G**2).sum())


def mean_difference(
    difference_SE: Floats, group_E: NDArray[np.int64] | None = None, lowest: float = -1.0, highest: float = 1.0
) -> MeanDifference:
    """Return the mean of a difference over episodes and training seeds, which are both samples.

    The variance over episodes is that of each episode's mean over seeds; that over seeds is of each seed's mean
    over episodes. With one seed nothing is known of the variance over seeds, and only that over episodes counts.

    The variance over groups is the jackknife's, and their degrees of freedom are of the effective number of
    groups (`effective_clusters`): a group that holds many of the episodes draws the mean to itself, so that its
    distance from it says too little. With groups of one size both are the usual ones.

    Args:
        difference_SE: Differences, one row for each training seed.
        group_E: Numbers of the groups that episodes belong to; they are the clusters instead of episodes.
        lowest: The lowest value that an outcome can have. Values beyond it or `highest` extend the range.
        highest: The highest.

    Raises:
        UserError: there are fewer than two episodes or groups.
    """
    episodes = difference_SE.shape[1]
    mean_E, mean = difference_SE.mean(axis=0), float(difference_SE.mean())
    sizes_G = np.ones(episodes) if group_E is None else np.bincount(group_E)
    clusters_G = mean_E - mean if group_E is None else np.bincount(group_E, weights=mean_E - mean)
    count = len(clusters_G)
    if count < 2:
        raise UserError(f"rows: a variance needs two episodes or groups at least, not {count}; evaluate more")
    share_G = sizes_G / episodes
    clusters_G[np.abs(clusters_G) < ROUNDING * sizes_G] = 0.0
    over_episodes = float(((clusters_G / (1 - share_G)) ** 2).sum()) / episodes**2 * (count - 1) / count
    effective = max(2.0, float(count) if group_E is None else effective_clusters(group_E))
    ends = (min(lowest, float(mean_E.min())), max(highest, float(mean_E.max())))
    sample = bounded_sample(mean + clusters_G / sizes_G, sizes_G.astype(np.float64), *ends)
    return MeanDifference(mean, ((over_episodes, effective - 1.0), *_over_seeds(difference_SE)), sample)


def _over_seeds(outcomes_SE: Floats) -> list[tuple[float, float]]:
    """Return the variance of the mean over seeds, and its degrees of freedom; nothing of a single seed."""
    seeds = len(outcomes_SE)
    return [(float(outcomes_SE.mean(axis=1).var(ddof=1)) / seeds, seeds - 1.0)] if seeds > 1 else []


def difference_of_systems(
    first_SE: Floats, second_SE: Floats, group_E: NDArray[np.int64] | None = None, lowest: float = 0.0
) -> MeanDifference:
    """Return the difference in mean between two systems on the same episodes, each with training seeds of its own.

    Seed 0 of one system has nothing in common with seed 0 of the other, so that the variance over seeds is the sum
    of both; episodes are paired.

    Args:
        first_SE: The first system's outcomes, [S, E]; S may differ from the second's.
        second_SE: The second system's.
        group_E: Numbers of the groups that episodes belong to.
        lowest: The lowest value that an outcome can have; the highest is 1.

    Raises:
        UserError: there are fewer than two episodes or groups.
    """
    difference_E = first_SE.mean(axis=0) - second_SE.mean(axis=0)
    over_episodes = mean_difference(difference_E[None], group_E, lowest - 1, 1 - lowest)
    parts = (*over_episodes.parts, *_over_seeds(first_SE), *_over_seeds(second_SE))
    return MeanDifference(over_episodes.mean, parts, over_episodes.sample)


def difference_of_samples(first: MeanDifference, second: MeanDifference) -> MeanDifference:
    """Return the difference between two means of independent samples.

    Gaffke's test is of one sample. Here it only keeps the room for clusters that neither sample shows: that of as
    many clusters as the smaller sample has, all at the mean.
    """
    clusters = min(one.parts[0][1] + 1 for one in (first, second))
    mean = first.mean - second.mean
    lowest = first.sample.lowest - second.sample.highest
    highest = first.sample.highest - second.sample.lowest
    sample = BoundedSample(np.array([mean]), np.ones(1), np.array([clusters]), lowest, highest)
    return MeanDifference(mean, (*first.parts, *second.parts), sample)


def mean_ratio(
    first_SE: Floats, second_SE: Floats, alpha: float, group_E: NDArray[np.int64] | None = None
) -> Estimate:
    """Return the ratio of two means over episodes and training seeds, with Fieller's interval (1954).

    A ratio r is in the interval if the mean of first - r second does not differ from 0, by `mean_difference`.

    Args:
        first_SE: The numerator, [S, E].
        second_SE: The denominator, [S, E] or [1, E].
        alpha: Level of the two-sided interval.
        group_E: Numbers of groups of episodes.

    Returns:
        All NaN where the denominator is not above 0; both bounds are NaN where its own interval touches 0, or so
        nearly that they lie more than 64 from the ratio.
    """
    if second_SE.mean() <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(first_SE.mean() / second_SE.mean())
    if mean_difference(np.broadcast_to(second_SE, first_SE.shape), group_E).low(alpha / 2) <= 0:
        return Estimate(value, math.nan, math.nan)

    def p_value(ratio: float, sign: float) -> float:
        """Return that of sign (first - ratio second) being at most 0: alpha / 2 at the end of the interval.

        With gains over the same outcomes, (a - c) - ratio (b - c), the lowest value of all is that of a = 0,
        b = 1 and, where ratio > 1, c = 0, or where ratio < 0, c = 1.
        """
        lowest = -max(1.0, ratio, 1 - ratio)
        return mean_difference(sign * (first_SE - ratio * second_SE), group_E, lowest).p_above(0.0)

    def end(sign: float) -> float:
        """Return the interval's lower end for sign 1, its upper end for -1; NaN if it is not found."""
        for step in (1, 4, 16, 64):
            far = value - sign * step
            if p_value(far, sign) < alpha / 2:
                break
        else:
            return math.nan
        return float(scipy.optimize.brentq(lambda ratio: p_value(ratio, sign) - alpha / 2, far, value))

    ends = end(1.0), end(-1.0)
    return Estimate(value, *ends) if all(map(math.isfinite, ends)) else Estimate(value, math.nan, math.nan)
