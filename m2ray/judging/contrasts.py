"""The difference between two conditions: its value, one-sided bounds, and the p-value against a margin.

Three kinds, by what is known of the outcomes:

- `PairedBinary`: successes and failures of the same episodes, one training seed. Tango's score test (1998), and an
  exact bound where few or no episodes differ.
- `MeanDifference`: scores in 0..1, several training seeds, or episodes in groups. A t-test of the mean with the
  variance of clusters.
- `Unpaired`: bare counts. The score test of two independent shares (Miettinen and Nurminen 1985).

Shapes: S training seeds, E episodes, G groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from m2ray.judging.statistics import Estimate
from m2ray.util.errors import UserError

Floats = NDArray[np.float64]
ROUNDING = 1e-12  # outcomes that differ by less are alike: sums of scores are not exact


class Contrast(ABC):
    """The difference between two conditions in mean success, in -1..1."""

    @property
    @abstractmethod
    def value(self) -> float:
        """The observed difference."""

    @abstractmethod
    def p_above(self, margin: float) -> float:
        """Return the one-sided p-value of the hypothesis that the true difference is at most `margin`."""

    @abstractmethod
    def low(self, level: float) -> float:
        """Return the one-sided lower bound: the smallest margin that the test does not reject at `level`."""

    @property
    @abstractmethod
    def reversed(self) -> Contrast:
        """The second condition minus the first."""

    def high(self, level: float) -> float:
        """Return the one-sided upper bound at `level`."""
        return -self.reversed.low(level)

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (Schuirmann 1987) that the true difference exceeds `margin`.

        A small value shows that it lies within -margin..margin.
        """
        return max(self.p_above(-margin), self.reversed.p_above(-margin))


def _binomial_p(excess: int, n: int, margin: float) -> float:
    """Return the exact p-value of at most `margin`, where a difference of `excess` in n episodes is binomial.

    It is where one of two conditions solves no episode alone: wins above 0, or losses below. 0 at a margin of 0.
    """
    if margin > 0:
        return float(scipy.stats.binom.sf(excess - 1, n, margin))
    return float(scipy.stats.binom.cdf(-excess, n, -margin)) if margin < 0 else 0.0


def _binomial_low(excess: int, n: int, level: float) -> float:
    """Return the bound at which `_binomial_p` turns (Clopper and Pearson 1934)."""
    if excess > 0:
        return float(scipy.stats.beta.ppf(level, excess, n - excess + 1))
    return -float(scipy.stats.beta.isf(level, 1 - excess, n + excess)) if excess > -n else -1.0


@dataclass(frozen=True)
class PairedBinary(Contrast):
    """Outcomes of `n` episodes, of which the first alone solves `wins` and the second alone `losses`.

    Tango's test is asymptotic: where one of the two hardly ever solves an episode alone, it rejects a true
    hypothesis in up to 9 % of samples instead of 5 %. There the difference itself is binomial, so that the exact
    test of that binomial must reject as well; elsewhere it rejects more easily than Tango's and changes nothing.
    """

    n: int
    wins: int
    losses: int

    @property
    def value(self) -> float:
        """The observed difference."""
        return (self.wins - self.losses) / self.n

    @property
    def reversed(self) -> PairedBinary:
        """The second condition minus the first."""
        return PairedBinary(self.n, self.losses, self.wins)

    def _z(self, margin: float) -> float:
        """Return Tango's score statistic (1998, eq. 4): the excess over a margin, in standard errors under it."""
        n, wins, losses = self.n, self.wins, self.losses
        # The maximum likelihood estimate of the second's share of sole successes, given that margin.
        b = -wins - losses + (2 * n - wins + losses) * margin
        c = -losses * margin * (1 - margin)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share + margin * (1 - margin))
        excess = wins - losses - n * margin
        if variance <= 1e-12:
            return 0.0 if abs(excess) < 1e-9 else math.copysign(math.inf, excess)
        return excess / math.sqrt(variance)

    def p_above(self, margin: float) -> float:
        """Return the p-value of Tango's score test, or that of the binomial if it is larger."""
        tango = float(scipy.stats.norm.sf(self._z(margin)))
        return max(tango, _binomial_p(self.wins - self.losses, self.n, margin))

    def low(self, level: float) -> float:
        """Return the bound at which both tests reject."""
        return min(_binomial_low(self.wins - self.losses, self.n, level), self.tango_low(level))

    def tango_low(self, level: float) -> float:
        """Return the bound at which Tango's test alone turns."""
        critical = float(scipy.stats.norm.isf(level))
        floor, value = -1 + 1e-9, self.value
        if value <= floor or self._z(floor) <= critical:
            return -1.0
        return float(scipy.optimize.brentq(lambda margin: self._z(margin) - critical, floor, value - 1e-12))


