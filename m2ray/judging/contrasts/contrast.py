"""What every comparison of two conditions answers: a value, one-sided bounds, and the p-value against a margin."""

from __future__ import annotations

from abc import ABC, abstractmethod


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
