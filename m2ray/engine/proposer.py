"""Decide which configuration is trained next: first the points, then what Optuna suggests.

Every step is journalled, so that a killed sweep resumes where it was: Optuna is told the results of trials that
ended again, and unfinished trials resume.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna

from m2ray.config.axis import Scalar
from m2ray.config.plan import Plan, Sampled, config_name
from m2ray.config.trial import TrialConfig
from m2ray.engine.study.bounded_tpe import BoundedTPE, EndedTrials
from m2ray.engine.study.study_file import StudyFile
from m2ray.util.journal import Journal
from m2ray.util.trees import get_key

Wait = Literal["later"]
WAIT: Wait = "later"

# A space with `when` needs TPE's grouping of conditional keys, which has been experimental since 2021.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLER_STRIDE = 1_000_003  # keeps the suggestions of different sampler seeds apart
# Suggestions in a row that repeat a known configuration: after so many they are drawn at random, and after so many
# the next combination that is new is taken.
REPEATS_BEFORE_RANDOM, REPEATS_BEFORE_NEXT = 4, 8

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
CHANNEL_KEYS = ("codec.channel", "codec.channel_layers")  # where any configuration has another than the default


class OptunaProposer:
    """Proposes the points, then `search.trials` suggestions by seeded multivariate TPE, or all of a grid.

    A suggestion that repeats a configuration is not trained again: Optuna is told the score that is known, or will
    be once the configuration has ended, and another suggestion is made. The search ends early where the axes have
    no further combination.

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
        self._wanted = plan.samples  # configurations to sample
        self._scores: dict[str, float | None] = {}  # of what has ended; None: it failed
        self._chosen: dict[str, dict[str, Scalar]] = {}  # the sampled configurations, in order
        self._known = {config_name(config): name for name, config in reversed(plan.points.items())}
        self._suggested = 0  # Optuna's own list is copied whole each time it is read
        self._repeats = 0  # suggestions since the last that was new
        self._untold: dict[str, list[optuna.Trial]] = {}  # trials that wait for their configuration to end
        self._results: dict[int, tuple[optuna.Trial, float | None]] = {}  # by trial number, results to tell Optuna
        self._told = 0
        self._with_result = EndedTrials()
        self._queue: deque[str] = deque(plan.points)
        self._begun: set[str] = set()  # what has begun and not ended
        self.closed = False  # start nothing new
        self._combinations = plan.combinations()  # those that were taken from it are known
        self._replay()
        entries = [entry for entry in journal.entries() if entry["config"] not in withdrawn]
        self._study_file = StudyFile(root.parent / "optuna.log", plan, entries)

    def _replay(self) -> None:
        """Bring study and queue to where the journal ends; a trial that began and did not end goes first."""
        for entry in self._journal.entries():
            name, event = entry["config"], entry["event"]
            if name in self._withdrawn:
                continue
            if event == "began":
                self._begun.add(name)
            if event == "ended":
                self._begun.discard(name)
                self._queue = deque(other for other in self._queue if other != name)
                self._end(name, entry["score"], entry["cause"])
            elif name not in self.configs or event == "repeated":
                trial = self._ask(entry["chosen"])
                if event == "repeated":
                    self._repeat(trial, name)
                    continue
                sampled = self.plan.sampled(entry["chosen"])
                self._begin(trial, name, entry["chosen"], sampled)
                if sampled.config is None:
                    self._end(name, None, sampled.error)
                else:
                    self._queue.append(name)

    def _ask(self, chosen: Mapping[str, Scalar] | None = None) -> optuna.Trial:
        """Return a new trial of the study, with these values where they are given."""
        if chosen is not None:
            self.study.enqueue_trial(dict(chosen))
        self._suggested += 1
        trial = self.study.ask()
        if chosen is not None:
            self.plan.suggest(trial)
        return trial

    def _begin(self, trial: optuna.Trial, name: str, chosen: dict[str, Scalar], sampled: Sampled) -> None:
        """Take note of a configuration that is sampled for the first time."""
        trial.set_user_attr("config", name)
        self._chosen[name], self._repeats = chosen, 0
        self._known.setdefault(sampled.name, name)
        self._untold.setdefault(name, []).append(trial)
        if sampled.config is not None:
            self.configs[name] = sampled.config

    def _repeat(self, trial: optuna.Trial, name: str) -> None:
        """Take note of a suggestion that repeats a configuration."""
        trial.set_user_attr("config", name)
        self._repeats += 1
        self._untold.setdefault(name, []).append(trial)
        if name in self._scores:
            self._end(name, self._scores[name], self.failures.get(name, ""))

    def _end(self, name: str, score: float | None, cause: str) -> None:
        self._scores[name] = score
        if cause:
            self.failures[name] = cause
        for trial in self._untold.pop(name, []):
            self._results[trial.number] = trial, score
        self._tell_results()

    @property
    def ended(self) -> set[str]:
        """The names of the configurations that have ended."""
        return set(self._scores)

    def _tell_results(self) -> None:
        """Tell Optuna the results: at once or, if deterministic, in order and no more than the next may know."""
        in_order = self.plan.space.search.deterministic and len(self._chosen) < self._wanted
        last = self._suggested - self._at_once if in_order else self._suggested
        for number in sorted(self._results):
            if in_order and not self._told == number <= last:
                break
            trial, score = self._results.pop(number)
            state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
            told = self.study.tell(trial, score, state=state)
            if score is not None:
                self._with_result.add(told)
            self._told += 1

    @property
    def _at_once(self) -> int:
        resources = self.plan.space.resources
        return (resources.trials_at_once or 1) * resources.pack

    def _can_suggest(self) -> bool:
        """Return whether Optuna knows all results that the next suggestion must use."""
        self._tell_results()
        search = self.plan.space.search
        waits = search.deterministic and search.sampler != "grid"
        return not waits or self._told > self._suggested - self._at_once

    @property
    def left_out(self) -> list[str]:
        """What has not begun: points by name, and the number of configurations that were to be sampled."""
        points = [f"point {name}" for name in self._queue if name not in self._begun]
        missing = self._wanted - len(self._chosen)
        return [*points, *([f"{missing} sampled"] if missing else [])]

    @property
    def total(self) -> int:
        """Configurations of the whole sweep."""
        return len(self.plan.points) + self._wanted

    def propose(self) -> dict[str, Any] | Wait | None:
        """Return the settings of the next trial (`m2ray.engine.trial.run_trial`).

        Returns:
            None after the last trial; WAIT where a running trial must end first.
        """
        if self.closed:
            self._queue = deque(sorted(self._queue, key=lambda name: name not in self._begun))
            if not self._queue or self._queue[0] not in self._begun:
                return None
        if self._queue:
            name = self._queue.popleft()
        else:
            suggested = self._suggest_new()
            if suggested is None or suggested == WAIT:
                return suggested
            name = suggested
        self._begun.add(name)
        chosen = self._chosen.get(name, {})
        self._journal.append({"event": "began", "config": name, "chosen": chosen})
        self._study_file.began(name, chosen)
        return self.settings(name, self.plan.space.search.seeds)

    def settings(self, name: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the settings of the trial that trains a configuration with these training seeds."""
        config = self.configs[name]
        return {
            "config": name,
            "trial": self.plan.told(config).model_dump_json(),
            "seeds": list(seeds),
            "root": str(self.root),
            "point": name in self.plan.points,
            "params": self.params(config),
            "resources": self.plan.space.resources.model_dump(),
        }

    def _suggest_new(self) -> str | Wait | None:
        """Suggest until a configuration is new, and return its name; None where there is none, or enough."""
        while len(self._chosen) < self._wanted:
            if not self._can_suggest():
                return WAIT
            chosen: Mapping[str, Scalar] | None = None
            takes_next = self._repeats >= REPEATS_BEFORE_NEXT or self.plan.space.search.sampler == "grid"
            if takes_next and (chosen := self._next_unknown()) is None:
                self._wanted = len(self._chosen)
                break
            self.study.sampler = self._sampler()
            trial = self._ask(chosen)
            values = self.plan.suggest(trial)
            sampled = self.plan.sampled(values)
            if known := self._known.get(sampled.name):
                self._journal.append({"event": "repeated", "config": known, "chosen": values})
                self._study_file.repeated(known, values, known in self._scores, self._scores.get(known))
                self._repeat(trial, known)
                continue
            name = sampled.name
            if name in self.configs:  # the name of a point with other settings
                name = f"{name}-{trial.number}"
            self._begin(trial, name, values, sampled)
            if sampled.config is not None:
                return name
            # The values do not fit together: the configuration has failed before its training.
            self._journal.append({"event": "began", "config": name, "chosen": values})
            self._study_file.began(name, values)
            self.finished(name, None, sampled.error)
        self._tell_results()
        return None

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Return a new sampler, one for each suggestion: a resumed sweep then has nothing to restore."""
        search = self.plan.space.search
        seed = search.sampler_seed * SAMPLER_STRIDE + self._suggested
        if self._repeats >= REPEATS_BEFORE_RANDOM:
            return optuna.samplers.RandomSampler(seed=seed)
        waiting = [trial for trials in self._untold.values() for trial in trials]
        return BoundedTPE(
            self._with_result,
            [*waiting, *(trial for trial, _ in self._results.values())],
            seed=seed,
            multivariate=True,
            group=True,
            n_startup_trials=search.startup,
            # Avoids what is running, through notes on its trials that a resumed search cannot write again.
            constant_liar=not search.deterministic,
        )

    def _next_unknown(self) -> Mapping[str, Scalar] | None:
        """Return the first combination of the axes that no configuration has; None if there is none."""
        return next((c for c in self._combinations if self.plan.sampled(c).name not in self._known), None)

    def params(self, config: TrialConfig) -> dict[str, Scalar]:
        """Return a configuration's columns on the leaderboard."""
        # A dump leaves the channel out where it is the default.
        tree = {**config.model_dump(), "codec": dict(config.codec)}
        several = any(each.codec.channel != "embeddings" for each in self.plan.all)
        keys = dict.fromkeys([*self.plan.space.axes, *LEADERBOARD_KEYS, *(CHANNEL_KEYS if several else ())])
        return {key: get_key(tree, key) for key in keys if key != "codec.k"}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Record in the journal how a trial ended, and tell Optuna."""
        self._journal.append({"event": "ended", "config": name, "score": score, "cause": cause})
        self._study_file.ended(name, score)
        self._end(name, score, cause)
