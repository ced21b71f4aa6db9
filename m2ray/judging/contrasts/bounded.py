"""Tests of a mean that is known to lie between two ends, whatever the distribution.

The t-test takes a mean for normal. Where few clusters lose much it rejects too easily: samples that show few of
them look more certain than they are. If 2 % of 300 scores lose 1.0, a difference of the margin passes in 14 % of
samples at a level of 5 %.

Gaffke's test (2005) gives random weights to the sampled values and to one value more, the lowest that there is (a
Dirichlet distribution, as in the Bayesian bootstrap). The p-value is the probability that the weighted mean is at
most the margin. For successes and failures it is the exact binomial test of Clopper and Pearson (1934). Its level
is proved for some cases and conjectured for all; no exception is known (Learned-Miller and Thomas 2019,
arXiv:1905.06208).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STEP = 0.1  # of the integral; p-values are then exact to a thousandth of themselves
POINTS_Q = STEP * np.arange(60)
NEGLIGIBLE = 1e-12  # a distance from the margin that is so much smaller than the largest is none


@dataclass(frozen=True, eq=False)
class BoundedSample:
    """Values of clusters, sampled from a distribution between two ends.

    A cluster of several episodes has their mean, and weighs as much as it has episodes. The value that is added
    weighs as much as the largest: clusters that are not in the sample may be as large, and do worst.

    Shapes: C different clusters.

    Attributes:
        value_C: The values.
        size_C: The episodes of each.
        count_C: How many clusters there are of each value and size, 1 at least.
        lowest: The lowest value that a cluster can have.
        highest: The highest.
    """

    value_C: Floats
    size_C: Floats
    count_C: Floats
    lowest: float
    highest: float

    @property
    def reversed(self) -> BoundedSample:
        """The sample of the opposite values."""
        return BoundedSample(-self.value_C, self.size_C, self.count_C, -self.highest, -self.lowest)

    def p_at_most(self, margin: float) -> float:
        """Return Gaffke's one-sided p-value of the hypothesis that the true mean is at most `margin`.

        The random weights are shares of exponential variables. So it is the probability that the sum of these
        variables, each times the size of its cluster and the distance of its value from the margin, is at most 0.
        """
        if margin <= self.lowest:
            return 0.0
        excess_C = np.append(self.size_C * (self.value_C - margin), self.size_C.max() * (self.lowest - margin))
        count_C = np.append(self.count_C, 1.0)
        excess_C /= np.abs(excess_C).max()
        excess_C[np.abs(excess_C) < NEGLIGIBLE] = 0.0
        if excess_C.max() <= 0:
            return 1.0
        if count_C @ excess_C >= 0:
            return _chance_below_zero(excess_C, count_C)
        return 1 - _chance_below_zero(-excess_C, count_C)

    def low(self, level: float, start: float) -> float:
        """Return the margin at which the test turns at `level`, or `start` where it rejects that."""

        def beyond(margin: float) -> float:
            """Return by how many normal quantiles it rejects: nearly linear in the margin."""
            return float(scipy.stats.norm.isf(max(self.p_at_most(margin), 1e-300))) - critical

        critical = float(scipy.stats.norm.isf(level))
        if start <= self.lowest or beyond(start) >= 0:
            return max(start, self.lowest)
        step = 0.1
        while start - step > self.lowest and beyond(start - step) < 0:
            step *= 2
        return float(scipy.optimize.brentq(beyond, max(self.lowest, start - step), start, xtol=1e-7))


def _chance_below_zero(factor_C: Floats, count_C: Floats) -> float:
    """Return the probability that a sum of Gamma variables times factors is below 0, where its mean is above.

    It is an integral of the sum's moment-generating function along a line beside the imaginary axis, divided by
    the frequency (Daniels 1954, eq. 2.1, for the tail). Through the saddle point the function falls off quickly.

    Args:
        factor_C: Factors, the largest of size 1; one is below 0 at least.
        count_C: Shapes of the Gamma variables, 1 at least.
    """

    def slope(at: float) -> float:
        """Return the derivative of the logarithm of the moment-generating function."""
        return float((count_C * factor_C / (1 - factor_C * at)).sum())

    pole = 1 / float(factor_C.min())
    saddle = float(scipy.optimize.brentq(slope, pole * (1 - 1e-12), 0.0)) if slope(0.0) > 0 else 0.0
    # The integrand has another pole at 0. Any line between the two gives the same integral.
    at = min(saddle, -0.5 / float(np.sqrt((count_C * factor_C**2).sum())))
    width = 1 / float(np.sqrt((count_C * (factor_C / (1 - factor_C * at)) ** 2).sum()))
    along_Q = width * np.sinh(POINTS_Q)
    step_Q = STEP * width * np.cosh(POINTS_Q)
    step_Q[0] /= 2
    # Real and imaginary part apart: that is five times faster than complex logarithms.
    real_C, imaginary_CQ = 1 - factor_C * at, -factor_C[:, None] * along_Q
    size_Q = -0.5 * (count_C @ np.log(real_C[:, None] ** 2 + imaginary_CQ**2))
    angle_Q = -(count_C @ np.arctan(imaginary_CQ / real_C[:, None]))
    tail = -float((np.exp(size_Q + 1j * angle_Q) / (at + 1j * along_Q)).real @ step_Q) / np.pi
    return min(1.0, max(0.0, tail))


def bounded_sample(value_C: Floats, size_C: Floats, lowest: float, highest: float) -> BoundedSample:
    """Return a sample in which clusters of equal value and size are counted together.

    Args:
        value_C: The value of each cluster.
        size_C: Its episodes.
        lowest: The lowest value that a cluster can have.
        highest: The highest.
    """
    # As complex numbers, pairs are sorted ten times faster than as rows.
    pairs, count = np.unique(np.round(value_C, 12) + 1j * size_C, return_counts=True)
    return BoundedSample(pairs.real, pairs.imag, count.astype(np.float64), lowest, highest)
