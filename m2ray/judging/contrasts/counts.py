"""Differences between two conditions of which successes and failures are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from m2ray.judging.contrasts.contrast import Contrast


def is_binary(outcomes: NDArray[np.float64]) -> bool:
    """Return whether all outcomes are successes, 1, or failures, 0."""
    return bool(((outcomes == 0) | (outcomes == 1)).all())


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

    @classmethod
    def of(cls, first: NDArray[Any], second: NDArray[Any]) -> PairedBinary:
        """Return the contrast of successes and failures, of the same episodes in the same order."""
        return cls(first.size, int((first > second).sum()), int((first < second).sum()))

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
