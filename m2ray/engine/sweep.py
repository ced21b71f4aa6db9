"""The stages of a sweep: search, select, confirm, diagnose.

    search    points and sampled configurations are trained (`tune_search`, `trial`), while evaluators run every
              reported checkpoint under all conditions on the search split (`evaluations`, `evaluator_pool`,
              `jobs`)
    select    the best by search score are run on the select split
    seeds     training seeds that were added to the sweep are trained, of what is judged (`added_seeds`)
    confirm   the best of those, and all points, are run once on confirm messages (`confirm_looks`)
    diagnose  what was confirmed is diagnosed

An episode's way: job -> conditions -> receiver -> row (`m2ray.evaluation.runner`) -> row store -> verdict
(`m2ray.judging.gate`) -> leaderboard (`m2ray.reporting.leaderboard`). Everything reported is computed from rows
and diagnoses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.codec.checkpoints import checkpoint_id, checkpoints, last_checkpoints
from m2ray.config.gate_file import GateConfig
from m2ray.config.plan import Plan
from m2ray.config.split_names import CONFIRM
from m2ray.config.sweep_record import read_sweep_record, write_sweep_record
from m2ray.engine.cost.budget import Budget
from m2ray.engine.evaluations import Evaluations
from m2ray.engine.evaluator_pool import Pool
from m2ray.engine.growing.added_seeds import AddedSeeds
from m2ray.engine.growing.confirm_looks import ConfirmLook, ConfirmLooks
from m2ray.engine.jobs import may_train, run_job
from m2ray.engine.preflight import check_fit
from m2ray.engine.progress import Progress
from m2ray.engine.proposer import OptunaProposer, Wait
from m2ray.engine.tune_search import Proposer, run_search, trials_at_once
from m2ray.evaluation.rows import failure_row
from m2ray.judging.selection import best_configs, gains_of_rows
from m2ray.util.errors import UserError
from m2ray.util.stopping import check_stopped
from m2ray.util.text import pluralize

STOP_GRACE_S = 60.0  # that a stopped sweep waits for running evaluations; a cloud gives two minutes


class _WatchedProposer:
    """A proposer which also notifies the progress display, knows what runs, and notices a full disk."""

    def __init__(self, proposer: Proposer, progress: Progress) -> None:
        self._proposer, self._progress = proposer, progress
        self.running: set[str] = set()
        self.disk_full = ""  # the cause that a trial gave

    def propose(self) -> dict[str, Any] | Wait | None:
        proposal = self._proposer.propose()
        if isinstance(proposal, dict):
            self.running.add(proposal["config"])
            self._progress.began(proposal["config"])
        return proposal

    def finished(self, name: str, score: float | None, cause: str) -> None:
        self.running.discard(name)
        if os.strerror(errno.ENOSPC) in cause:
            # Not a failure of the configuration, which begins again with --resume.
            self.disk_full = cause
            return
        self._proposer.finished(name, score, cause)
        self._progress.ended(name, cause)


class _Observer:
    """The observer of trials: evaluates each reported checkpoint and records what the evaluators finished."""

    def __init__(self, sweep: Sweep, proposer: _WatchedProposer, evaluations: Evaluations) -> None:
        self._sweep, self._proposer, self._evaluations = sweep, proposer, evaluations

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        config = self._sweep.proposer.configs[name]
        self._sweep.progress.reported(name, metrics, config.training.epoch_samples)
        self._evaluations.queue(config, "search", Path(metrics["checkpoint"]))

    def tick(self) -> None:
        check_stopped()
        if cause := self._proposer.disk_full:
            raise UserError(f"{self._sweep.root}: {cause}; free some and run the same command with --resume")
        self._sweep.count_time(self._proposer.running)
        self._evaluations.collect()


class Sweep:
    """One sweep in its results folder, on a cluster that is up."""

    def __init__(
        self, plan: Plan, root: Path, proposer: OptunaProposer, progress: Progress, gate: GateConfig
    ) -> None:
        self._gate = gate
        self.plan, self.root, self.proposer, self.progress = plan, root, proposer, progress
        self._trained = root / "checkpoints"
        resources = plan.space.resources
        self._pool = Pool(run_job, resources.evaluators, resources.gpus_per_evaluator, unlimited=may_train)
        self.evaluations = Evaluations(root, self._pool, progress, proposer.failures, plan.told)
        self._budget: Budget | None = None  # of the search, while it runs
        self.seed_failures: dict[str, str] = {}  # causes, by configuration, why added seeds are not judged

    def run(self) -> None:
        """Run all stages; what an earlier run has done is not done again."""
        judge = self.plan.space.judge
        recorded = self.evaluations.restore()
        self.progress.restored(self.proposer.ended, recorded)
        try:
            self._check_receiver()
            self._search()
            latest = last_checkpoints(self._trained)
            candidates = self._best(latest, "search", judge.select)
            self.progress.phase(f"select: {pluralize(len(candidates), 'configuration')}")
            self._evaluate(latest, candidates, "select", self.plan.space.search.seeds)
            self.evaluations.finish()
            judged = self._judged(latest, self._best(latest, "select", judge.confirm))
            self._train_added_seeds(judged)
            latest = last_checkpoints(self._trained)
            self._confirm(latest, judged)
            self._record_failures()
            self._diagnose(latest, [name for name in judged if name not in self.proposer.failures])
        except KeyboardInterrupt:
            self.evaluations.finish_running(STOP_GRACE_S)
            raise
        finally:
            self._pool.close()
        self.evaluations.store.compact()

    # --- stages ---

    def _check_receiver(self) -> None:
        """Run the receiver without a codec on the search split, and stop here if no codec could be judged on it.

        Raises:
            Unfit: says why.
        """
        if self.proposer.ended:
            return
        example = self.plan.example
        self.progress.phase(f"receiver: {example.receiver} without a codec, on search")
        self.evaluations.queue_receiver(example, "search")
        self.evaluations.finish()
        rows = self.evaluations.store.read()
        check_fit(rows[rows.split == "search"], self._gate, example.receiver)

    def _search(self) -> None:
        space = self.plan.space
        configs, seeds = (
            pluralize(self.proposer.total, "configuration"),
            pluralize(len(space.search.seeds), "seed"),
        )
        self.progress.phase(f"search: {configs} x {seeds}")
        for folder in checkpoints(self._trained):
            config = self.proposer.configs.get(folder.parts[-3])
            if config is not None:  # not a point that was withdrawn
                self.evaluations.queue(config, "search", folder)
        self._budget = Budget(self.root, space.search)
        self.count_time(())
        self._run_trials(self.proposer, space.search.pruner, "search")
        self._budget.save()
        self._record_budget()
        if space.resources.gpus_per_evaluator <= space.resources.gpus_per_worker:
            self._pool.grow(trials_at_once(space.resources))  # evaluators take the trials' places
        self.evaluations.finish()

    def count_time(self, running: Collection[str]) -> None:
        """Count the time of the search, while these configurations train; start nothing new once it is spent."""
        if self._budget is None:
            return
        resources, configs = self.plan.space.resources, self.proposer.configs
        workers = sum(configs[name].workers for name in running)
        self._budget.tick(workers * resources.cpus_per_worker / resources.pack)
        if self._budget.spent and not self.proposer.closed:
            self.proposer.closed = True
            if self.proposer.left_out:
                self.progress.phase(f"{self._budget.spent} spent: what runs is finished, nothing new starts")

    def _record_budget(self) -> None:
        """Record what the search has left out, for the reports; end the count."""
        assert self._budget is not None
        record = read_sweep_record(self.root)
        left_out = self.proposer.left_out if self._budget.spent else []
        line = f"{self._budget.spent} spent; not trained: {', '.join(left_out)}"
        if record.pop("budget", None) or left_out:
            write_sweep_record(self.root, {**record, **({"budget": line} if left_out else {})})
        self._budget = None

    def _run_trials(self, proposer: Proposer, pruner: str, name: str) -> None:
        """Train what a proposer has, and evaluate it on the search split meanwhile."""
        watched = _WatchedProposer(proposer, self.progress)
        run_search(
            watched,
            _Observer(self, watched, self.evaluations),
            self.plan.space.resources,
            pruner,
            max_epochs(self.plan),
            self.root / "ray",
            nested=self.plan.workers > 1,
            name=name,
        )

    def _evaluate(
        self,
        latest: Mapping[tuple[str, int], Path],
        names: Sequence[str],
        split: str,
        training_seeds: Sequence[int],
        seeds: tuple[int, ...] | None = None,
    ) -> None:
        """Queue the latest checkpoints of configurations for evaluation on a split."""
        for (name, seed), folder in sorted(latest.items()):
            if name in names and seed in training_seeds and self._is_alive(name):
                self.evaluations.queue(self.proposer.configs[name], split, folder, seeds)

    def _is_alive(self, name: str) -> bool:
        """Return False for a configuration that failed, or a point that was withdrawn."""
        return name in self.proposer.configs and name not in self.proposer.failures

    def _judged(self, latest: Mapping[tuple[str, int], Path], winners: Sequence[str]) -> list[str]:
        """Return what is judged on confirm: the points, what was judged there before, and the best on select."""
        earlier = [name for look in self._looks().taken() for name in look.configurations]
        trained = {name for name, _ in latest}  # a spent budget leaves points out
        names = dict.fromkeys([*self.plan.points, *earlier, *winners])
        return [name for name in names if name in trained and self._is_alive(name)]

    def _looks(self) -> ConfirmLooks:
        return ConfirmLooks(self.root, self.plan, self.evaluations.store.read())

    def _train_added_seeds(self, judged: Sequence[str]) -> None:
        """Train the seeds that were added to the sweep; those of a failed training are not judged."""
        seeds = self.plan.added_seeds
        if not seeds:
            return
        trainings = AddedSeeds(self.proposer, judged, seeds, self._trained)
        self.progress.phase(f"added seeds {', '.join(map(str, seeds))}: {pluralize(len(judged), 'configuration')}")
        self._run_trials(trainings, "none", "added-seeds")
        self.evaluations.finish()
        self.seed_failures = trainings.failures

    def _confirm(self, latest: Mapping[tuple[str, int], Path], judged: Sequence[str]) -> None:
        """Evaluate what no look at confirm has judged yet in a new look, and finish the earlier looks."""
        looks = self._looks()
        pending = [name for name in looks.pending(judged) if name not in self.seed_failures]
        if pending:
            looks.open(pending)
        rows, taken = self.evaluations.store.read(), looks.taken()
        unfinished = [look for look in taken if self._is_unfinished(look, latest, rows[rows.split == look.split])]
        for look in unfinished:
            self.progress.phase(
                f"{look.split}: {pluralize(len(look.configurations), 'configuration')}; {look.line}"
            )
        if not unfinished:
            self.progress.phase(f"{CONFIRM}: {pluralize(len(judged), 'configuration')}; judged before")
        for look in taken:
            seeds = None if look.split == CONFIRM else tuple(look.seeds)
            self._evaluate(latest, look.configurations, look.split, look.training_seeds, seeds)
        self.evaluations.finish()

    def _is_unfinished(
        self, look: ConfirmLook, latest: Mapping[tuple[str, int], Path], rows: pd.DataFrame
    ) -> bool:
        """Return whether a checkpoint that a look judges has no rows of it."""
        return any(
            rows_of(rows, folder).empty
            for (name, seed), folder in latest.items()
            if name in look.configurations and seed in look.training_seeds and self._is_alive(name)
        )

    def _best(self, latest: Mapping[tuple[str, int], Path], split: str, count: int) -> list[str]:
        """Return the sampled configurations with the highest mean paired gain over their seeds on a split."""
        rows = self.evaluations.store.read()
        rows = rows[rows.split == split]
        gains: dict[str, list[float]] = {}
        if not (rows.condition == "P0").any():
            return []  # its evaluation failed: nothing can be compared
        alive = [
            checkpoint_id(folder)
            for (name, seed), folder in latest.items()
            # Others failed, are judged anyway, or are unknown to the search.
            if self._is_alive(name) and name not in self.plan.points and seed not in self.plan.added_seeds
        ]
        keys = {(each.config, each.seed, each.checkpoint) for each in alive}
        for key, gain in gains_of_rows(rows, keys).items():
            gains.setdefault(key[0], []).append(gain)
        return best_configs(gains, count)

    def _record_failures(self) -> None:
        """Record failures as rows, so that the leaderboard can be rebuilt from rows alone."""
        for name, cause in self.proposer.failures.items():
            config = self.proposer.configs.get(name, self.plan.example)
            self.evaluations.store.append(failure_row(name, config.codec.k, config.task.name, cause))

    def _diagnose(self, latest: Mapping[tuple[str, int], Path], judged: Sequence[str]) -> None:
        judge, seeds = self.plan.space.judge, diagnosed_seeds(self.plan)
        wanted = [key for key in sorted(latest) if key[0] in judged and key[1] in seeds]
        if not self.plan.diagnosed or not wanted:
            return
        self.progress.phase(f"diagnose: {pluralize(len(wanted), 'codec')} on {judge.diagnose} messages")
        for name, seed in wanted:
            config = self.proposer.configs[name]
            self.evaluations.queue_diagnosis(config, latest[name, seed], judge.diagnose, name, seed)
        self.evaluations.finish()


def rows_of(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the rows of a checkpoint; those of equal weights in another folder are not its own."""
    own = checkpoint_id(folder)
    return rows[(rows.config == own.config) & (rows.seed == own.seed) & (rows.checkpoint == own.checkpoint)]


def diagnosed_seeds(plan: Plan) -> list[int]:
    """Return the training seeds of each judged configuration that are diagnosed."""
    seeds = plan.space.search.seeds
    return seeds if plan.space.judge.diagnose_seeds == "all" else seeds[:1]


def max_epochs(plan: Plan) -> int:
    """Return the epochs of the longest configuration, all its training seeds together."""
    return max(config.training.epochs for config in plan.all) * len(plan.space.search.seeds)
