"""`python -m m2ray.sweep`: train, ablate, judge and tabulate codecs.

The flow: points and sampled configurations are trained while evaluators play every reported checkpoint under all
conditions on the search split; the best go to select, the best of those, with all points, are judged once on
confirm. Those that were judged are diagnosed. Everything reported is computed from rows and diagnoses.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ray import diagnoses, manifest
from m2ray.board import Board, Form, counted
from m2ray.command import DONE, NOT_PASSED, SOME_FAILED, Parser, Stopped, UserError, run, stoppable
from m2ray.config import TrialConfig
from m2ray.gate import PASS
from m2ray.rows import FAILED, RowStore, write_rows
from m2ray.space import Plan, load_plan

if TYPE_CHECKING:
    import pandas as pd

    from m2ray.jobs import DiagnosisJob, Job
    from m2ray.pool import Done, Pool
    from m2ray.proposer import Later, OptunaProposer

LAST_S = 60.0  # of a stopped sweep, for what is being evaluated; a cloud gives two minutes
DEFAULT_SPACE = Path("search_spaces/quickstart.yaml")


class Sweep:
    """One sweep in its results folder."""

    def __init__(self, plan: Plan, root: Path, proposer: OptunaProposer, board: Board) -> None:
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
        from m2ray.jobs import jobs_of

        assert self._pool is not None
        for job in jobs_of(trial, split, folder, self.constants):
            key = self._key(job)
            if key not in self._have:
                self._have.add(key)
                self._pool.submit(job)

    @staticmethod
    def _key(job: Job) -> tuple[str, int, str, str, str, int, str]:
        """What a job's rows depend on, so that nothing is played twice."""
        from m2ray.codec import read_record
        from m2ray.conditions import condition

        depends, config, seed, checkpoint = condition(job.names[0]).depends, "", -1, ""
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

    def _take(self, done: Done) -> None:
        from m2ray.jobs import Job

        self.board.evaluated(done.job.label, done.cause)
        if done.rows is not None:
            self.store.append(done.rows)
            normal = done.rows[done.rows.condition == "normal"]
            if len(normal):
                self.board.solved(str(normal.config.iloc[0]), int(normal.success.sum()), len(normal))
        elif isinstance(done.job, Job):
            name = done.job.folder.parts[-3] if done.job.folder else "receiver"
            self.proposer.failures[name] = f"evaluation on {done.job.split}: {done.cause}"
        elif done.cause:
            self._undiagnosed(done.job, done.cause)

    def _undiagnosed(self, job: DiagnosisJob, cause: str) -> None:
        """A diagnosis that failed is said, but takes no verdict away."""
        from m2ray.jobs import subject_of

        subject = subject_of(job.folder)
        self.undiagnosed[f"{subject.config}, seed {subject.seed}"] = f"diagnosis: {cause}"
        diagnoses.record_failure(job.out, subject.config, subject.seed, cause)

    def diagnose(self, latest: Mapping[tuple[str, int], Path], judged: Sequence[str]) -> None:
        """Diagnose what was judged, less what has its diagnosis."""
        from m2ray.codec import read_record
        from m2ray.jobs import DiagnosisJob

        assert self._pool is not None
        judge, seeds = self.plan.space.judge, diagnosed_seeds(self.plan)
        wanted = [key for key in sorted(latest) if key[0] in judged and key[1] in seeds]
        if not judge.diagnose or not wanted:
            return
        self.board.phase(f"diagnose: {counted(len(wanted), 'codec')} on {judge.diagnose} messages")
        for name, seed in wanted:
            folder, out = latest[name, seed], diagnoses.folder_of(self.root, name, seed)
            if diagnoses.read(out).get("about", {}).get("checkpoint") != read_record(folder)["digest"]:
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
        from m2ray.jobs import checkpoints, last_checkpoints, run_any, trial_of
        from m2ray.pool import Pool
        from m2ray.search import search, trials_at_once

        space = self.plan.space
        self.recall()
        self._pool = Pool(run_any, space.resources.evaluators, space.resources.gpus_per_evaluator)
        try:
            configs = counted(self.proposer.total, "configuration")
            self.board.phase(f"search: {configs} x {counted(len(space.search.seeds), 'seed')}")
            trained = self.root / "checkpoints"
            for folder in checkpoints(trained):
                self.evaluate(trial_of(folder), "search", folder)
            search(self, self, space.resources, space.search.pruner, most_epochs(self.plan), self.root / "ray")
            if space.resources.gpus_per_evaluator <= space.resources.gpus_per_worker:
                self._pool.grow(trials_at_once(space.resources))  # in the places of the trials
            self.finish_evaluation()
            latest = last_checkpoints(trained)
            chosen = self.best(latest, "search", space.judge.select)
            self.board.phase(f"select: {counted(len(chosen), 'configuration')}")
            self._play(latest, chosen, "select")
            winners = self.best(latest, "select", space.judge.confirm)
            judged = [name for name in [*self.plan.points, *winners] if name not in self.proposer.failures]
            self.board.phase(f"confirm: {counted(len(judged), 'configuration')}, looked at once")
            self._play(latest, judged, "confirm")
            self._record_failures()
            self.diagnose(latest, [name for name in judged if name not in self.proposer.failures])
        except KeyboardInterrupt:
            for done in self._pool.finish(LAST_S):
                self._take(done)
            raise
        finally:
            self._pool.close()
        self.store.compact()

    # the proposer, with the board told of ends
    def propose(self) -> dict[str, Any] | Later | None:
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
        from m2ray.codec import read_record
        from m2ray.rows import best, paired_gain

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
        return best(gains, count)

    def _record_failures(self) -> None:
        """Failures as rows, so that the board can be rebuilt from rows alone."""
        from m2ray.rows import failure_row

        for name, cause in self.proposer.failures.items():
            config = self.proposer.configs.get(name, self.plan.example)
            self.store.append(failure_row(name, config.codec.k, config.task.level, cause))


