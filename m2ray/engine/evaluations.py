"""The evaluations of a sweep: queue them for the pool, record their rows, and never run one twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from m2ray.codec.checkpoints import CheckpointId, checkpoint_id, read_record
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.job import DiagnosisJob
from m2ray.diagnosis.store import diagnosis_folder, read_diagnosis, record_failure
from m2ray.engine.cost.estimate import ANSWERS_PER_DIAGNOSIS
from m2ray.engine.evaluator_pool import FinishedJob, Pool
from m2ray.engine.jobs import EvaluationJob, evaluation_jobs, may_train, receiver_job
from m2ray.engine.progress import Progress
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.row_scope import row_scope, scope_kind
from m2ray.evaluation.rows import FAILED, RowStore, write_rows

# Columns of rows that tell evaluations apart, each of one condition.
KEY = ["config", "seed", "checkpoint", "split", "decoding", "k", "place", "condition"]


class Evaluations:
    """Evaluates checkpoints and diagnoses codecs on a pool, for one results folder.

    Args:
        root: The results folder.
        pool: The evaluators.
        progress: Is notified of every job that ends.
        failures: Causes of failure by configuration; failed evaluations are added to it.
        told: Returns a configuration as evaluators get it: with the numeric type of the receiver in this sweep.
    """

    def __init__(
        self,
        root: Path,
        pool: Pool,
        progress: Progress,
        failures: dict[str, str],
        told: Callable[[TrialConfig], TrialConfig] = lambda trial: trial,
    ) -> None:
        self.store = RowStore(root)
        self.diagnosis_failures: dict[str, str] = {}
        self._root, self._pool, self._progress, self._failures = root, pool, progress, failures
        self._told = told
        self._constants = root / "checkpoints" / "constants"
        self._known: set[tuple[object, ...]] = set()  # conditions that are recorded or queued, by KEY

    def restore(self) -> int:
        """Learn from the rows on disk what need not be evaluated again, and forget what failed.

        Returns:
            The number of answers that are recorded.
        """
        for line in self.store.set_aside():
            print(f"{line}; evaluated again", file=sys.stderr)
        rows = self.store.read()
        if len(rows):
            self.store.compact()
            rows = rows[rows.condition != FAILED]
            write_rows(self.store.whole, rows)
            self._known |= set(rows[KEY].itertuples(index=False, name=None))
        return len(rows)

    def queue(self, trial: TrialConfig, split: str, folder: Path, seeds: tuple[int, ...] | None = None) -> None:
        """Queue the evaluation of a checkpoint on a split, less what is recorded or queued already.

        The arguments are those of `EvaluationJob`.
        """
        checkpoint = checkpoint_id(folder)
        for job in evaluation_jobs(trial, split, folder, self._constants, seeds):
            self._queue_missing(job, checkpoint)

    def _queue_missing(self, job: EvaluationJob, checkpoint: CheckpointId | None) -> None:
        keys = {name: self._key(job, name, checkpoint) for name in job.names}
        missing = {name: key for name, key in keys.items() if key not in self._known}
        if missing:
            self._known |= set(missing.values())
            self._pool.submit(replace(job, names=tuple(missing), trial=self._told(job.trial)))

    def queue_receiver(self, trial: TrialConfig, split: str) -> None:
        """Queue the conditions that need no codec, less what is recorded or queued already."""
        if job := receiver_job(trial, split, self._constants):
            self._queue_missing(job, None)

    @staticmethod
    def _key(job: EvaluationJob, name: str, checkpoint: CheckpointId | None) -> tuple[object, ...]:
        codec = job.trial.codec
        kind = scope_kind(name, get_condition(name).depends_on, codec.slots_at)
        scope = row_scope(kind, checkpoint, codec.k, codec.slots_at)
        columns = {**scope._asdict(), "split": job.split, "decoding": job.trial.evaluation.decoding}
        return tuple({**columns, "condition": name}[column] for column in KEY)

    def queue_diagnosis(self, trial: TrialConfig, folder: Path, episodes: int, name: str, seed: int) -> None:
        """Queue the diagnosis of a checkpoint, unless it has one."""
        out = diagnosis_folder(self._root, name, seed)
        if read_diagnosis(out).get("about", {}).get("checkpoint") != read_record(folder)["digest"]:
            self._pool.submit(DiagnosisJob(self._told(trial), folder, self._constants, episodes, out))

    def collect(self) -> None:
        """Record the jobs that have ended since the last call."""
        self._record_all(self._pool.poll())

    def finish(self) -> None:
        """Wait for all queued jobs and record them."""
        self._record_all(self._pool.drain())

    def finish_running(self, limit_s: float) -> None:
        """Wait for the running jobs, for at most `limit_s` seconds, and record them; drop those in the queue."""
        self._record_all(self._pool.finish(limit_s))

    def _record_all(self, jobs: Iterable[FinishedJob]) -> None:
        for finished in jobs:
            self._record(finished)

    def _record(self, finished: FinishedJob) -> None:
        job, constant = finished.job, may_train(finished.job)
        answers = ANSWERS_PER_DIAGNOSIS * job.episodes if isinstance(job, DiagnosisJob) else 0
        answers = answers if finished.rows is None else len(finished.rows)
        self._progress.evaluated(job.label, finished.cause, answers, finished.seconds, constant)
        if finished.rows is not None:
            self.store.append(finished.rows)
            normal = finished.rows[finished.rows.condition == "normal"]
            if len(normal):
                self._progress.solved(str(normal.config.iloc[0]), int(normal.success.sum()), len(normal))
        elif isinstance(finished.job, EvaluationJob):
            name = finished.job.folder.parts[-3] if finished.job.folder else "receiver"
            self._failures[name] = f"evaluation on {finished.job.split}: {finished.cause}"
        elif finished.cause:
            self._record_diagnosis_failure(finished.job, finished.cause)

    def _record_diagnosis_failure(self, job: DiagnosisJob, cause: str) -> None:
        """Report a failed diagnosis; it does not change a verdict."""
        codec = checkpoint_id(job.folder)
        self.diagnosis_failures[f"{codec.config}, seed {codec.seed}"] = f"diagnosis: {cause}"
        record_failure(job.out, codec.config, codec.seed, cause)
