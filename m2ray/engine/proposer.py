"""Decide which configuration is trained next: first the points, then what Optuna suggests.

Every step is journalled, so that a killed sweep resumes where it was: Optuna is told the results of trials that
ended again, and unfinished trials resume.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend

from m2ray.config.axis import Scalar
from m2ray.config.plan import Plan, config_name
from m2ray.config.trial import TrialConfig
from m2ray.util.journal import Journal
from m2ray.util.trees import get_key

Wait = Literal["later"]
WAIT: Wait = "later"

# A space with `when` needs TPE's grouping of conditional keys, which has been experimental since 2021.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLER_STRIDE = 1_000_003  # keeps the suggestions of different sampler seeds apart

# Columns of the leaderboard besides the searched keys.
LEADERBOARD_KEYS = (
    "codec.encoder",
    "codec.place",
    "codec.bottleneck",
    "codec.scale_gate",
    "training.lr",
    "training.batch_size",
    "training.epochs",
    "losses.contrast.weight",
)


class StudyFile:
    """The study in a file that optuna-dashboard opens: `optuna-dashboard results/NAME/optuna.log`.

    It is for inspection only. A sweep resumes from its own journal, and rewrites this file.
    """

    def __init__(self, file: Path, name: str, ended: Sequence[optuna.trial.FrozenTrial]) -> None:
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        for trial in ended:
            self.add(trial)

    def add(self, trial: optuna.trial.FrozenTrial) -> None:
        """Add a trial that has ended."""
        self._study.add_trial(trial)


class OptunaProposer:
    """Proposes the points, then `search.trials` suggestions by seeded multivariate TPE.

    The n-th suggestion depends on the seed, on n, and on what had begun and ended before it. With one trial at a
    time, a sweep that was killed and resumed therefore suggests the same as one that was not. Several trials may
    end in another order, and the suggestions after the start-up trials can then differ. With
    `search.deterministic` they do not: where L trials run at a time, a suggestion waits until all before it except
    the last L - 1 have ended, and uses only their results.

    Args:
        plan: The points and the axes.
        root: The folder of the checkpoints.
        journal: What began and ended so far; what begins and ends from now on is added to it.
        withdrawn: Points that were taken out of the space since the sweep began; the journal's entries about them
            are skipped.
    """

    def __init__(self, plan: Plan, root: Path, journal: Journal, withdrawn: Collection[str] = ()) -> None:
        self.plan, self.root, self._journal, self._withdrawn = plan, root, journal, withdrawn
        self.study = optuna.create_study(direction="maximize")
        self.configs: dict[str, TrialConfig] = dict(plan.points)
        self.failures: dict[str, str] = {}
        self.ended: set[str] = set()
        self._chosen: dict[str, dict[str, Scalar]] = {}  # the sampled configurations, in order
        self._asked: dict[str, optuna.Trial] = {}  # those that Optuna has not been told the result of
        self._results: dict[int, tuple[str, float | None]] = {}  # by trial number, results to tell Optuna
        self._told = 0
        self._queue: deque[str] = deque(plan.points)
        self._study_file: StudyFile | None = None
        self._replay()
        if plan.space.search.trials:
            ended = [trial for trial in self.study.get_trials() if trial.state.is_finished()]
            self._study_file = StudyFile(root.parent / "optuna.log", plan.space.name, ended)

    def _replay(self) -> None:
        """Bring study and queue to where the journal ends; a trial that began and did not end goes first."""
        for entry in self._journal.entries():
            name = entry["config"]
            if name in self._withdrawn:
                continue
            if entry["event"] == "began":
                if name not in self.configs:
                    self.study.enqueue_trial(entry["chosen"])
                    self._begin(self.study.ask(), name)
                    self._queue.append(name)
            else:
                self._queue = deque(other for other in self._queue if other != name)
                self._end(name, entry["score"], entry["cause"])

    def _begin(self, trial: optuna.Trial, name: str | None = None) -> str:
        chosen = self.plan.suggest(trial)
        config = self.plan.config(chosen)
        if name is None:
            name = config_name(config)
            if name in self.configs:
                # Categorical spaces repeat themselves; the same name would overwrite the first one's results.
                name = f"{name}-{trial.number}"
        trial.set_user_attr("config", name)
        self.configs[name], self._chosen[name], self._asked[name] = config, chosen, trial
        return name

    def _end(self, name: str, score: float | None, cause: str) -> None:
        self.ended.add(name)
        if cause:
            self.failures[name] = cause
        if name in self._asked:
            self._results[self._asked[name].number] = name, score
            self._tell_results()

    def _tell_results(self) -> None:
        """Tell Optuna the results: at once or, if deterministic, in order and no more than the next may know."""
        search, asked = self.plan.space.search, self._sampled
        in_order = search.deterministic and asked < search.trials
        last = asked - self._at_once if in_order else asked
        for number in sorted(self._results):
            if in_order and not self._told == number <= last:
                break
            name, score = self._results.pop(number)
            state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
            ended = self.study.tell(self._asked.pop(name), score, state=state)
            self._told += 1
            if self._study_file:
                self._study_file.add(ended)

    @property
    def _sampled(self) -> int:
        """Configurations sampled so far; Optuna's own list is copied whole each time it is read."""
        return len(self._chosen)

    @property
    def _at_once(self) -> int:
        resources = self.plan.space.resources
        return (resources.trials_at_once or 1) * resources.pack

    def _can_suggest(self) -> bool:
        """Return whether Optuna knows all results that the next suggestion must use."""
        self._tell_results()
        return not self.plan.space.search.deterministic or self._told > self._sampled - self._at_once

    @property
    def total(self) -> int:
        """Configurations of the whole sweep."""
        return len(self.plan.points) + self.plan.space.search.trials

    def propose(self) -> dict[str, Any] | Wait | None:
        """Return the settings of the next trial (`m2ray.engine.trial.run_trial`).

        Returns:
            None after the last trial; WAIT where a running trial must end first.
        """
        if self._queue:
            name = self._queue.popleft()
        elif self._sampled >= self.plan.space.search.trials:
            return None
        elif not self._can_suggest():
            return WAIT
        else:
            name = self._suggest()
        config = self.configs[name]
        self._journal.append({"event": "began", "config": name, "chosen": self._chosen.get(name, {})})
        return {
            "config": name,
            "trial": config.model_dump_json(),
            "seeds": self.plan.space.search.seeds,
            "root": str(self.root),
            "point": name in self.plan.points,
            "params": self.params(config),
            "resources": self.plan.space.resources.model_dump(),
        }

    def _suggest(self) -> str:
        # A new sampler for each suggestion leaves nothing to restore when a sweep is resumed.
        search = self.plan.space.search
        self.study.sampler = optuna.samplers.TPESampler(
            seed=search.sampler_seed * SAMPLER_STRIDE + self._sampled,
            multivariate=True,
            group=True,
            n_startup_trials=search.startup,
            # Avoids what is running, through notes on its trials that a resumed search cannot write again.
            constant_liar=not search.deterministic,
        )
        return self._begin(self.study.ask())

    def params(self, config: TrialConfig) -> dict[str, Scalar]:
        """Return a configuration's columns on the leaderboard."""
        tree = config.model_dump()
        keys = dict.fromkeys([*self.plan.space.axes, *LEADERBOARD_KEYS])
        return {key: get_key(tree, key) for key in keys if key != "codec.k"}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Record in the journal how a trial ended, and tell Optuna."""
        self._journal.append({"event": "ended", "config": name, "score": score, "cause": cause})
        self._end(name, score, cause)