def diagnosed_seeds(plan: Plan) -> list[int]:
    """The training seeds of each judged configuration that are diagnosed."""
    seeds = plan.space.search.seeds
    return seeds if plan.space.judge.diagnose_seeds == "all" else seeds[:1]


def most_epochs(plan: Plan) -> int:
    """Epochs of the longest configuration, its training seeds together."""
    configs = [*plan.points.values(), *plan.checked]
    return max(config.training.epochs for config in configs) * len(plan.space.search.seeds)


def with_baseline(own: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """A checkpoint's rows with the P0 rows they are paired with."""
    import pandas as pd

    baseline = rows[(rows.condition == "P0") & (rows.decoding == own.decoding.iloc[0])]
    return pd.concat([own, baseline], ignore_index=True)


def main(argv: Sequence[str]) -> int:
    """Run a sweep, print the leaderboard and where everything was written."""
    parser = Parser(prog="python -m m2ray.sweep", description="Train, ablate, judge and tabulate codecs.")
    parser.add_argument("space", nargs="?", type=Path, default=DEFAULT_SPACE, help=f"default: {DEFAULT_SPACE}")
    parser.add_argument(
        "--receiver", help="mini, mini-arithmetic, one fetched, a folder, or a hub name; over the space's own"
    )
    parser.add_argument("--trials", type=int, help="configurations to sample, beyond the points")
    parser.add_argument("--name", help="folder below --results; default: the space's name")
    parser.add_argument("--seeds", help="training seeds of each configuration, such as 0,1,2")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="suggest the same whichever trial ends first; one trial at a time, or resources.trials_at_once",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where sweeps have their folders; default: results"
    )
    parser.add_argument("--address", help="of a running Ray cluster, or auto; default: a local one")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep that was stopped")
    parser.add_argument("--accept-changes", action="store_true", help="with --resume: settings that differ")
    parser.add_argument("--dry-run", action="store_true", help="print cells, cost and checks, train nothing")
    parser.add_argument("--require-pass", action="store_true", help="exit 1 if nothing passes its gate")
    parser.add_argument("--quiet", action="store_true", help="no progress: what failed, and the board at the end")
    parser.add_argument("--json", action="store_true", help="progress and board as JSON, an object a line")
    args = parser.parse_args(argv)

    if args.accept_changes and not args.resume:
        raise UserError("--accept-changes: goes with --resume; add that or leave it out")
    overrides: dict[str, Any] = {"receiver": args.receiver} if args.receiver else {}
    plan = load_plan(args.space, overrides, search_overrides(args.trials, args.seeds, args.deterministic))
    root = args.results / (args.name or plan.space.name)
    if root.is_symlink():
        raise UserError(f"{root}: a link to {root.resolve()}; give that folder by --results and --name")
    root = root.resolve()
    manifest.check_folder(root, args.resume, args.name, args.dry_run)

    from m2ray import preflight

    gate = preflight.gate_of(plan)
    preflight.check(plan, gate)
    if args.dry_run:
        preflight.print_plan(plan, gate, root)
        return DONE
    about = manifest.describe(plan, gate, argv)
    if args.resume:
        manifest.settle(root, about, args.accept_changes)
    try:
        with stoppable():
            return execute(plan, root, about, args)
    except Stopped as stopped:
        print(f"stopped; the same command with --resume goes on with {root}", file=sys.stderr)
        return stopped.code


def search_overrides(trials: int | None, seeds: str | None, deterministic: bool) -> dict[str, Any]:
    """What the command line says about the search, over the file."""
    over: dict[str, Any] = {"deterministic": True} if deterministic else {}
    if trials is not None:
        over["trials"] = trials
    if seeds is not None:
        try:
            over["seeds"] = [int(part) for part in seeds.split(",")]
        except ValueError:
            raise UserError(f"--seeds: {seeds!r} is no list of whole numbers; write 0,1,2") from None
    return over


def execute(plan: Plan, root: Path, about: Mapping[str, Any], args: Any) -> int:
    """The sweep itself, then the board."""
    from m2ray import cluster
    from m2ray.preflight import work_of
    from m2ray.proposer import Journal, OptunaProposer
    from m2ray.report import build, print_board

    started = time.monotonic()
    workers = max(config.workers for config in [*plan.points.values(), *plan.checked])
    cluster.start(args.address, nested=workers > 1)
    try:
        cluster.check_room(plan.space.resources, workers, local=args.address is None)
        if not args.resume:
            manifest.write(root, about)
        proposer = OptunaProposer(plan, root / "checkpoints", Journal(root / "trials.jsonl"))
        form: Form = "json" if args.json else "quiet" if args.quiet else "people"
        with Board(root.name, proposer.total, work_of(plan).jobs, form) as board:
            sweep = Sweep(plan, root, proposer, board)
            sweep.run()
            board.phase("report: tables and pictures")
    finally:
        cluster.stop()
    leaderboard = build(root)
    if args.json:
        lines = json.loads(leaderboard.to_json(orient="records"))
        print(json.dumps({"event": "board", "results": str(root), "board": lines}))
    else:
        print_board(leaderboard)
        print(f"\n{time.monotonic() - started:.0f} s; everything is in {root}")
    failures = {**proposer.failures, **sweep.undiagnosed}
    for name, cause in failures.items():
        print(f"failed: {name}: {cause}", file=sys.stderr)
    if args.require_pass and not (leaderboard.verdict == PASS).any():
        return NOT_PASSED
    return SOME_FAILED if failures else DONE


if __name__ == "__main__":
    run(main)
