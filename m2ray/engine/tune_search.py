"""Run trials with Ray Tune: a proposer chooses them, and an observer is notified of every epoch."""

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
from m2ray.engine import ray_internals
from m2ray.engine.cluster import worker_resources
from m2ray.engine.killed_workers import restarts_of_trials
from m2ray.engine.proposer import WAIT, Wait
from m2ray.engine.trial import run_trial


class Proposer(Protocol):
    """Source of the configurations to train; `m2ray.engine.proposer` has the one that asks Optuna."""

    def propose(self) -> dict[str, Any] | Wait | None:
        """Return the next configuration's settings, None after the last, WAIT if a trial must end first."""

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Record that a configuration's trial ended; without a score it failed, and `cause` says why."""


class Observer(Protocol):
    """Receiver of a search's progress."""

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Record an epoch's metrics."""

    def tick(self) -> None:
        """Do other work; called after every step of Tune's loop."""


class _Unpickled:
    """Base of searchers and callbacks whose state stays out of Tune's snapshots.

    Tune pickles both to restore a run. A sweep resumes from its own journal instead, which is exact at any moment.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unpickled, Searcher):
    """Tune searcher that asks a proposer; a trial is a pack of configurations."""

    def __init__(self, proposer: Proposer, pack: int) -> None:
        super().__init__(metric="score", mode="max")
        self._proposer, self._pack = proposer, pack
        self._reports: dict[str, dict[str, dict[str, Any]]] = {}  # the last one, by trial and member

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        members: list[dict[str, Any]] = []
        proposal: dict[str, Any] | Wait | None = None
        while len(members) < self._pack and isinstance(proposal := self._proposer.propose(), dict):
            members.append(proposal)
        if not members:
            return None if proposal == WAIT else str(Searcher.FINISHED)
        self._reports[trial_id] = {member["config"]: {} for member in members}
        return {"pack": members, "point": all(member["point"] for member in members)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "member" in result:
            self._reports[trial_id][result["member"]] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result:
            self.on_trial_result(trial_id, result)
        for name, last in self._reports.pop(trial_id).items():
            score, cause = float(last.get("score", math.nan)), last.get("cause", "")
            if error and not cause and last.get("progress") != last.get("epochs_total", 0):
                cause = "its process died (out of memory is the usual reason), each time it was tried"
            elif not cause and not math.isfinite(score):
                cause = f"score {score} on the search split"
            self._proposer.finished(name, None if cause else score, cause)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, see `_Unpickled`."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, see `_Unpickled`."""


class _Callback(_Unpickled, ray.tune.Callback):
    """Tune callback that notifies an observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._observer.tick()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if "epoch" in result:
            self._observer.reported(result["member"], result)


# --- pruners -------------------------------------------------------------------------------------------------


class _SparePoints(TrialScheduler):
    """Scheduler that stops no points: they are pre-registered, and train to their end."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return the pruner's decision, except for points."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(TrialScheduler.CONTINUE if trial.config["point"] else decision)


class _PairedStop(FIFOScheduler):
    """Scheduler that stops a trial with worse answers than the best trial had at the same epoch.

    Their answers are compared episode by episode, on the search split, by a one-sided Wilcoxon signed-rank test on
    the NLL. That is far more sensitive than a comparison of two means over few episodes.
    """

    ALPHA = 0.01

    def __init__(self) -> None:
        super().__init__()
        self._best: dict[int, tuple[float, list[float]]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Keep the best trial of each epoch; stop a trial that is clearly behind it."""
        if "episode_nll" not in result:
            return str(TrialScheduler.CONTINUE)
        progress, score, nll = result["progress"], result["score"], result["episode_nll"]
        best = self._best.get(progress)
        if best is None or score > best[0]:
            self._best[progress] = (score, nll)
            return str(TrialScheduler.CONTINUE)
        behind = nll != best[1] and scipy.stats.wilcoxon(nll, best[1], alternative="greater").pvalue < self.ALPHA
        return str(TrialScheduler.STOP if behind else TrialScheduler.CONTINUE)


class PairedStop(_SparePoints, _PairedStop):
    """The pruner `wilcoxon`."""


class Halving(_SparePoints, ASHAScheduler):
    """The pruner `asha`."""


def make_scheduler(pruner: str, total_epochs: int) -> TrialScheduler:
    """Return the scheduler that stops trials early: `none`, `asha` or `wilcoxon`."""
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


# --- the search ----------------------------------------------------------------------------------------------


def trials_at_once(resources: Resources) -> int:
    """Return how many packs run at a time: as configured, or as many as the cluster has room for now.

    No more are requested ahead of time: the searcher would suggest them without the results of what runs now.
    """
    if resources.trials_at_once is not None:
        return resources.trials_at_once
    available = ray.cluster_resources()
    return max(1, min(int(available.get(name, 0) // n) for name, n in worker_resources(resources).items()))


def _trial_resources(settings: dict[str, Any], resources: Resources) -> ray.tune.PlacementGroupFactory:
    if any(json.loads(member["trial"])["workers"] > 1 for member in settings["pack"]):
        # A nested trial's driver must not hold a CPU that its own workers wait for.
        return ray.tune.PlacementGroupFactory([{ray_internals.HEAD_NODE: ray_internals.SLIVER}])
    bundle = worker_resources(resources)
    if resources.accelerator:
        bundle[f"{ray_internals.ACCELERATOR_PREFIX}{resources.accelerator}"] = ray_internals.SLIVER
    return ray.tune.PlacementGroupFactory([bundle])


def run_search(
    proposer: Proposer,
    observer: Observer,
    resources: Resources,
    pruner: str,
    total_epochs: int,
    folder: Path,
    nested: bool = False,
    work: Callable[[dict[str, Any]], None] = run_trial,
    name: str = "search",
) -> None:
    """Run trials until the proposer has no more.

    Args:
        proposer: Chooses what to train.
        observer: Is notified of every epoch.
        resources: Resources of one trial.
        pruner: none, asha or wilcoxon.
        total_epochs: Epochs of the longest trial, all its training seeds together.
        folder: Folder for Ray's own files.
        nested: True if a training has several workers.
        work: The work of a trial.
        name: Start of the name of Ray's own folder: each call in a process needs another.
    """
    at_once = trials_at_once(resources)
    # Tune starts one trial at a time where a searcher is given: seconds for each slot of a large cluster.
    os.environ[ray_internals.MAX_PENDING_TRIALS] = str(at_once)
    if nested:
        ray_internals.set_cluster_of_nested_trials(ray.get_runtime_context().gcs_address)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(work, lambda settings: _trial_resources(settings, resources)),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Searcher(proposer, resources.pack),
            scheduler=make_scheduler(pruner, total_epochs),
            num_samples=-1,
            max_concurrent_trials=at_once,
            # A nested trial that is stopped early would leave its kept process with its workers, and their CPUs.
            reuse_actors=not nested,
        ),
        run_config=ray.tune.RunConfig(
            name=f"{name}-{os.getpid()}",
            storage_path=str(folder),
            verbose=0,
            failure_config=restarts_of_trials(resources),
            callbacks=[_Callback(observer)],
        ),
    )
    tuner.fit()
