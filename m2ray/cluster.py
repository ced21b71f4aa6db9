"""Ray: the cluster, distributed training (Train) and what one trial does.

`m2ray.search` runs the trials (Tune), `m2ray.pool` the evaluations.

The science runs without this file; here it is only spread over processes and machines.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from m2ray.codec import read_record
from m2ray.command import UserError, why
from m2ray.config import TrialConfig
from m2ray.jobs import run_folder, trial_of
from m2ray.loading import load_receiver
from m2ray.memory import MALLOC, rows_at_once
from m2ray.pack import train_pack
from m2ray.pool import last_line
from m2ray.space import Resources
from m2ray.strict import validate
from m2ray.training import Training, TrainingFailed, train

# Read by Ray when it runs, here and in the processes it starts.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Relative paths of a configuration are the caller's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # At its default of 2 s every report of a worker blocks that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Else Tune takes the first Ctrl-C for the end of the search, and the sweep goes on to judge what there is.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    **MALLOC,
}

FAILED_SCORE = -1e9  # what a searcher is told of a failed trial: finite, and worse than any
START_TRIES = 3
NOBODY = (
    "no Ray cluster answers ({error}); start one with `ray up cluster.yaml` or `ray start --head`, or leave "
    "--address out"
)


def start(address: str | None, nested: bool) -> None:
    """Connect to a cluster, or start a local one.

    Args:
        address: Of a running cluster, `auto`, or None for a local one on this machine.
        nested: Whether trials train with several workers. Then a local cluster needs its dashboard (on loopback):
            without it Ray cannot clean up after a nested trial that stops early.

    Raises:
        UserError: nothing answers at the address, or no local cluster starts.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    if address is None or not (Path.home() / ".ray" / "auth_token").is_file():
        # A token that any Ray may have left there is none of a local cluster's, whose ports are on loopback. Set
        # here, "token" would reach the processes that Ray starts, but not this one, which read it with the import.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Without "local" Ray would join a cluster that `ray start` has left on this machine.
        options |= {"address": "local", "include_dashboard": nested, "dashboard_host": "127.0.0.1"}
        os.environ.pop("RAY_ADDRESS", None)
    else:
        _probe(address)
        options["address"] = address
        # Attempts to connect, of half a minute each; Ray's 20 are for nodes that join while a head starts.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    for left in reversed(range(START_TRIES if address is None else 1)):
        try:
            on_term = signal.getsignal(signal.SIGTERM)
            ray.init(**options)
            signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in place, which ends the process at once
            return
        except Exception as error:  # on a busy machine a local node may miss Ray's deadline: a bare Exception
            ray.shutdown()
            if left:
                continue
            if address is None:
                raise UserError(
                    f"Ray: no local cluster starts ({last_line(str(error))}); free memory and CPU and try again, "
                    "or give --address"
                ) from None
            raise UserError(f"--address {address}: {NOBODY.format(error=last_line(str(error)))}") from None


def check_room(resources: Resources, workers: int, local: bool) -> None:
    """Refuse trials that a local machine can never hold, where Ray would wait for a node for ever.

    Args:
        resources: Of each worker.
        workers: Of the largest training.
        local: Whether no node can come.

    Raises:
        UserError: one training asks for more than there is.
    """
    there = ray.cluster_resources()
    for name, amount in ask(resources).items():
        asked, held = workers * amount, there.get(name, 0.0)
        if asked <= held:
            continue
        said = (
            f"resources.{name.lower()}s_per_worker: a training asks for {asked:g} {name}s, and there are {held:g}"
        )
        if local:
            raise UserError(f"{said}; lower it or workers, or give the --address of a larger cluster")
        print(f"{said}; it waits for nodes to come", file=sys.stderr)


def _probe(address: str) -> None:
    """Refuse at once an address that nobody listens at; Ray itself would try for a long time, and say much.

    Raises:
        UserError: no such form, or no answer.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise UserError(f"--address {address}: write host:port of the head node, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: {NOBODY.format(error=why(error))}") from None


def stop() -> None:
    """Disconnect; a local cluster ends."""
    ray.shutdown()


# --- training ------------------------------------------------------------------------------------------------


def _so_far(
    name: str, metrics: dict[str, Any], checkpoint: Path, epochs: int, finished: Sequence[float], seeds: int
) -> dict[str, Any]:
    """A training seed's report as the searcher sees it: the mean over the seeds so far, the epochs of all."""
    return {
        **metrics,
        "member": name,
        "score": (sum(finished) + metrics["score"]) / (len(finished) + 1),
        "progress": len(finished) * epochs + metrics["epoch"],
        "epochs_total": seeds * epochs,
        "checkpoint": str(checkpoint),
    }


