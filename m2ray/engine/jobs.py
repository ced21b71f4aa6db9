"""Units of evaluation work: which checkpoint plays which conditions on which split. Run anywhere, by anyone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from m2ray.codec.checkpoints import checkpoint_id
from m2ray.codec.codec import load_codec
from m2ray.config.trial import TrialConfig, parse_seeds
from m2ray.diagnosis.job import DiagnosisJob, run_diagnosis
from m2ray.evaluation.conditions import derangement, get_condition
from m2ray.evaluation.row_cache import cached_rows
from m2ray.evaluation.runner import condition_names, evaluate
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.loading import load_receiver
from m2ray.training.constant_prefix import trained_constant

SPLITS = ("search", "select", "confirm")


@dataclass(frozen=True)
class EvaluationJob:
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


Job = EvaluationJob | DiagnosisJob


def evaluation_jobs(trial: TrialConfig, split: str, folder: Path, constants: Path) -> Iterator[EvaluationJob]:
    """A checkpoint's evaluation in three jobs: what needs it, what needs its k and place, what needs neither."""
    names = condition_names(trial.evaluation)
    for depends, at in (("checkpoint", folder), ("slots", folder), ("receiver", None)):
        wanted = tuple(name for name in names if get_condition(name).depends_on == depends)
        if wanted:
            yield EvaluationJob(trial, split, wanted, at, constants)


def split_seeds(trial: TrialConfig, split: str) -> range:
    """A split's seeds, by its name or as A:B."""
    return trial.splits.seeds(split) if split in SPLITS else parse_seeds(split)


def run_job(job: Job) -> pd.DataFrame | None:
    """Do a job of either kind: what evaluators run. A diagnosis writes files and has no rows."""
    if isinstance(job, EvaluationJob):
        return run_evaluation(job)
    run_diagnosis(job)
    return None


def run_evaluation(job: EvaluationJob) -> pd.DataFrame:
    """Play a job's episodes; rows as `m2ray.evaluation.evaluate` returns them.

    Raises:
        UserError: the receiver, checkpoint or episodes are not there, or do not fit each other.
    """
    receiver = load_receiver(job.trial.receiver)
    source, seeds = EpisodeSource(job.trial.task), split_seeds(job.trial, job.split)
    if job.split not in SPLITS:
        source.check_unseen(seeds, job.trial.splits)
    episodes = source.get(seeds, job.split if job.split in SPLITS else "confirm")
    if "shuffle" in job.names:
        derangement(episodes)  # too few messages are refused before anything is trained or played
    if job.folder is None:
        return cached_rows(receiver, episodes, job.split, job.names, job.trial.evaluation)
    codec, subject = load_codec(job.folder, receiver), checkpoint_id(job.folder)
    constant = None
    if "constant" in job.names:
        constant = trained_constant(receiver, job.trial, codec.config, job.constants)
    return evaluate(
        receiver, episodes, job.split, job.names, job.trial.evaluation, subject, codec=codec, constant=constant
    )
