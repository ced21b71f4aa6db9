"""The outcomes that a configuration is judged by: one array per condition, over the same episodes.

Shapes: S training seeds, E episodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m2ray.judging import statistics as stats
from m2ray.judging.contrasts import (
    Contrast,
    Floats,
    PairedBinary,
    Unpaired,
    effective_clusters,
    is_binary,
    mean_difference,
    mean_ratio,
)

Counts = Mapping[str, tuple[int, int]]  # (successes, n) by condition
NO_SEED = -1  # of rows that all training seeds share


class Arms(ABC):
    """Outcomes of one configuration under its conditions."""

    seeds: Sequence[int]

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """Successes and episodes per condition; training seeds add up, scores are summed and rounded."""

    @property
    @abstractmethod
    def paired(self) -> bool:
        """True if the conditions share their episodes."""

    @abstractmethod
    def contrast(self, first: str, second: str) -> Contrast:
        """Return the difference between two conditions."""

    @abstractmethod
    def p_better(self, first: str, second: str) -> float:
        """Return the p-value that the first is not better than the second, in the worst training seed."""

    @abstractmethod
    def rate(self, name: str) -> float:
        """Return a condition's mean success."""

    @abstractmethod
    def interval(self, name: str, alpha: float) -> stats.Interval:
        """Return the two-sided confidence interval of a condition's mean success."""

    def intervals(self, alpha: float) -> dict[str, stats.Interval]:
        """Return the interval of every condition."""
        return {name: self.interval(name, alpha) for name in self.counts}

    @abstractmethod
    def retention(self, alpha: float) -> stats.Estimate:
        """Return (normal - P0) / (P1 - P0) with its interval."""

    @abstractmethod
    def test(self, first: str, second: str) -> str:
        """Return the name of the test behind `p_better`."""

    @property
    @abstractmethod
    def episodes(self) -> int:
        """The number of episodes; of bare counts, the smallest n."""

    @property
    def clusters(self) -> int | None:
        """The number of clusters of episodes that the tests count; None where they count episodes."""
        return None

    @property
    def independent(self) -> float:
        """The number of episodes or, of clusters of unequal size, of equal ones that would say as much."""
        return self.episodes

    @property
    def unit(self) -> str:
        """What the clusters are."""
        return "groups"


class CountArms(Arms):
    """Bare counts: nothing is paired, and there is one training seed."""

    def __init__(self, counts: Counts) -> None:
        self._counts, self.seeds = counts, (0,)

    counts = property(lambda self: self._counts)
    paired = property(lambda self: False)
    episodes = property(lambda self: min(n for _, n in self._counts.values()))

    def contrast(self, first: str, second: str) -> Contrast:
        """Implement `Arms.contrast`."""
        return Unpaired(self._counts[first], self._counts[second])

    def test(self, first: str, second: str) -> str:
        """Implement `Arms.test`."""
        return "score test"

    def p_better(self, first: str, second: str) -> float:
        """Implement `Arms.p_better`."""
        return self.contrast(first, second).p_above(0.0)

    def rate(self, name: str) -> float:
        """Implement `Arms.rate`."""
        successes, n = self._counts[name]
        return successes / n

    def interval(self, name: str, alpha: float) -> stats.Interval:
        """Implement `Arms.interval`: Wilson's."""
        return stats.wilson(*self._counts[name], alpha)

    def retention(self, alpha: float) -> stats.Estimate:
        """Implement `Arms.retention`: draws of independent shares."""
        normal, p0, p1 = (self._counts[name] for name in ("normal", "P0", "P1"))
        return stats.retention_of_counts(normal, p0, p1, alpha)


