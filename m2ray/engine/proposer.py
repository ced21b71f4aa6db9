"""Which configuration is trained next: first the points, then what Optuna suggests. Journalled, so that a sweep
that was killed goes on where it was: what ended is told to Optuna again, what had begun is trained on.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
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


# TPE's grouping of conditional keys is what a space with `when` needs; it has been experimental since 2021.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


# Columns of the board besides the searched keys.
BOARD_KEYS = (
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
    """The study in a file that optuna-dashboard opens as it is: `optuna-dashboard results/NAME/optuna.log`.

    For eyes only. A sweep resumes from its own journal, and this file is made anew then.
    """

    def __init__(self, file: Path, name: str, ended: Sequence[optuna.trial.FrozenTrial]) -> None:
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        for trial in ended:
            self.add(trial)

    def add(self, trial: optuna.trial.FrozenTrial) -> None:
        """Show a trial that has ended."""
        self._study.add_trial(trial)


class OptunaProposer:
    """Points first, then `search.trials` suggestions by multivariate TPE, seeded.

    The n-th suggestion depends on the seed, on n and on what had begun and ended before it, and on nothing else:
    with one trial at a time, a sweep that was killed and resumed suggests what it would have suggested anyway.
    Several may end in another order, and then what TPE suggests after the start-up trials can differ. Not so with
    `search.deterministic`: where L trials run at a time, a suggestion waits for all before it but the last L - 1
    to end, and knows of these alone.
    """

    def __init__(self, plan: Plan, root: Path, journal: Journal) -> None:
        self.plan, self.root, self._journal = plan, root, journal
        self.study = optuna.create_study(direction="maximize")
        self.configs: dict[str, TrialConfig] = dict(plan.points)
        self.failures: dict[str, str] = {}
        self.ended: set[str] = set()
        self._asked: dict[str, optuna.Trial] = {}
        # By trial number, what ended and Optuna is not told; and how many it is.
        self._untold: dict[int, tuple[str, float | None]] = {}
        self._told = 0
        self._chosen: dict[str, dict[str, Scalar]] = {}
        self._ahead: deque[str] = deque(plan.points)
        self._shown: StudyFile | None = None
        self._replay()
        if plan.space.search.trials:
            ended = [trial for trial in self.study.get_trials() if trial.state.is_finished()]
            self._shown = StudyFile(root.parent / "optuna.log", plan.space.name, ended)

    def _replay(self) -> None:
        """Bring study and queue to where the journal ends; what began and did not end goes first again."""
        for entry in self._journal.entries():
            name = entry["config"]
            if entry["event"] == "began":
                if name not in self.configs:
                    self.study.enqueue_trial(entry["chosen"])
                    self._begin(self.study.ask(), name)
                    self._ahead.append(name)
            else:
                self._ahead = deque(other for other in self._ahead if other != name)
                self._end(name, entry["score"], entry["cause"])

    def _begin(self, trial: optuna.Trial, name: str | None = None) -> str:
        chosen = self.plan.suggest(trial)
        config = self.plan.config(chosen)
        if name is None:
            name = config_name(config)
            if name in self.configs:
                # All-categorical spaces repeat themselves; the same name would overwrite the first one's results.
                name = f"{name}-{trial.number}"
        trial.set_user_attr("config", name)
        self.configs[name], self._chosen[name], self._asked[name] = config, chosen, trial
        return name

    def _end(self, name: str, score: float | None, cause: str) -> None:
        self.ended.add(name)
        if cause:
            self.failures[name] = cause
        if name in self._asked:
            self._untold[self._asked[name].number] = name, score
            self._tell()

    def _tell(self) -> None:
        """Tell Optuna what ended: at once, or in the order of the trials and no more than the next may know."""
        search, asked = self.plan.space.search, self._sampled
        in_order = search.deterministic and asked < search.trials
        last = asked - self._at_once if in_order else asked
        for number in sorted(self._untold):
            if in_order and not self._told == number <= last:
                break
            name, score = self._untold.pop(number)
            state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
            told = self.study.tell(self._asked.pop(name), score, state=state)
            self._told += 1
            if self._shown:
                self._shown.add(told)

    @property
    def _sampled(self) -> int:
        """Configurations asked of Optuna so far; its own list is copied whole each time it is looked at."""
        return len(self._chosen)

    @property
    def _at_once(self) -> int:
        resources = self.plan.space.resources
        return (resources.trials_at_once or 1) * resources.pack

    def _knows_enough(self) -> bool:
        """Whether Optuna has been told of all that the next suggestion is to know."""
        self._tell()
        return not self.plan.space.search.deterministic or self._told > self._sampled - self._at_once

    @property
    def total(self) -> int:
        """Configurations of the whole sweep."""
        return len(self.plan.points) + self.plan.space.search.trials

    def propose(self) -> dict[str, Any] | Wait | None:
        """Settings of the next trial (see `m2ray.trial.run_trial`), None when there is no more, `LATER` when one
        that runs must end first.
        """
        if self._ahead:
            name = self._ahead.popleft()
        elif self._sampled >= self.plan.space.search.trials:
            return None
        elif not self._knows_enough():
            return WAIT
        else:
            # A sampler of its own for each suggestion: nothing to restore when a sweep is resumed.
            search = self.plan.space.search
            self.study.sampler = optuna.samplers.TPESampler(
                seed=search.sampler_seed * 1_000_003 + self._sampled,
                multivariate=True,
                group=True,
                n_startup_trials=search.startup,
                # Keeps away from what runs, by notes on its trials that a resumed search cannot make again.
                constant_liar=not search.deterministic,
            )
            name = self._begin(self.study.ask())
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

    def params(self, config: TrialConfig) -> dict[str, Scalar]:
        """A configuration's columns on the board."""
        tree = config.model_dump()
        keys = dict.fromkeys([*self.plan.space.axes, *BOARD_KEYS])
        return {key: get_key(tree, key) for key in keys if key != "codec.k"}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Tell Optuna and the journal how a trial ended."""
        self._journal.append({"event": "ended", "config": name, "score": score, "cause": cause})
        self._end(name, score, cause)
