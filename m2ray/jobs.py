"""Units of evaluation work: which checkpoint plays which conditions on which split. Run anywhere, by anyone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.codec import Codec, load_codec, read_record
from m2ray.command import UserError
from m2ray.conditions import condition, derangement
from m2ray.config import CodecConfig, CrossEntropyTerm, Losses, TrainingConfig, TrialConfig, parse_seeds
from m2ray.evaluation import Subject, condition_names, evaluate
from m2ray.loading import load_receiver
from m2ray.receiver import Receiver
from m2ray.source import Source
from m2ray.strict import validate
from m2ray.training import train
from m2ray.warm import text_rows

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
        subject = "/".join(self.folder.parts[-3:]) if self.folder else self.trial.receiver
        return f"{subject} on {self.split}: {len(self.names)} conditions"


@dataclass(frozen=True)
class DiagnosisJob:
    """A diagnosis of one checkpoint on fresh episodes of the search part, written into the folder `out`."""

    trial: TrialConfig
    folder: Path
    constants: Path
    episodes: int
    out: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{'/'.join(self.folder.parts[-3:])}: diagnosis on {self.episodes} messages"


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


def run_any(job: Job | DiagnosisJob) -> pd.DataFrame | None:
    """Do a job of either kind: what evaluators run. A diagnosis writes files and has no rows."""
    if isinstance(job, Job):
        return run_job(job)
    from m2ray.diagnose import run_diagnosis  # which needs this module

    run_diagnosis(job)
    return None


def run_job(job: Job) -> pd.DataFrame:
    """Play a job's episodes; rows as `m2ray.evaluation.evaluate` returns them.

    Raises:
        UserError: the receiver, checkpoint or episodes are not there, or do not fit each other.
    """
    receiver = load_receiver(job.trial.receiver)
    source, seeds = Source(job.trial.task), seeds_of(job.trial, job.split)
    if job.split not in SPLITS:
        source.check_unseen(seeds, job.trial.splits)
    episodes = source.get(seeds, job.split if job.split in SPLITS else "confirm")
    if "shuffle" in job.names:
        derangement(episodes)  # too few messages are refused before anything is trained or played
    if job.folder is None:
        return text_rows(receiver, episodes, job.split, job.names, job.trial.evaluation)
    codec, subject = load_codec(job.folder, receiver), subject_of(job.folder)
    constant = None
    if "constant" in job.names:
        constant = trained_constant(receiver, job.trial, codec.config, job.constants)
    return evaluate(
        receiver, episodes, job.split, job.names, job.trial.evaluation, subject, codec=codec, constant=constant
    )


def subject_of(folder: Path) -> Subject:
    """Whose checkpoint it is.

    Raises:
        UserError: its record does not say.
    """
    record = read_record(folder)
    for key, kind in (("config", str), ("seed", int), ("step", int), ("digest", str)):
        if not isinstance(record.get(key), kind):
            file = f"{folder}/config.json"
            raise UserError(f"{file}: {key}: missing or not {kind.__name__}; give a checkpoint of m2ray.train")
    params = json.dumps(record.get("params", {}), sort_keys=True)
    return Subject(record["config"], record["seed"], record["digest"], record["step"], params)


def trained_constant(receiver: Receiver, trial: TrialConfig, slots: CodecConfig, root: Path) -> Codec:
    """The best content-free prefix that a short training finds, of a codec's k and place; trained once."""
    codec = CodecConfig(encoder="constant", k=slots.k, place=slots.place, calibration="norm", scale_gate=1.0)
    training = TrainingConfig(
        epochs=1,
        epoch_samples=trial.evaluation.constant_samples,
        batch_size=min(64, trial.training.batch_size),
        lr=2e-2,
        weight_decay=0.0,
    )
    plain = trial.model_copy(
        update={
            "codec": codec,
            "losses": Losses(ce=CrossEntropyTerm()),
            "training": training,
            "workers": 1,
            "trackers": [],
        }
    )
    # All that decides its weights is in the name: a short training must never stand in for a long one.
    decisive: Any = {"task": True, "codec": True, "training": True, "splits": {"train"}}
    settings = hashlib.sha256(plain.model_dump_json(include=decisive).encode()).hexdigest()[:8]
    folder = root / f"constant-{trial.task.level}-{receiver.digest}-k{codec.k}-{codec.place}-{settings}"
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
    """The configuration a checkpoint was trained with.

    Raises:
        UserError: not a checkpoint, or its record does not say.
    """
    record = read_record(folder)
    if "trial" not in record:
        raise UserError(f"{folder}/config.json: trial: missing; give a checkpoint that m2ray.train wrote")
    return validate(TrialConfig, record["trial"], f"{folder}/config.json: trial")


def run_folder(root: Path, name: str, seed: int) -> Path:
    """Where a configuration's training writes."""
    return root / name / f"seed-{seed}"
