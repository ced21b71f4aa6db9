"""Optuna's TPE on a bounded number of trials, so that the time of a suggestion does not grow with them."""

from __future__ import annotations

import heapq
from collections.abc import Container
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

LATEST, BEST = 900, 100  # ended trials that a suggestion is based on: the latest, and the best of those before


class _BoundedStudy:
    """A study that shows samplers some of its trials only; all else is the study's own."""

    def __init__(self, study: optuna.Study) -> None:
        self._own = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._own._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if len(ended) <= LATEST + BEST:
            return trials
        best = heapq.nlargest(BEST, ended[:-LATEST], key=lambda trial: (trial.value, -trial.number))
        shown = {trial.number for trial in [*best, *ended[-LATEST:]]}
        return [trial for trial in trials if trial.state != TrialState.COMPLETE or trial.number in shown]


class BoundedTPE(optuna.samplers.TPESampler):
    """TPE as Optuna's own up to 1,000 ended trials; from then on it looks at the latest and the best of them."""

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        return super().infer_relative_search_space(_bounded(study), trial)

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        return super().sample_relative(_bounded(study), trial, search_space)

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        return super().sample_independent(_bounded(study), trial, param_name, param_distribution)


def _bounded(study: Any) -> Any:
    return study if isinstance(study, _BoundedStudy) else _BoundedStudy(study)
