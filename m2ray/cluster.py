"""All of Ray: the trials (Tune), the distributed training (Train), the evaluators (an actor pool).

The science runs without this file; here it is only spread over processes and machines.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Read by Ray when it is imported or started, here and in the processes it starts.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # At its default of 2 s every report of a worker blocks that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}
for key, value in QUIET.items():
    os.environ.setdefault(key, value)

import pandas as pd
import ray
import ray.train
import ray.train.torch
import ray.tune
import scipy.stats
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from m2ray.command import UserError
from m2ray.config import TrialConfig, validate
from m2ray.jobs import Job, run_folder, run_job
from m2ray.receiver import load_receiver
from m2ray.space import Resources
from m2ray.training import TrainingFailed, train

FAILED_SCORE = -1e9  # what a searcher is told of a failed trial: finite, and worse than any


def start(address: str | None, nested: bool) -> None:
    """Connect to a cluster, or start a local one.

    Args:
        address: Of a running cluster, `auto`, or None for a local one on this machine.
        nested: Whether trials train with several workers. Then a local cluster needs its dashboard (on loopback):
            without it Ray cannot clean up after a nested trial that stops early.

    Raises:
        UserError: nothing answers at the address.
    """
    os.environ.setdefault(
        "RAY_AUTH_MODE", "token" if (Path.home() / ".ray" / "auth_token").is_file() else "disabled"
    )
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": nested, "dashboard_host": "127.0.0.1"}
        os.environ.pop("RAY_ADDRESS", None)
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error}); start one with `ray up cluster.yaml` or "
            "`ray start --head`, or leave --address out"
        ) from None


def stop() -> None:
    """Disconnect; a local cluster ends."""
    ray.shutdown()


# --- evaluators ----------------------------------------------------------------------------------------------


class Evaluator:
    """One resident process that plays jobs; the receiver stays loaded between them."""

    def run(self, job: Job) -> pd.DataFrame:
        """Play one job."""
        return run_job(job)


@dataclass
class Done:
    """A job that ended: its rows, or the cause of its failure."""

    job: Job
    rows: pd.DataFrame | None
    cause: str


class Pool:
    """A fixed number of evaluators over a queue of jobs; no job is lost, none is done twice.

    One job in flight an actor. A dead actor is replaced and its job tried again, up to `tries` times; a Python
    error is final and recorded; a job over the time limit counts as a death. (`ray.util.ActorPool` drops the
    jobs of actors that die.)
    """

    def __init__(self, size: int, gpus: float, tries: int = 3, limit_s: float = 3600.0) -> None:
        # No CPU is reserved: on a small machine the trials hold them all, and evaluation must not wait for them.
        kind = ray.remote(num_cpus=0, num_gpus=gpus)(Evaluator)
        self._make: Callable[[], Any] = kind.remote
        self._size, self._tries, self._limit_s = size, tries, limit_s
        self._queue: deque[tuple[Job, int]] = deque()
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Job, int, float]] = {}

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append((job, 1))
        self._feed()

    def _feed(self) -> None:
        while self._queue and len(self._busy) < self._size:
            actor = self._idle.pop() if self._idle else self._make()
            job, attempt = self._queue.popleft()
            self._busy[actor.run.remote(job)] = (actor, job, attempt, time.monotonic())

    def __len__(self) -> int:
        return len(self._queue) + len(self._busy)

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Jobs that ended since; waits at most `timeout` seconds for the first."""
        if not self._busy:
            return []
        ready, waiting = ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        if ready:
            ready, waiting = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        done = []
        for reference in ready:
            actor, job, attempt, _ = self._busy.pop(reference)
            try:
                done.append(Done(job, ray.get(reference), ""))
                self._idle.append(actor)
            except ray.exceptions.RayTaskError as error:
                done.append(Done(job, None, last_line(str(error.cause or error))))
                self._idle.append(actor)
            except ray.exceptions.RayActorError as error:
                done += self._again(job, attempt, f"evaluator died ({last_line(str(error))})")
        for reference in waiting:
            actor, job, attempt, since = self._busy[reference]
            if time.monotonic() - since > self._limit_s:
                del self._busy[reference]
                ray.kill(actor)
                done += self._again(job, attempt, f"evaluation took over {self._limit_s:.0f} s")
        self._feed()
        return done

    def _again(self, job: Job, attempt: int, cause: str) -> list[Done]:
        if attempt >= self._tries:
            return [Done(job, None, f"{cause}, {attempt} times")]
        self._queue.append((job, attempt + 1))
        return []

    def drain(self) -> Iterator[Done]:
        """All jobs left, as they end."""
        while len(self):
            yield from self.poll(timeout=0.5)

    def close(self) -> None:
        """End the evaluators; handles left over would hold their resources."""
        for actor in [*self._idle, *(entry[0] for entry in self._busy.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._busy.clear()


def last_line(text: str) -> str:
    """The line of an error text that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown cause"


# --- training ------------------------------------------------------------------------------------------------


def _worker_loop(settings: dict[str, Any]) -> None:
    """What every DDP worker runs: the one training loop, in a process group that Ray Train has set up."""
    config = TrialConfig.model_validate_json(settings["trial"])

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        ray.train.report({**metrics, "checkpoint": str(checkpoint)})

    receiver = load_receiver(config.receiver)
    train(config, settings["seed"], receiver, Path(settings["folder"]), report, settings["about"])


def train_distributed(
    config: TrialConfig,
    seed: int,
    folder: Path,
    about: dict[str, Any],
    resources: Resources,
    callbacks: list[Any] | None = None,
) -> None:
    """Train one codec with DDP: `config.workers` processes, gloo on CPU and NCCL on GPU.

    A worker that dies takes the group down; it is started again up to `resources.retries` times and goes on
    from the last epoch's state in `folder`, which all workers must see.

    Raises:
        RuntimeError: training failed more often than that.
    """
    trainer = ray.train.torch.TorchTrainer(
        _worker_loop,
        train_loop_config={"trial": config.model_dump_json(), "seed": seed, "folder": str(folder), "about": about},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=_ask(resources),
            accelerator_type=resources.accelerator,
        ),
        run_config=ray.train.RunConfig(
            name=f"{folder.parent.name}-{folder.name}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.retries, controller_failure_limit=2),
            callbacks=callbacks or [],
        ),
    )
    trainer.fit()


def _ask(resources: Resources) -> dict[str, float]:
    ask = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in ask.items() if amount}


def run_trial(settings: dict[str, Any]) -> None:
    """One configuration: its training seeds one after the other, reported as one growing mean to the searcher."""
    config = TrialConfig.model_validate_json(settings["trial"])
    finished: list[float] = []
    history: dict[str, Any] = {}

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        epochs = len(finished) * config.training.epochs + metrics["epoch"]
        history.update(metrics)
        mean = (sum(finished) + metrics["score"]) / (len(finished) + 1)
        ray.tune.report({**metrics, "score": mean, "progress": epochs, "checkpoint": str(checkpoint)})

    for seed in settings["seeds"]:
        folder = run_folder(Path(settings["root"]), settings["config"], seed)
        about = {"config": settings["config"], "params": settings["params"]}
        try:
            if config.workers > 1:
                resources = validate(Resources, settings["resources"], "resources")
                train_distributed(config, seed, folder, about, resources, [TuneReportCallback()])
                history.update(json.loads((folder / "history.json").read_text())[-1])
            else:
                train(config, seed, load_receiver(config.receiver), folder, report, about)
        except TrainingFailed as error:
            # Deterministic: trying again would end the same way.
            ray.tune.report({"score": FAILED_SCORE, "progress": 0, "cause": f"seed {seed}: {error}"})
            return
        finished.append(history["score"])


# --- search --------------------------------------------------------------------------------------------------


class Proposer(Protocol):
    """Who decides what is trained next; `m2ray.sweep` has the one that asks Optuna."""

    def propose(self) -> dict[str, Any] | None:
        """Settings of the next trial, None when there is no more."""

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

    def __init__(self, proposer: Proposer) -> None:
        super().__init__(metric="score", mode="max")
        self._proposer = proposer
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        settings = self._proposer.propose()
        if settings is None:
            return str(Searcher.FINISHED)
        self._names[trial_id] = settings["config"]
        return settings

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        result = result or {}
        cause = result.get("cause", "")
        score = None if error or cause or "score" not in result else float(result["score"])
        if score is None and not cause:
            cause = "training died before its first report"
        self._proposer.finished(self._names.pop(trial_id), score, cause)

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
            self._observer.reported(trial.config["config"], result)


class PairedStop(FIFOScheduler):
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
        behind = scipy.stats.wilcoxon(nll, best[1], alternative="greater").pvalue < self.ALPHA
        return str(TrialScheduler.STOP if behind else TrialScheduler.CONTINUE)


def search(
    proposer: Proposer,
    observer: Observer,
    resources: Resources,
    pruner: str,
    total_epochs: int,
    concurrency: int | None,
    folder: Path,
) -> None:
    """Run trials until the proposer has no more.

    Args:
        proposer: Names what to train.
        observer: Is told of every epoch.
        resources: Of one trial.
        pruner: none, asha or wilcoxon.
        total_epochs: Longest trial, all its training seeds together.
        concurrency: Most trials at a time; None leaves it to the resources.
        folder: For Ray's own files.
    """
    searcher = _Searcher(proposer)

    def ask(settings: dict[str, Any]) -> Any:
        workers = json.loads(settings["trial"])["workers"]
        # A nested trial's driver must not hold a CPU that its own workers wait for.
        return ray.tune.PlacementGroupFactory(
            [{"node:__internal_head__": 0.001} if workers > 1 else _ask(resources)]
        )

    schedulers: dict[str, Callable[[], TrialScheduler]] = {
        "none": FIFOScheduler,
        "asha": lambda: ASHAScheduler(
            time_attr="progress",
            metric="score",
            mode="max",
            max_t=total_epochs,
            grace_period=1,
            reduction_factor=3,
        ),
    }
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(run_trial, ask),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=schedulers[pruner](),
            num_samples=-1,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
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