class ScoreArms(Arms):
    """Successes or scores of the same episodes under each condition, of one or several training seeds.

    Args:
        scores: By condition, [S, E], or [1, E] where all seeds share the outcomes. Numbers from 0 to 1.
        seeds: The training seeds.
        group_E: Numbers of the groups that episodes belong to; None where each is a group of one.
    """

    def __init__(
        self, scores: Mapping[str, Floats], seeds: Sequence[int], group_E: NDArray[np.int64] | None = None
    ) -> None:
        self._scores = dict(scores)
        self.seeds, self.group_E = seeds, group_E

    @property
    def paired(self) -> bool:
        """True: the conditions share their episodes."""
        return True

    @property
    def clusters(self) -> int | None:
        """Implement `Arms.clusters`."""
        return None if self.group_E is None else len(np.unique(self.group_E))

    @property
    def independent(self) -> float:
        """Implement `Arms.independent`: the inverse sum of squared shares of the episodes (Kish 1965)."""
        return self.episodes if self.group_E is None else effective_clusters(self.group_E)

    def test(self, first: str, second: str) -> str:
        """Implement `Arms.test`: McNemar's, or a t-test for scores and for episodes in groups."""
        return "McNemar" if self._exact(self.scores(first), self.scores(second)) else "t-test"

    def _exact(self, *scores: Floats) -> bool:
        """Return whether these are successes and failures of episodes without groups."""
        return self.group_E is None and all(map(is_binary, scores))

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return int(next(iter(self._scores.values())).shape[1])

    @cached_property
    def counts(self) -> Counts:
        """Implement `Arms.counts`."""
        return {name: (round(float(arm.sum())), int(arm.size)) for name, arm in self._scores.items()}

    def scores(self, name: str) -> Floats:
        """Return a condition's successes or scores, [S, E] or [1, E]."""
        return self._scores[name]

    def of_seed(self, seed: int) -> ScoreArms:
        """Return the outcomes of one training seed."""
        at = list(self.seeds).index(seed)
        own = {name: arm[at : at + 1] if len(arm) > 1 else arm for name, arm in self._scores.items()}
        return ScoreArms(own, [seed], self.group_E)

    def _compare(self, first_SE: Floats, second_SE: Floats) -> Contrast:
        if len(first_SE) == len(second_SE) == 1 and self._exact(first_SE, second_SE):
            return PairedBinary.of(first_SE, second_SE)
        return mean_difference(first_SE - second_SE, self.group_E)

    def contrast(self, first: str, second: str) -> Contrast:
        """Implement `Arms.contrast`."""
        return self._compare(self.scores(first), self.scores(second))

    def p_better(self, first: str, second: str) -> float:
        """Implement `Arms.p_better`: McNemar's exact test; a t-test of scores, or of episodes in groups."""
        first_SE, second_SE = np.broadcast_arrays(self.scores(first), self.scores(second))
        exact, p_values = self._exact(first_SE, second_SE), []
        for first_E, second_E in zip(first_SE, second_SE, strict=True):
            if exact:
                p_values.append(stats.mcnemar(first_E, second_E).p_greater)
            else:
                p_values.append(self._compare(first_E[None], second_E[None]).p_above(0.0))
        return max(p_values)

    def rate(self, name: str) -> float:
        """Implement `Arms.rate`."""
        return float(self.scores(name).mean())

    def interval(self, name: str, alpha: float) -> stats.Interval:
        """Implement `Arms.interval`: Wilson's for one seed's successes, else of the clustered mean's."""
        scores_SE = self.scores(name)
        if len(scores_SE) == 1 and self._exact(scores_SE):
            return stats.wilson(int(scores_SE.sum()), scores_SE.shape[1], alpha)
        clusters = self.clusters
        if clusters == 1:
            return stats.Interval(0.0, 1.0)  # nothing is known of how groups differ
        mean = mean_difference(scores_SE, self.group_E, lowest=0.0)
        if clusters is not None and len(scores_SE) == 1 and is_binary(scores_SE):
            return stats.wilson_of_clusters(
                mean.mean, scores_SE.shape[1], mean.error**2, mean.parts[0][1] + 1, alpha
            )
        return stats.Interval(max(0.0, mean.low(alpha / 2)), min(1.0, mean.high(alpha / 2)))

    def retention(self, alpha: float) -> stats.Estimate:
        """Implement `Arms.retention`: Fieller's interval, over episodes or groups, and over training seeds."""
        normal_SE, p0_SE, p1_SE = (self.scores(name) for name in ("normal", "P0", "P1"))
        return mean_ratio(normal_SE - p0_SE, p1_SE - p0_SE, alpha, self.group_E)


def success_rate(count: tuple[int, int]) -> float:
    """Return successes over n."""
    return count[0] / count[1]
