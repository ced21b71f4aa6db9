"""Evaluation jobs: which checkpoint is run under which conditions on which split, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from m2ray.codec.checkpoints import check_task_file, checkpoint_id
from m2ray.codec.codec import load_codec
from m2ray.config.condition_names import DependsOn
from m2ray.config.task import EVALUATION_SPLITS, parse_seeds
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.job import DiagnosisJob, run_diagnosis
from m2ray.evaluation.conditions import derangement, get_condition
from m2ray.evaluation.row_cache import cached_rows
from m2ray.evaluation.row_scope import scope_kind
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_trial_receiver
from m2ray.training.constant_prefix import trained_constant
from m2ray.util.text import pluralize


@dataclass(frozen=True)
class EvaluationJob:
    """Episodes of one split under conditions that depend on the same things.

    `folder` is the checkpoint; None where no condition depends on one. `constants` is the folder of the trained
    content-free prefixes, each shared by all checkpoints with the same k, place and training budget. `seeds` are
    the episodes of a later look at confirm; None where `split` names them. `other_receiver` says that the trial's
    receiver is not the one that the checkpoint was trained with.
    """

    trial: TrialConfig
    split: str
    names: tuple[str, ...]
    folder: Path | None
    constants: Path
    seeds: tuple[int, ...] | None = None
    other_receiver: bool = False

    @property
    def label(self) -> str:
        """A description for progress lines."""
        subject = "/".join(self.folder.parts[-3:]) if self.folder else self.trial.receiver
        return f"{subject} on {self.split}: {pluralize(len(self.names), 'condition')}"


Job = EvaluationJob | DiagnosisJob


def evaluation_jobs(
    trial: TrialConfig, split: str, folder: Path, constants: Path, seeds: tuple[int, ...] | None = None
) -> Iterator[EvaluationJob]:
    """Yield a checkpoint's evaluation, one job for each kind of thing that conditions depend on.

    `constant` is a job of its own: it may have to wait for a training. The arguments are those of `EvaluationJob`.
    """
    names, place = trial.conditions_on(split), trial.codec.slots_at
    kinds = {name: scope_kind(name, get_condition(name).depends_on, place) for name in names}
    for depends_on in get_args(DependsOn):
        group = tuple(name for name in names if name != "constant" and kinds[name] == depends_on)
        if group:
            own = None if depends_on == "receiver" else folder
            yield EvaluationJob(trial, split, group, own, constants, seeds)
    if "constant" in names:
        yield EvaluationJob(trial, split, ("constant",), folder, constants, seeds)


def receiver_job(trial: TrialConfig, split: str, constants: Path) -> EvaluationJob | None:
    """Return the job of the conditions that need no codec, which all checkpoints share; None without any."""
    names = tuple(n for n in trial.conditions_on(split) if get_condition(n).depends_on == "receiver")
    return EvaluationJob(trial, split, names, None, constants) if names else None


def split_seeds(trial: TrialConfig, split: str) -> Sequence[int]:
    """Return the episode seeds of a split, given by its name or as A:B."""
    if split in EVALUATION_SPLITS:
        return open_source(trial.task).seeds(trial.splits, split)
    return parse_seeds(split)


def may_train(job: Job) -> bool:
    """Return True if a job may train a content-free prefix first, which can take as long as training a codec."""
    return isinstance(job, EvaluationJob) and "constant" in job.names


def run_job(job: Job) -> pd.DataFrame | None:
    """Run a job of either kind. A diagnosis writes files and has no rows."""
    if isinstance(job, EvaluationJob):
        return run_evaluation(job)
    run_diagnosis(job)
    return None


def run_evaluation(job: EvaluationJob, on_done: Callable[[str], None] | None = None) -> pd.DataFrame:
    """Run a job's episodes and return rows, as `m2ray.evaluation.runner.evaluate` does.

    Args:
        job: The job.
        on_done: Called with the name of a condition of a checkpoint when all episodes have run under it.

    Raises:
        UserError: receiver, checkpoint or episodes are missing, or do not fit each other.
    """
    receiver = load_trial_receiver(job.trial)
    source = open_source(job.trial.task)
    seeds: Sequence[int] = split_seeds(job.trial, job.split) if job.seeds is None else job.seeds
    if job.split not in EVALUATION_SPLITS:
        source.check_unseen(seeds, job.trial.splits)
    episodes = source.get(seeds, job.split if job.split in EVALUATION_SPLITS else "confirm")
    if "shuffle" in job.names:
        derangement(episodes)  # refuses too few messages before anything is trained or decoded
    evaluation = job.trial.evaluation
    if job.folder is None:
        return cached_rows(receiver, episodes, job.split, job.names, evaluation)
    check_task_file(job.folder, job.trial.task)
    codec = load_codec(job.folder, receiver, job.other_receiver)
    checkpoint = checkpoint_id(job.folder, job.other_receiver)
    constant = None
    if "constant" in job.names:
        receiver.references(episodes[:1])  # refuses another level before anything is trained
        constant = trained_constant(receiver, job.trial, codec.config, job.constants)
    return evaluate(receiver, episodes, job.split, job.names, evaluation, checkpoint, codec, constant, on_done)