@dataclass(frozen=True)
class MeanDifference(Contrast):
    """A mean over clusters (episodes, groups) with its standard error and degrees of freedom.

    The t-interval of outcomes that are all alike would have no width, and where few clusters lose much it is too
    narrow: samples that show none of them look certain. Where a share of all clusters has the lowest value that
    there is, a sample of G misses them all with probability (1 - share)^G. So a bound is at least as far from the
    mean as the share that is missed with a probability of `level` can move it. For successes and failures of 100
    episodes or more at common variances the t-interval is wider, and decides.

    Attributes:
        mean: The mean.
        error: Its standard error.
        freedom: Degrees of freedom.
        clusters: G, the effective number of clusters that were sampled.
        lowest: The lowest value that a cluster can have.
        highest: The highest.
    """

    mean: float
    error: float
    freedom: float
    clusters: float
    lowest: float = -1.0
    highest: float = 1.0

    @property
    def value(self) -> float:
        """The observed difference."""
        return self.mean

    @property
    def reversed(self) -> MeanDifference:
        """The second condition minus the first."""
        return MeanDifference(-self.mean, self.error, self.freedom, self.clusters, -self.highest, -self.lowest)

    def p_above(self, margin: float) -> float:
        """Return the p-value of the t-test, or of missing all clusters that would move the mean to `margin`."""
        excess, room = self.mean - margin, self.mean - self.lowest
        if self.error == 0:
            t_test = 0.5 if abs(excess) < 1e-12 else float(excess < 0)
        else:
            t_test = float(scipy.stats.t.sf(excess / self.error, self.freedom))
        if excess <= 0:
            return t_test
        return max(t_test, (1 - min(1.0, excess / room)) ** self.clusters)

    def low(self, level: float) -> float:
        """Return the bound of the t-interval, or the lower one that missed clusters allow; at least -1."""
        missed = (1 - level ** (1 / self.clusters)) * (self.mean - self.lowest)
        return max(-1.0, self.mean - max(missed, float(scipy.stats.t.isf(level, self.freedom)) * self.error))


