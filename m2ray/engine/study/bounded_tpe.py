"""Optuna's TPE on a bounded number of trials, so that the time of a suggestion does not grow with them."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

LATEST, BEST = 900, 100  # ended trials that a suggestion is based on: the latest, and the best of those before


class EndedTrials:
    """The trials with a result that suggestions are based on, kept up to date as trials end.

    They are not looked up in the study, which would go through all of its trials several times for a suggestion.
    """

    def __init__(self) -> None:
        self._latest: list[FrozenTrial] = []  # by number, by which trials compare
        self._best: list[tuple[float, int, FrozenTrial]] = []  # of those before, a heap

    def add(self, trial: FrozenTrial) -> None:
        """Take note of a trial that has ended with a value."""
        bisect.insort(self._latest, trial)
        if len(self._latest) > LATEST:
            first = self._latest.pop(0)
            assert first.value is not None
            heapq.heappush(self._best, (first.value, -first.number, first))
            if len(self._best) > BEST:
                heapq.heappop(self._best)

    @property
    def kept(self) -> list[FrozenTrial]:
        """The latest and the best of those before, by number."""
        return [*sorted(trial for _, _, trial in self._best), *self._latest]


class BoundedTPE(optuna.samplers.TPESampler):
    """TPE as Optuna's own up to 1,000 ended trials; from then on it looks at the latest and the best of them.

    Args:
        ended: The study's trials with a result.
        running: Its other trials that have begun, without the one that is to be sampled.
        **settings: Those of TPE.
    """

    def __init__(self, ended: EndedTrials, running: Sequence[optuna.Trial], **settings: Any) -> None:
        super().__init__(**settings)
        self._ended, self._running = ended, running

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        return super().infer_relative_search_space(self._bounded(study), trial)

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        return super().sample_relative(self._bounded(study), trial, search_space)

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        return super().sample_independent(self._bounded(study), trial, param_name, param_distribution)

    def _bounded(self, study: Any) -> Any:
        if isinstance(study, _BoundedStudy):
            return study
        running = [study._storage.get_trial(trial._trial_id) for trial in self._running]
        return _BoundedStudy(study, sorted([*self._ended.kept, *running]))


class _BoundedStudy:
    """A study that shows samplers some of its trials only; all else is the study's own."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._own, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    # Samplers only read the trials, so they need no copies; the other arguments are those of Optuna's method.
    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]
