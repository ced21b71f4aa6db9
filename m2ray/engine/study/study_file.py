"""The search as an Optuna study in a file, for inspection: `optuna-dashboard results/NAME/optuna.log`.

A sweep resumes from its own journal, and rewrites this file.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from m2ray.config.axis import Scalar
from m2ray.config.plan import Plan

COMPLETE, FAIL, RUNNING = (optuna.trial.TrialState[name] for name in ("COMPLETE", "FAIL", "RUNNING"))


@dataclass
class _Shown:
    """A trial of the file: a point, a sampled configuration, or a suggestion that repeated one."""

    config: str
    params: Mapping[str, Scalar]
    is_point: bool
    began: float  # seconds since 1970
    ended: float | None = None
    score: float | None = None

    @property
    def state(self) -> optuna.trial.TrialState:
        return RUNNING if self.ended is None else FAIL if self.score is None else COMPLETE


class StudyFile:
    """The study in its file: points, what runs, and all that has ended, each with the times of the journal.

    Args:
        file: The file, which is replaced.
        plan: The points and the axes.
        entries: The journal so far.
    """

    def __init__(self, file: Path, plan: Plan, entries: Iterable[Mapping[str, Any]]) -> None:
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        self._study = optuna.create_study(storage=storage, study_name=plan.space.name, direction="maximize")
        self._plan = plan
        self._numbers: dict[str, list[int]] = {}  # of running trials, by configuration
        self._added = 0  # the study's own list is copied whole each time it is read
        shown: list[_Shown] = []
        by_config: dict[str, list[_Shown]] = {}
        for entry in entries:
            self._note(shown, by_config, entry)
        for trial in shown:
            self._add(trial)

    def _note(self, shown: list[_Shown], by_config: dict[str, list[_Shown]], entry: Mapping[str, Any]) -> None:
        """Bring the trials to where they are after an entry of the journal."""
        name, at = entry["config"], float(entry.get("at", time.time()))
        own = by_config.setdefault(name, [])
        if entry["event"] == "ended":
            for trial in own:
                trial.ended, trial.score = at, entry["score"]
        elif entry["event"] == "repeated" or not own:
            shown.append(self._shown(name, entry["chosen"], at))
            if ended := next((trial for trial in own if trial.ended is not None), None):
                shown[-1].ended, shown[-1].score = at, ended.score
            own.append(shown[-1])

    def _shown(self, name: str, chosen: Mapping[str, Scalar], at: float) -> _Shown:
        point = self._plan.points.get(name)
        is_point = point is not None and not chosen
        params = self._plan.on_axes(point) if point is not None and is_point else chosen
        return _Shown(name, params, is_point, at)

    def _add(self, shown: _Shown) -> None:
        axes = self._plan.space.axes
        # A sweep may be resumed with other axes.
        params = {key: value for key, value in shown.params.items() if key in axes and axes[key].contains(value)}
        trial = optuna.trial.create_trial(
            state=shown.state,
            value=shown.score,
            params=params,
            distributions={key: axes[key].distribution(value) for key, value in params.items()},
            user_attrs={"config": shown.config, "point": shown.is_point},
        )
        trial.datetime_start = datetime.datetime.fromtimestamp(shown.began)
        if shown.ended is None:
            self._numbers.setdefault(shown.config, []).append(self._added)
        else:
            trial.datetime_complete = datetime.datetime.fromtimestamp(shown.ended)
        self._study.add_trial(trial)
        self._added += 1

    def began(self, name: str, chosen: Mapping[str, Scalar]) -> None:
        """Show that a configuration is being trained, unless the file does."""
        if name not in self._numbers:
            self._add(self._shown(name, chosen, time.time()))

    def repeated(self, name: str, chosen: Mapping[str, Scalar], ended: bool, score: float | None) -> None:
        """Show a suggestion that repeats a configuration, which may have ended."""
        shown = self._shown(name, chosen, time.time())
        if ended:
            shown.ended, shown.score = shown.began, score
        self._add(shown)

    def ended(self, name: str, score: float | None) -> None:
        """Show how a configuration's trial ended."""
        for number in self._numbers.pop(name, []):
            self._study.tell(number, score, state=FAIL if score is None else COMPLETE)