@dataclass(frozen=True)
class Unpaired(Contrast):
    """Two counts of successes, of episodes that need not be the same.

    The score test is asymptotic: as for `PairedBinary`, where the second solves hardly any episode the successes
    of the first are binomial, and the exact test of that must reject as well.
    """

    first: tuple[int, int]
    second: tuple[int, int]

    @property
    def value(self) -> float:
        """The observed difference."""
        return self.first[0] / self.first[1] - self.second[0] / self.second[1]

    @property
    def reversed(self) -> Unpaired:
        """The second condition minus the first."""
        return Unpaired(self.second, self.first)

    def p_above(self, margin: float) -> float:
        """Return the p-value of the score test, or that of the binomial if it is larger."""
        score, excess = self.score_p_above(margin), self._excess
        return max(score, _binomial_p(excess, self.first[1], margin)) if margin > 0 and excess > 0 else score

    @property
    def _excess(self) -> int:
        """Successes of the first beyond those at the second's rate, rounded up."""
        return math.ceil(self.value * self.first[1] - 1e-9)

    def score_p_above(self, margin: float) -> float:
        """Return the p-value of the score test alone."""
        n, other_n = self.first[1], self.second[1]
        rate, other_rate = self._rates_at(margin)
        excess = self.value - margin
        variance = rate * (1 - rate) / n + other_rate * (1 - other_rate) / other_n
        variance *= (n + other_n) / (n + other_n - 1)
        if variance <= 1e-12:
            return 0.5 if abs(excess) < 1e-12 else float(excess < 0)
        return float(scipy.stats.norm.sf(excess / math.sqrt(variance)))

    def _rates_at(self, margin: float) -> tuple[float, float]:
        """Return the most likely success rates that differ by `margin`.

        They are the root of Miettinen and Nurminen's cubic (1985, appendix I). The closed form in statsmodels 0.14
        has another coefficient, and is off by up to 0.1 in the p-value.
        """
        (successes, n), (other_successes, other_n) = self.first, self.second
        total, solved = n + other_n, successes + other_successes
        b = ((n + 2 * other_n) * margin - total - solved) / (3 * total)
        c = ((other_n * margin - total - 2 * other_successes) * margin + solved) / (3 * total)
        d = other_successes * margin * (1 - margin) / (2 * total)
        q = b**3 - 3 * b * c / 2 + d
        size = math.copysign(math.sqrt(max(0.0, b * b - c)), q)
        ratio = q / size**3 if abs(size) > 1e-9 else 0.0
        angle = (math.pi + math.acos(min(1.0, max(-1.0, ratio)))) / 3
        other_rate = 2 * size * math.cos(angle) - b
        low, high = max(0.0, -margin), min(1.0, 1 - margin)
        other_rate = min(high, max(low, other_rate))
        return min(1.0, max(0.0, other_rate + margin)), other_rate

    def low(self, level: float) -> float:
        """Return the bound at which both tests reject."""
        score, excess = self.score_low(level), self._excess
        return min(score, _binomial_low(excess, self.first[1], level)) if excess > 0 else score

    def score_low(self, level: float) -> float:
        """Return the bound at which the score test alone turns."""
        floor = -1 + 1e-6
        if self.value <= floor or self.score_p_above(floor) >= level:
            return -1.0
        return float(scipy.optimize.brentq(lambda margin: self.score_p_above(margin) - level, floor, self.value))


def effective_clusters(group_E: NDArray[np.int64]) -> float:
    """Return the effective number of groups: the inverse sum of squared shares of the episodes (Kish 1965)."""
    share_G = np.bincount(group_E) / len(group_E)
    return 1 / float((share_G**2).sum())


