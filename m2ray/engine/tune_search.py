"""The search: Ray Tune runs the trials that a proposer names, and tells an observer of every epoch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray.tune
import scipy
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from m2ray.config.space import Resources
from m2ray.engine.cluster import worker_resources
from m2ray.engine.proposer import WAIT, Wait
from m2ray.engine.trial import run_trial


class Proposer(Protocol):
    """Who decides what is trained next; `m2ray.sweep` has the one that asks Optuna."""

    def propose(self) -> dict[str, Any] | Wait | None:
        """Settings of the next trial, None when there is no more, `LATER` when one that runs must end first."""

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """A trial ended; without a score it failed."""


class Observer(Protocol):
    """Who watches a search."""

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """A trial reported an epoch."""

    def tick(self) -> None:
        """Called often, between anything else."""


class _Unsaved:
    """Tune pickles searchers and callbacks to restore a run from. A sweep resumes from its own journal instead,
    which is exact at any moment, so what they refer to stays out of the pickle.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """Tune's view of a proposer."""

    def __init__(self, proposer: Proposer, pack: int) -> None:
        super().__init__(metric="score", mode="max")
        self._proposer, self._pack = proposer, pack
        self._said: dict[str, dict[str, dict[str, Any]]] = {}  # by trial and member, its last report

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        members: list[dict[str, Any]] = []
        said: dict[str, Any] | Wait | None = None
        while len(members) < self._pack and isinstance(said := self._proposer.propose(), dict):
            members.append(said)
        if not members:
            return None if said == WAIT else str(Searcher.FINISHED)
        self._said[trial_id] = {member["config"]: {} for member in members}
        return {"pack": members, "point": all(member["point"] for member in members)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "member" in result:
            self._said[trial_id][result["member"]] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result:
            self.on_trial_result(trial_id, result)
        for name, last in self._said.pop(trial_id).items():
            score, cause = float(last.get("score", math.nan)), last.get("cause", "")
            if error and not cause and last.get("progress") != last.get("epochs_total", 0):
                cause = "its process died (out of memory is the usual reason), each time it was tried"
            elif not cause and not math.isfinite(score):
                cause = f"score {score} on the search split"
            self._proposer.finished(name, None if cause else score, cause)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: see `_Unsaved`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: see `_Unsaved`."""


class _Watch(_Unsaved, ray.tune.Callback):
    """Tune's view of an observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._observer.tick()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if "epoch" in result:
            self._observer.reported(result["member"], result)


class _Spare(TrialScheduler):
    """Points are pre-registered: they are trained to their end whatever a pruner thinks of them."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The pruner's decision, but for points."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(TrialScheduler.CONTINUE if trial.config["point"] else decision)


class _PairedStop(FIFOScheduler):
    """Stops a trial whose answers are worse, episode by episode, than the best trial's at the same epoch.

    One-sided Wilcoxon signed-rank test on the paired per-episode NLL of the search split: far sharper than
    comparing two means over few episodes.
    """

    ALPHA = 0.01

    def __init__(self) -> None:
        super().__init__()
        self._best: dict[int, tuple[float, list[float]]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Keep the best at each epoch; stop what is clearly behind it."""
        if "episode_nll" not in result:
            return str(TrialScheduler.CONTINUE)
        progress, score, nll = result["progress"], result["score"], result["episode_nll"]
        best = self._best.get(progress)
        if best is None or score > best[0]:
            self._best[progress] = (score, nll)
            return str(TrialScheduler.CONTINUE)
        behind = nll != best[1] and scipy.stats.wilcoxon(nll, best[1], alternative="greater").pvalue < self.ALPHA
        return str(TrialScheduler.STOP if behind else TrialScheduler.CONTINUE)


class PairedStop(_Spare, _PairedStop):
    """The pruner `wilcoxon`."""


class Halving(_Spare, ASHAScheduler):
    """The pruner `asha`."""


def make_scheduler(pruner: str, total_epochs: int) -> TrialScheduler:
    """What stops trials early: `none`, `asha` or `wilcoxon`."""
    if pruner == "asha":
        return Halving(
            time_attr="progress",
            metric="score",
            mode="max",
            max_t=total_epochs,
            grace_period=1,
            reduction_factor=3,
        )
    return PairedStop() if pruner == "wilcoxon" else FIFOScheduler()


def trials_at_once(resources: Resources) -> int:
    """How many packs run at a time: as configured, or as many as the cluster has room for as it is now.

    No more are asked for ahead: the searcher would suggest them without knowing what runs now.
    """
    if resources.trials_at_once is not None:
        return resources.trials_at_once
    there = ray.cluster_resources()
    return max(1, min(int(there.get(name, 0) // amount) for name, amount in worker_resources(resources).items()))


def run_search(
    proposer: Proposer,
    observer: Observer,
    resources: Resources,
    pruner: str,
    total_epochs: int,
    folder: Path,
    nested: bool = False,
    work: Callable[[dict[str, Any]], None] = run_trial,
) -> None:
    """Run trials until the proposer has no more.

    Args:
        proposer: Names what to train.
        observer: Is told of every epoch.
        resources: Of one trial.
        pruner: none, asha or wilcoxon.
        total_epochs: Longest trial, all its training seeds together.
        folder: For Ray's own files.
        nested: Whether trainings have workers of their own.
        work: What a trial does.
    """

    def resources_of(settings: dict[str, Any]) -> Any:
        if any(json.loads(member["trial"])["workers"] > 1 for member in settings["pack"]):
            # A nested trial's driver must not hold a CPU that its own workers wait for.
            return ray.tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
        bundle = worker_resources(resources)
        if resources.accelerator:
            bundle[f"accelerator_type:{resources.accelerator}"] = 0.001
        return ray.tune.PlacementGroupFactory([bundle])

    at_once = trials_at_once(resources)
    # Tune starts one trial at a time where a searcher is asked for more: seconds for each slot of a large cluster.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(work, resources_of),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Searcher(proposer, resources.pack),
            scheduler=make_scheduler(pruner, total_epochs),
            num_samples=-1,
            max_concurrent_trials=at_once,
            # The kept process of a nested trial that was stopped early would keep its workers, and their CPUs.
            reuse_actors=not nested,
        ),
        run_config=ray.tune.RunConfig(
            name=f"search-{os.getpid()}",
            storage_path=str(folder),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=resources.retries),
            callbacks=[_Watch(observer)],
        ),
    )
    tuner.fit()
