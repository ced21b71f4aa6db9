"""Units of evaluation work: which checkpoint plays which conditions on which split. Run anywhere, by anyone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from m2ray.codec import Codec, load_codec, read_record
from m2ray.conditions import condition
from m2ray.config import CrossEntropyTerm, Losses, TrainingConfig, TrialConfig, parse_seeds, validate
from m2ray.evaluation import Subject, condition_names, evaluate
from m2ray.receiver import Receiver, load_receiver
from m2ray.source import Source
from m2ray.training import train

SPLITS = ("search", "select", "confirm")


@dataclass(frozen=True)
class Job:
    """Episodes of one split under some conditions.

    `folder` is the checkpoint; None where no condition depends on one. `constants` holds the trained
    content-free codecs, shared by all checkpoints with the same k and place.
    """

    trial: TrialConfig
    split: str
    names: tuple[str, ...]
    folder: Path | None
    constants: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{'/'.join(self.folder.parts[-3:]) if self.folder else self.trial.receiver} on {self.split}"


def jobs_of(trial: TrialConfig, split: str, folder: Path, constants: Path) -> Iterator[Job]:
    """A checkpoint's evaluation in three jobs: what needs it, what needs its k and place, what needs neither."""
    names = condition_names(trial.evaluation)
    for depends, at in (("checkpoint", folder), ("slots", folder), ("receiver", None)):
        wanted = tuple(name for name in names if condition(name).depends == depends)
        if wanted:
            yield Job(trial, split, wanted, at, constants)


def seeds_of(trial: TrialConfig, split: str) -> range:
    """A split's seeds, by its name or as A:B."""
    return trial.splits.seeds(split) if split in SPLITS else parse_seeds(split)


def run_job(job: Job) -> pd.DataFrame:
    """Play a job's episodes; rows as `m2ray.evaluation.evaluate` returns them."""
    receiver = load_receiver(job.trial.receiver)
    part = job.split if job.split in SPLITS else "confirm"
    episodes = Source(job.trial.task).get(seeds_of(job.trial, job.split), part)
    codec = constant = subject = None
    if job.folder is not None:
        codec = load_codec(job.folder, receiver)
        record = read_record(job.folder)
        params = json.dumps(record.get("params", {}), sort_keys=True)
        subject = Subject(record["config"], record["seed"], record["digest"], record["step"], params)
    if "constant" in job.names:
        assert codec is not None
        constant = trained_constant(receiver, job.trial, job.constants)
    return evaluate(
        receiver, episodes, job.split, job.names, job.trial.evaluation, subject, codec=codec, constant=constant
    )


def trained_constant(receiver: Receiver, trial: TrialConfig, root: Path) -> Codec:
    """The best content-free prefix that a short training finds, of a trial's k and place; trained once."""
    codec = trial.codec.model_copy(
        update={"encoder": "constant", "calibration": "norm", "scale_gate": 1.0, "bottleneck": "none"}
    )
    training = TrainingConfig(
        epochs=1, epoch_samples=trial.evaluation.constant_samples, batch_size=64, lr=2e-2, weight_decay=0.0
    )
    plain = trial.model_copy(
        update={"codec": codec, "losses": Losses(ce=CrossEntropyTerm()), "training": training, "workers": 1}
    )
    folder = root / f"constant-{trial.task.level}-{receiver.digest}-k{codec.k}-{codec.place}"
    checkpoint = folder / "epoch-01"
    if not (checkpoint / "config.json").is_file():
        train(plain, 0, receiver, folder, lambda metrics, at: None, {"config": "constant"})
    return load_codec(checkpoint, receiver)


def checkpoints(root: Path) -> list[Path]:
    """All complete checkpoints of trained configurations below a folder, oldest epoch first."""
    found = [file.parent for file in root.glob("*/seed-*/epoch-*/config.json")]
    return sorted(found)


def last_checkpoints(root: Path) -> dict[tuple[str, int], Path]:
    """The latest checkpoint of each (configuration, training seed)."""
    latest: dict[tuple[str, int], Path] = {}
    for folder in checkpoints(root):
        record = read_record(folder)
        latest[record["config"], record["seed"]] = folder
    return latest


def trial_of(folder: Path) -> TrialConfig:
    """The configuration a checkpoint was trained with."""
    return validate(TrialConfig, read_record(folder).get("trial", {}), f"{folder}/config.json: trial")


def run_folder(root: Path, name: str, seed: int) -> Path:
    """Where a configuration's training writes."""
    return root / name / f"seed-{seed}"