def mean_difference(
    difference_SE: Floats, group_E: NDArray[np.int64] | None = None, lowest: float = -1.0
) -> MeanDifference:
    """Return the mean of a difference over episodes and training seeds, which are both samples.

    The variance of the mean is that over episodes (of each episode's mean over seeds) plus that over seeds (of
    each seed's mean over episodes): two-way clustering as in Cameron, Gelbach and Miller (2011) without their last
    term, which errs on the safe side. Degrees of freedom are Satterthwaite's (1946). With one seed nothing is
    known of the variance over seeds, and only that over episodes counts.

    The variance over groups is the jackknife's, and their degrees of freedom are of the effective number of
    groups (`effective_clusters`): a group that holds many of the episodes
    draws the mean to itself, so that its distance from it says too little. With groups of one size both are the
    usual ones.

    Args:
        difference_SE: Differences, one row for each training seed.
        group_E: Numbers of the groups that episodes belong to; they are the clusters instead of episodes.
        lowest: The lowest value that an outcome can have; the highest is 1. Values beyond them extend the range.

    Raises:
        UserError: there are fewer than two episodes or groups.
    """
    seeds, episodes = difference_SE.shape
    mean_E, mean = difference_SE.mean(axis=0), float(difference_SE.mean())
    sizes_G = np.ones(episodes) if group_E is None else np.bincount(group_E)
    clusters_G = mean_E - mean if group_E is None else np.bincount(group_E, weights=mean_E - mean)
    count = len(clusters_G)
    if count < 2:
        raise UserError(f"rows: a variance needs two episodes or groups at least, not {count}; evaluate more")
    share_G = sizes_G / episodes
    clusters_G[np.abs(clusters_G) < ROUNDING * sizes_G] = 0.0
    over_episodes = float(((clusters_G / (1 - share_G)) ** 2).sum()) / episodes**2 * (count - 1) / count
    over_seeds = float(difference_SE.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    effective = max(2.0, float(count) if group_E is None else effective_clusters(group_E))
    ends = (min(lowest, float(mean_E.min())), max(1.0, float(mean_E.max())))
    return _with_variances(mean, [(over_episodes, effective - 1), (over_seeds, seeds - 1)], effective, ends)


def _with_variances(
    mean: float, parts: Sequence[tuple[float, float]], clusters: float, ends: tuple[float, float]
) -> MeanDifference:
    """Return a mean whose variance is the sum of parts, each with its degrees of freedom.

    The degrees of freedom of the sum are Satterthwaite's (1946). The first part counts even where all are 0.

    Args:
        mean: The mean.
        parts: Variances, and the degrees of freedom of each.
        clusters: See `MeanDifference`.
        ends: The lowest and the highest value that a cluster can have.
    """
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return MeanDifference(mean, 0.0, parts[0][1], clusters, *ends)
    spread = sum(part**2 / freedom for part, freedom in parts if part > 0)
    return MeanDifference(mean, math.sqrt(variance), variance**2 / spread, clusters, *ends)


def difference_of_systems(
    first_SE: Floats, second_SE: Floats, group_E: NDArray[np.int64] | None = None
) -> MeanDifference:
    """Return the difference in mean between two systems on the same episodes, each with training seeds of its own.

    Seed 0 of one system has nothing in common with seed 0 of the other, so that the variance over seeds is the sum
    of both; episodes are paired.

    Args:
        first_SE: The first system's outcomes, [S, E]; S may differ from the second's.
        second_SE: The second system's.
        group_E: Numbers of the groups that episodes belong to.

    Raises:
        UserError: there are fewer than two episodes or groups.
    """
    over_episodes = mean_difference((first_SE.mean(axis=0) - second_SE.mean(axis=0))[None], group_E)
    parts = [(over_episodes.error**2, over_episodes.freedom)]
    parts += [
        (float(system_SE.mean(axis=1).var(ddof=1)) / len(system_SE), len(system_SE) - 1)
        for system_SE in (first_SE, second_SE)
        if len(system_SE) > 1
    ]
    ends = (over_episodes.lowest, over_episodes.highest)
    return _with_variances(over_episodes.mean, parts, over_episodes.clusters, ends)


def difference_of_samples(first: MeanDifference, second: MeanDifference) -> MeanDifference:
    """Return the difference between two means of independent samples (Welch 1947)."""
    return _with_variances(
        first.mean - second.mean,
        [(one.error**2, one.freedom) for one in (first, second)],
        min(first.clusters, second.clusters),
        (first.lowest - second.highest, first.highest - second.lowest),
    )


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
        All NaN where the denominator is not above 0; the bounds are NaN where its own interval touches 0, since
        then the ratio has no bounded interval.
    """
    if second_SE.mean() <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(first_SE.mean() / second_SE.mean())
    if mean_difference(np.broadcast_to(second_SE, first_SE.shape), group_E).low(alpha / 2) <= 0:
        return Estimate(value, math.nan, math.nan)

    def bound(ratio: float, sign: float) -> float:
        """Return the one-sided lower bound of sign (first - ratio second); it is 0 at the end of the interval."""
        return mean_difference(sign * (first_SE - ratio * second_SE), group_E).low(alpha / 2)

    def end(sign: float) -> float:
        """Return the interval's lower end for sign 1, its upper end for -1; NaN if it is not found."""
        for step in (1, 4, 16, 64):
            far = value - sign * step
            if bound(far, sign) > 0:
                break
        else:
            return math.nan
        return float(scipy.optimize.brentq(bound, far, value, args=(sign,)))

    return Estimate(value, end(1.0), end(-1.0))
