"""The stages of a sweep: search, select, confirm, diagnose.

Points and sampled configurations are trained while evaluators play every reported checkpoint under all conditions
on the search split; the best go to select, the best of those, with all points, are judged once on confirm. Those
that were judged are diagnosed. Everything reported is computed from rows and diagnoses.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ray.codec.checkpoints import checkpoint_id, checkpoints, last_checkpoints, read_record, trial_of
from m2ray.config.plan import Plan
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.job import DiagnosisJob
from m2ray.diagnosis.store import diagnosis_folder, read_diagnosis, record_failure
from m2ray.engine.jobs import EvaluationJob, evaluation_jobs, run_job
from m2ray.engine.pool import FinishedJob, Pool
from m2ray.engine.progress import ProgressBoard
from m2ray.engine.proposer import OptunaProposer, Wait
from m2ray.engine.tune_search import run_search, trials_at_once
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.rows import FAILED, RowStore, failure_row, write_rows
from m2ray.judging.selection import best_configs, paired_gain, with_baseline
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

STOP_GRACE_S = 60.0  # of a stopped sweep, for what is being evaluated; a cloud gives two minutes


class Sweep:
    """One sweep in its results folder."""

    def __init__(self, plan: Plan, root: Path, proposer: OptunaProposer, board: ProgressBoard) -> None:
        self.plan, self.root, self.proposer, self.board = plan, root, proposer, board
        self.store = RowStore(root)
        self.constants = root / "checkpoints" / "constants"
        self.undiagnosed: dict[str, str] = {}
        self._full = ""  # what a trial said whose disk was full
        self._pool: Pool | None = None
        self._have: set[tuple[str, int, str, str, str, int, str]] = set()

    # --- the observer of a search ---

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """An epoch was reported: show it, and evaluate its checkpoint on the search split."""
        self.board.reported(name, metrics)
        self.evaluate(self.proposer.configs[name], "search", Path(metrics["checkpoint"]))

    def tick(self) -> None:
        """Take in what the evaluators finished."""
        assert self._pool is not None
        if self._full:
            raise UserError(f"{self.root}: {self._full}; free some and run the same command with --resume")
        for done in self._pool.poll():
            self._take(done)

    # --- evaluation ---

    def evaluate(self, trial: TrialConfig, split: str, folder: Path) -> None:
        """Queue a checkpoint's conditions on a split, less what the rows already have."""
        assert self._pool is not None
        for job in evaluation_jobs(trial, split, folder, self.constants):
            key = self._key(job)
            if key not in self._have:
                self._have.add(key)
                self._pool.submit(job)

    @staticmethod
    def _key(job: EvaluationJob) -> tuple[str, int, str, str, str, int, str]:
        """What a job's rows depend on, so that nothing is played twice."""
        depends, config, seed, checkpoint = get_condition(job.names[0]).depends_on, "", -1, ""
        if depends == "checkpoint" and job.folder:
            record = read_record(job.folder)
            config, seed, checkpoint = record["config"], record["seed"], record["digest"]
        k, place = (0, "") if depends == "receiver" else (job.trial.codec.k, job.trial.codec.place)
        return (config, seed, checkpoint, job.split, job.trial.evaluation.decoding, k, str(place))

    def recall(self) -> None:
        """Learn from the rows on disk what need not be played again, and forget what failed."""
        for line in self.store.set_aside():
            print(f"{line}; played again", file=sys.stderr)
        rows = self.store.read()
        if len(rows):
            self.store.compact()
            rows = rows[rows.condition != FAILED]
            write_rows(self.store.whole, rows)
            keys = ["config", "seed", "checkpoint", "split", "decoding", "k", "place"]
            self._have |= set(rows[keys].itertuples(index=False, name=None))
        self.board.recalled(len(self.proposer.ended), len(self._have))

    def _take(self, done: FinishedJob) -> None:
        self.board.evaluated(done.job.label, done.cause)
        if done.rows is not None:
            self.store.append(done.rows)
            normal = done.rows[done.rows.condition == "normal"]
            if len(normal):
                self.board.solved(str(normal.config.iloc[0]), int(normal.success.sum()), len(normal))
        elif isinstance(done.job, EvaluationJob):
            name = done.job.folder.parts[-3] if done.job.folder else "receiver"
            self.proposer.failures[name] = f"evaluation on {done.job.split}: {done.cause}"
        elif done.cause:
            self._undiagnosed(done.job, done.cause)

    def _undiagnosed(self, job: DiagnosisJob, cause: str) -> None:
        """A diagnosis that failed is said, but takes no verdict away."""
        subject = checkpoint_id(job.folder)
        self.undiagnosed[f"{subject.config}, seed {subject.seed}"] = f"diagnosis: {cause}"
        record_failure(job.out, subject.config, subject.seed, cause)

    def diagnose(self, latest: Mapping[tuple[str, int], Path], judged: Sequence[str]) -> None:
        """Diagnose what was judged, less what has its diagnosis."""
        assert self._pool is not None
        judge, seeds = self.plan.space.judge, diagnosed_seeds(self.plan)
        wanted = [key for key in sorted(latest) if key[0] in judged and key[1] in seeds]
        if not judge.diagnose or not wanted:
            return
        self.board.phase(f"diagnose: {pluralize(len(wanted), 'codec')} on {judge.diagnose} messages")
        for name, seed in wanted:
            folder, out = latest[name, seed], diagnosis_folder(self.root, name, seed)
            if read_diagnosis(out).get("about", {}).get("checkpoint") != read_record(folder)["digest"]:
                trial = self.proposer.configs[name]
                self._pool.submit(DiagnosisJob(trial, folder, self.constants, judge.diagnose, out))
        self.finish_evaluation()

    def finish_evaluation(self) -> None:
        """Wait for all queued jobs."""
        assert self._pool is not None
        for done in self._pool.drain():
            self._take(done)

    # --- the whole ---

    def run(self) -> None:
        """Search, select, confirm, on a cluster that is up; what an earlier run left is not done again."""
        space = self.plan.space
        self.recall()
        self._pool = Pool(run_job, space.resources.evaluators, space.resources.gpus_per_evaluator)
        try:
            configs = pluralize(self.proposer.total, "configuration")
            self.board.phase(f"search: {configs} x {pluralize(len(space.search.seeds), 'seed')}")
            trained = self.root / "checkpoints"
            for folder in checkpoints(trained):
                self.evaluate(trial_of(folder), "search", folder)
            run_search(
                self,
                self,
                space.resources,
                space.search.pruner,
                max_epochs(self.plan),
                self.root / "ray",
                nested=self.plan.workers > 1,
            )
            if space.resources.gpus_per_evaluator <= space.resources.gpus_per_worker:
                self._pool.grow(trials_at_once(space.resources))  # in the places of the trials
            self.finish_evaluation()
            latest = last_checkpoints(trained)
            chosen = self.best(latest, "search", space.judge.select)
            self.board.phase(f"select: {pluralize(len(chosen), 'configuration')}")
            self._play(latest, chosen, "select")
            winners = self.best(latest, "select", space.judge.confirm)
            judged = [name for name in [*self.plan.points, *winners] if name not in self.proposer.failures]
            self.board.phase(f"confirm: {pluralize(len(judged), 'configuration')}, looked at once")
            self._play(latest, judged, "confirm")
            self._record_failures()
            self.diagnose(latest, [name for name in judged if name not in self.proposer.failures])
        except KeyboardInterrupt:
            for done in self._pool.finish(STOP_GRACE_S):
                self._take(done)
            raise
        finally:
            self._pool.close()
        self.store.compact()

    # the proposer, with the board told of ends
    def propose(self) -> dict[str, Any] | Wait | None:
        """See `m2ray.proposer`."""
        return self.proposer.propose()

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """See `m2ray.proposer`."""
        if os.strerror(errno.ENOSPC) in cause:
            self._full = cause  # says nothing about the configuration, which begins again with --resume
            return
        self.proposer.finished(name, score, cause)
        self.board.ended(name, cause)

    def _play(self, latest: Mapping[tuple[str, int], Path], names: Sequence[str], split: str) -> None:
        for (name, _), folder in sorted(latest.items()):
            if name in names:
                self.evaluate(self.proposer.configs[name], split, folder)
        self.finish_evaluation()

    def best(self, latest: Mapping[tuple[str, int], Path], split: str, count: int) -> list[str]:
        """The sampled configurations with the highest mean paired gain over their seeds on a split."""
        rows = self.store.read()
        rows = rows[rows.split == split]
        gains: dict[str, list[float]] = {}
        if not (rows.condition == "P0").any():
            return []  # its evaluation failed: nothing can be compared
        for (name, _), folder in latest.items():
            digest = read_record(folder)["digest"]
            if name in self.plan.points or name in self.proposer.failures:
                continue
            own = rows[rows.checkpoint == digest]
            if len(own):
                gains.setdefault(name, []).append(paired_gain(with_baseline(own, rows)))
        return best_configs(gains, count)

    def _record_failures(self) -> None:
        """Failures as rows, so that the board can be rebuilt from rows alone."""
        for name, cause in self.proposer.failures.items():
            config = self.proposer.configs.get(name, self.plan.example)
            self.store.append(failure_row(name, config.codec.k, config.task.level, cause))


def diagnosed_seeds(plan: Plan) -> list[int]:
    """The training seeds of each judged configuration that are diagnosed."""
    seeds = plan.space.search.seeds
    return seeds if plan.space.judge.diagnose_seeds == "all" else seeds[:1]


def max_epochs(plan: Plan) -> int:
    """Epochs of the longest configuration, its training seeds together."""
    return max(config.training.epochs for config in plan.all) * len(plan.space.search.seeds)
