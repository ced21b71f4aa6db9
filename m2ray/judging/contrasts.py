"""The difference between two conditions: its value, one-sided bounds, and the p-value against a margin.

Three kinds, by what is known of the outcomes:

- `PairedBinary`: successes and failures of the same episodes, one training seed. Tango's score test (1998), which
  stays sound where few or no episodes differ.
- `MeanDifference`: scores in 0..1, several training seeds, or episodes in groups. A t-test of the mean with the
  variance of clusters.
- `Unpaired`: bare counts. The score test of two independent shares (Miettinen and Nurminen 1985), by statsmodels.

Shapes: S training seeds, E episodes, G groups.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from m2ray.judging.statistics import Estimate
from m2ray.util.errors import UserError

Floats = NDArray[np.float64]


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


@dataclass(frozen=True)
class PairedBinary(Contrast):
    """Outcomes of `n` episodes, of which the first alone solves `wins` and the second alone `losses`."""

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
        """Return the p-value of Tango's score test."""
        return float(scipy.stats.norm.sf(self._z(margin)))

    def low(self, level: float) -> float:
        """Return the bound at which Tango's test turns."""
        critical = float(scipy.stats.norm.isf(level))
        floor, value = -1 + 1e-9, self.value
        if value <= floor or self._z(floor) <= critical:
            return -1.0
        return float(scipy.optimize.brentq(lambda margin: self._z(margin) - critical, floor, value - 1e-12))


@dataclass(frozen=True)
class MeanDifference(Contrast):
    """A mean difference with its standard error and degrees of freedom."""

    mean: float
    error: float
    freedom: float

    @property
    def value(self) -> float:
        """The observed difference."""
        return self.mean

    @property
    def reversed(self) -> MeanDifference:
        """The second condition minus the first."""
        return MeanDifference(-self.mean, self.error, self.freedom)

    def p_above(self, margin: float) -> float:
        """Return the p-value of the t-test."""
        excess = self.mean - margin
        if self.error == 0:
            return 0.5 if abs(excess) < 1e-12 else float(excess < 0)
        return float(scipy.stats.t.sf(excess / self.error, self.freedom))

    def low(self, level: float) -> float:
        """Return the lower bound of the t-interval, at least -1."""
        return max(-1.0, self.mean - float(scipy.stats.t.isf(level, self.freedom)) * self.error)


@dataclass(frozen=True)
class Unpaired(Contrast):
    """Two counts of successes, of episodes that need not be the same."""

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
        """Return the p-value of the score test."""
        # Loads statsmodels: reading --help must not wait for it.
        from statsmodels.stats.proportion import test_proportions_2indep

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance of 0, which is dealt with below
            test = test_proportions_2indep(
                *self.first, *self.second, value=margin, compare="diff", method="score", alternative="larger"
            )
        p_value = float(test.pvalue)
        if math.isnan(p_value):
            excess = self.value - margin
            return 0.5 if abs(excess) < 1e-12 else float(excess < 0)
        return p_value

    def low(self, level: float) -> float:
        """Return the bound at which the score test turns."""
        floor = -1 + 1e-6
        if self.value <= floor or self.p_above(floor) >= level:
            return -1.0
        return float(scipy.optimize.brentq(lambda margin: self.p_above(margin) - level, floor, self.value))


def mean_difference(difference_SE: Floats, group_E: NDArray[np.int64] | None = None) -> MeanDifference:
    """Return the mean of a difference over episodes and training seeds, which are both samples.

    The variance of the mean is that over episodes (of each episode's mean over seeds) plus that over seeds (of
    each seed's mean over episodes): two-way clustering as in Cameron, Gelbach and Miller (2011) without their last
    term, which errs on the safe side. Degrees of freedom are Satterthwaite's (1946). With one seed nothing is
    known of the variance over seeds, and only that over episodes counts.

    Args:
        difference_SE: Differences, one row for each training seed.
        group_E: Numbers of the groups that episodes belong to; they are the clusters instead of episodes.

    Raises:
        UserError: there are fewer than two episodes or groups.
    """
    seeds, episodes = difference_SE.shape
    mean_E, mean = difference_SE.mean(axis=0), float(difference_SE.mean())
    clusters_G = mean_E - mean if group_E is None else np.bincount(group_E, weights=mean_E - mean)
    count = len(clusters_G)
    if count < 2:
        raise UserError(f"rows: a variance needs two episodes or groups at least, not {count}; evaluate more")
    over_episodes = float((clusters_G**2).sum()) / episodes**2 * count / (count - 1)
    over_seeds = float(difference_SE.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = over_episodes + over_seeds
    if variance == 0:
        return MeanDifference(mean, 0.0, count - 1)
    parts = over_episodes**2 / (count - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    return MeanDifference(mean, math.sqrt(variance), variance**2 / parts)


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
        difference = mean_difference(sign * (first_SE - ratio * second_SE), group_E)
        return difference.mean - float(scipy.stats.t.isf(alpha / 2, difference.freedom)) * difference.error

    def end(sign: float) -> float:
        """Return the interval's lower end for sign 1, its upper end for -1; NaN if it is not found."""
        for step in (1, 4, 16, 64):
            far = value - sign * step
            if bound(far, sign) > 0:
                break
        else:
            return math.nan
        if bound(value, sign) >= 0:  # no variance
            return value
        return float(scipy.optimize.brentq(bound, far, value, args=(sign,)))

    return Estimate(value, end(1.0), end(-1.0))
