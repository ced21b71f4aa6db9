"""Which configuration is trained next: first the points, then what Optuna suggests. Journalled, so that a sweep
that was killed goes on where it was: what ended is told to Optuna again, what had begun is trained on.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from m2ray.config import TrialConfig
from m2ray.space import Plan, Scalar, fetch, name_of

# TPE's grouping of conditional keys is what a space with `when` needs; it has been experimental since 2021.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

# Columns of the board besides the searched keys.
PARAMS = (
    "codec.encoder",
    "codec.place",
    "codec.bottleneck",
    "codec.scale_gate",
    "training.lr",
    "training.batch_size",
    "training.epochs",
    "losses.contrast.weight",
)


class Journal:
    """One JSON object a line, appended and synced: what began and what ended."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(dict(entry)) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """All lines; one torn by a crash in mid-write is left out: what it said had not happened yet."""
        if not self._file.is_file():
            return []
        found = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found


class OptunaProposer:
    """Points first, then `search.trials` suggestions by multivariate TPE, seeded.

    Suggestions repeat exactly as long as trials end in the same order; with several at a time the order can
    differ, and then what TPE suggests after the start-up trials can, too.
    """

    def __init__(self, plan: Plan, root: Path, journal: Journal) -> None:
        self.plan, self.root, self._journal = plan, root, journal
        search = plan.space.search
        sampler = optuna.samplers.TPESampler(
            seed=search.sampler_seed, multivariate=True, group=True, n_startup_trials=search.startup
        )
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.configs: dict[str, TrialConfig] = {}
        self.failures: dict[str, str] = {}
        self._asked: dict[str, optuna.Trial] = {}
        self._chosen: dict[str, dict[str, Scalar]] = {}
        self._sampled = 0
        self._ahead: deque[str] = deque(plan.points)
        self.configs.update(plan.points)
        self._replay()

    def _replay(self) -> None:
        begun: dict[str, dict[str, Scalar]] = {}
        for entry in self._journal.entries():
            name = entry["config"]
            if entry["event"] == "began":
                begun[name] = entry["chosen"]
                continue
            self._ahead = deque(other for other in self._ahead if other != name)
            chosen = begun.pop(name, {})
            if entry["cause"]:
                self.failures[name] = entry["cause"]
            if name not in self.plan.points:
                self._sampled += 1
                self.configs[name] = self.plan.config(chosen)
                self._tell_past(chosen, entry["score"])
        for name, chosen in begun.items():
            if name not in self.plan.points:
                self._sampled += 1
                self.configs[name] = self.plan.config(chosen)
                self._chosen[name] = chosen
                self._ahead.append(name)

    def _tell_past(self, chosen: Mapping[str, Scalar], score: float | None) -> None:
        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        past = optuna.trial.create_trial(
            params=dict(chosen), distributions=self.plan.distributions(chosen), value=score, state=state
        )
        self.study.add_trial(past)

    @property
    def total(self) -> int:
        """Configurations of the whole sweep."""
        return len(self.plan.points) + self.plan.space.search.trials

    def propose(self) -> dict[str, Any] | None:
        """Settings of the next trial (see `m2ray.cluster.run_trial`), None when there is no more."""
        if self._ahead:
            name = self._ahead.popleft()
        elif self._sampled < self.plan.space.search.trials:
            name = self._sample()
        else:
            return None
        config = self.configs[name]
        self._journal.append({"event": "began", "config": name, "chosen": self._chosen.get(name, {})})
        return {
            "config": name,
            "trial": config.model_dump_json(),
            "seeds": self.plan.space.search.seeds,
            "root": str(self.root),
            "params": self.params(config),
            "resources": self.plan.space.resources.model_dump(),
        }

    def _sample(self) -> str:
        trial = self.study.ask()
        chosen = self.plan.suggest(trial)
        config = self.plan.config(chosen)
        name = name_of(config)
        self._sampled += 1
        if name in self.configs:
            # All-categorical spaces repeat themselves; a second run under the same name would overwrite the first.
            name = f"{name}-{trial.number}"
        self.configs[name], self._chosen[name], self._asked[name] = config, chosen, trial
        return name

    def params(self, config: TrialConfig) -> dict[str, Scalar]:
        """A configuration's columns on the board."""
        tree = config.model_dump()
        keys = dict.fromkeys([*self.plan.space.axes, *PARAMS])
        return {key: fetch(tree, key) for key in keys if key != "codec.k"}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Tell Optuna and the journal how a trial ended."""
        self._journal.append({"event": "ended", "config": name, "score": score, "cause": cause})
        if cause:
            self.failures[name] = cause
        if name in self._asked:
            state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
            self.study.tell(self._asked.pop(name), score, state=state)
        elif name in self._chosen:
            self._tell_past(self._chosen[name], score)