def _worker_loop(settings: dict[str, Any]) -> None:
    """What every DDP worker runs: the one training loop, in a process group that Ray Train has set up."""
    config = TrialConfig.model_validate_json(settings["trial"])

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        epochs = config.training.epochs
        name = settings["about"]["config"]
        ray.train.report(_so_far(name, metrics, checkpoint, epochs, settings["finished"], settings["seeds"]))

    receiver = load_receiver(config.receiver)
    train(config, settings["seed"], receiver, Path(settings["folder"]), report, settings["about"])


def train_distributed(
    config: TrialConfig,
    seed: int,
    folder: Path,
    about: dict[str, Any],
    resources: Resources,
    finished: Sequence[float] = (),
    seeds: int = 1,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train one codec with DDP: `config.workers` processes, gloo on CPU and NCCL on GPU.

    A worker that dies takes the group down; it is started again up to `resources.retries` times and goes on
    from the last epoch's state in `folder`, which all workers must see.

    Args:
        config: The configuration.
        seed: Training seed.
        folder: See `m2ray.training.train`.
        about: More to write into each checkpoint's record.
        resources: Of each worker.
        finished: Scores of the configuration's other training seeds so far.
        seeds: Their number in the end.
        callbacks: Of Ray Train, told of every report.

    Raises:
        TrainingFailed: training failed more often than that.
    """
    from ray.train.torch import TorchTrainer  # takes a second, and most trials have one worker

    rows = rows_at_once(folder)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "trial": config.model_dump_json(),
            "seed": seed,
            "folder": str(folder),
            "about": about,
            "finished": list(finished),
            "seeds": seeds,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=ask(resources),
            accelerator_type=resources.accelerator,
            placement_strategy=resources.placement,
        ),
        run_config=ray.train.RunConfig(
            name=f"{folder.parent.name}-{folder.name}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.retries, controller_failure_limit=2),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if rows_at_once(folder) == rows:
            raise TrainingFailed(_cause(error)) from None
    else:
        return
    # Memory did not suffice, which is no failure as long as there is less to ask of it.
    train_distributed(config, seed, folder, about, resources, finished, seeds, callbacks)


def _cause(error: Exception) -> str:
    """What happened, in a line."""
    if isinstance(error, (TrainingFailed, UserError)):
        return str(error)
    if isinstance(error, ray.train.WorkerGroupError):
        return last_line(str(next(iter(error.worker_failures.values()), error)))
    return f"{type(error).__name__}: {last_line(str(error))}"


def ask(resources: Resources) -> dict[str, float]:
    """What one worker asks of Ray."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in amounts.items() if amount}


class Member:
    """One configuration of a trial: its training seeds one after the other, reported as one growing mean."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.name: str = settings["config"]
        self.config = TrialConfig.model_validate_json(settings["trial"])
        self.about = {"config": self.name, "params": settings["params"]}
        self.seed, self.finished = 0, list[float]()

    def report(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """Tell the searcher of an epoch."""
        epochs, seeds = self.config.training.epochs, len(self.settings["seeds"])
        ray.tune.report(_so_far(self.name, metrics, checkpoint, epochs, self.finished, seeds))

    def failed(self, error: Exception) -> None:
        """Mark it; others go on."""
        cause = f"seed {self.seed}: {_cause(error)}"
        ray.tune.report({"member": self.name, "score": FAILED_SCORE, "progress": 0, "cause": cause})

    def trainings(self) -> Iterator[Training]:
        """The seeds that are to be trained in this process; those with workers of their own are trained here."""
        config = self.config
        for seed in self.settings["seeds"]:
            self.seed = seed
            folder = run_folder(Path(self.settings["root"]), self.name, seed)
            last = folder / f"epoch-{config.training.epochs:02d}"
            if (last / "config.json").is_file() and trial_of(last) == config:
                # Complete before this process began; the training would have nothing to do, and nothing to report.
                self.report(read_record(last)["metrics"], last)
            elif config.workers > 1:
                resources = validate(Resources, self.settings["resources"], "resources")
                callbacks = [TuneReportCallback()]
                seeds = len(self.settings["seeds"])
                train_distributed(config, seed, folder, self.about, resources, self.finished, seeds, callbacks)
            else:
                receiver = load_receiver(config.receiver)
                yield Training(config, seed, receiver, folder, self.report, self.about)
            self.finished.append(read_record(last)["metrics"]["score"])


def run_trial(settings: dict[str, Any]) -> None:
    """Train a pack of configurations in this process; one by itself is a pack of one."""
    members = [Member(member) for member in settings["pack"]]
    train_pack([member.trainings() for member in members], lambda number, error: members[number].failed(error))
