"""The work of a trial: train a pack of configurations and their training seeds, here or by Ray Train.

Training runs without this file; here it is only distributed over processes and machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from m2ray.codec.checkpoints import read_record, run_folder, trial_of
from m2ray.config.space import Resources
from m2ray.config.trial import TrialConfig
from m2ray.engine.cluster import limit_threads, worker_resources
from m2ray.engine.killed_workers import restarts_of_ddp_workers
from m2ray.receiver.loading import load_trial_receiver
from m2ray.training.microbatch import read_rows_at_once
from m2ray.training.packed import train_packed
from m2ray.training.trainer import Trainer, TrainingFailed, train
from m2ray.util.errors import UserError, last_line
from m2ray.util.strict_yaml import validate

FAILED_SCORE = -1e9  # of a failed trial: finite, because Optuna refuses NaN, and worse than any


def _progress_report(
    name: str, metrics: dict[str, Any], checkpoint: Path, epochs: int, finished: Sequence[float], seeds: int
) -> dict[str, Any]:
    """Return a report for the searcher: the mean score over the training seeds so far, the epochs of all."""
    return {
        **metrics,
        "member": name,
        "score": (sum(finished) + metrics["score"]) / (len(finished) + 1),
        "progress": len(finished) * epochs + metrics["epoch"],
        "epochs_total": seeds * epochs,
        "checkpoint": str(checkpoint),
    }


def _worker_loop(settings: dict[str, Any]) -> None:
    """Run the training loop in one DDP worker, in a process group that Ray Train has set up."""
    limit_threads()
    config = TrialConfig.model_validate_json(settings["trial"])

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        epochs = config.training.epochs
        name = settings["about"]["config"]
        ray.train.report(
            _progress_report(name, metrics, checkpoint, epochs, settings["finished"], settings["seeds"])
        )

    receiver = load_trial_receiver(config)
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

    A worker that dies ends its group. The group is started again up to `resources.retries` times, and resumes from
    the last epoch's state in `folder`, which all workers must see.

    Args:
        config: The configuration.
        seed: Training seed.
        folder: See `m2ray.training.trainer.Trainer`.
        about: More entries for each checkpoint's record.
        resources: Resources of each worker.
        finished: Scores of the configuration's training seeds that have ended.
        seeds: The number of its training seeds.
        callbacks: Callbacks of Ray Train, called at every report.

    Raises:
        TrainingFailed: training failed more often than that.
    """
    from ray.train.torch import TorchTrainer  # takes a second, and most trials have one worker

    rows = read_rows_at_once(folder)
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
            resources_per_worker=worker_resources(resources),
            accelerator_type=resources.accelerator,
            placement_strategy=resources.placement,
        ),
        run_config=ray.train.RunConfig(
            name=f"{folder.parent.name}-{folder.name}",
            storage_path=str(folder / "ray"),
            failure_config=restarts_of_ddp_workers(resources),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if read_rows_at_once(folder) == rows:
            raise TrainingFailed(_cause(error)) from None
    else:
        return
    # It ran out of memory and halved its rows at once: not a failure as long as fewer rows can be tried.
    train_distributed(config, seed, folder, about, resources, finished, seeds, callbacks)


def _cause(error: Exception) -> str:
    """Return the cause of a failure as one line."""
    if isinstance(error, (TrainingFailed, UserError)):
        return str(error)
    if isinstance(error, ray.train.WorkerGroupError):
        return last_line(str(next(iter(error.worker_failures.values()), error)))
    return f"{type(error).__name__}: {last_line(str(error))}"


def _trained_as(checkpoint: Path, config: TrialConfig) -> bool:
    """Return True if a checkpoint was trained with these settings; conditions of evaluation may differ."""
    return trial_of(checkpoint).training_settings == config.training_settings


class PackMember:
    """One configuration of a trial: its training seeds run one after the other and report their mean so far."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.name: str = settings["config"]
        self.config = TrialConfig.model_validate_json(settings["trial"])
        self.about = {"config": self.name, "params": settings["params"]}
        self.seed, self.finished = 0, list[float]()

    def report(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """Report an epoch to the searcher."""
        epochs, seeds = self.config.training.epochs, len(self.settings["seeds"])
        ray.tune.report(_progress_report(self.name, metrics, checkpoint, epochs, self.finished, seeds))

    def failed(self, error: Exception) -> None:
        """Report that this configuration failed; others continue."""
        cause = f"seed {self.seed}: {_cause(error)}"
        ray.tune.report({"member": self.name, "score": FAILED_SCORE, "progress": 0, "cause": cause})

    def trainings(self) -> Iterator[Trainer]:
        """Yield the trainings to run in this process; those with several workers are run by Ray Train here."""
        config = self.config
        for seed in self.settings["seeds"]:
            self.seed = seed
            folder = run_folder(Path(self.settings["root"]), self.name, seed)
            last = folder / f"epoch-{config.training.epochs:02d}"
            if (last / "config.json").is_file() and _trained_as(last, config):
                # Complete before this process started: nothing to train, but the searcher needs its report.
                self.report(read_record(last)["metrics"], last)
            elif config.workers > 1:
                resources = validate(Resources, self.settings["resources"], "resources")
                callbacks = [TuneReportCallback()]
                seeds = len(self.settings["seeds"])
                train_distributed(config, seed, folder, self.about, resources, self.finished, seeds, callbacks)
            else:
                receiver = load_trial_receiver(config)
                yield Trainer(config, seed, receiver, folder, self.report, self.about)
            self.finished.append(read_record(last)["metrics"]["score"])


def run_trial(settings: dict[str, Any]) -> None:
    """Train a pack of configurations in this process; a single one is a pack of one."""
    limit_threads()
    members = [PackMember(member) for member in settings["pack"]]
    train_packed([member.trainings() for member in members], lambda number, error: members[number].failed(error))
