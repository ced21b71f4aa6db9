"""`python -m m2ray.sweep`: train, ablate, judge and tabulate codecs.

The flow: points and sampled configurations are trained while evaluators play every reported checkpoint under all
conditions on the search split; the best go to select, the best of those, with all points, are judged once on
confirm. Everything reported is computed from rows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ray.board import Board
from m2ray.command import DONE, NOT_PASSED, SOME_FAILED, Parser, UserError, run
from m2ray.config import TrialConfig
from m2ray.rows import RowStore
from m2ray.space import Plan, load_plan

if TYPE_CHECKING:
    import pandas as pd

    from m2ray.cluster import Done, Pool
    from m2ray.jobs import Job
    from m2ray.proposer import OptunaProposer

DEFAULT_SPACE = Path("search_spaces/quickstart.yaml")


class Sweep:
    """One sweep in its results folder."""

    def __init__(self, plan: Plan, root: Path, proposer: OptunaProposer, board: Board) -> None:
        self.plan, self.root, self.proposer, self.board = plan, root, proposer, board
        self.store = RowStore(root)
        self.constants = root / "checkpoints" / "constants"
        self._pool: Pool | None = None
        self._submitted: set[Job] = set()
        self._have: set[tuple[str, str, str, int, str]] = set()

    # --- the observer of a search ---

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """An epoch was reported: show it, and evaluate its checkpoint on the search split."""
        self.board.reported(name, metrics)
        self.evaluate(self.proposer.configs[name], "search", Path(metrics["checkpoint"]))

    def tick(self) -> None:
        """Take in what the evaluators finished."""
        assert self._pool is not None
        for done in self._pool.poll():
            self._take(done)

    # --- evaluation ---

    def evaluate(self, trial: TrialConfig, split: str, folder: Path) -> None:
        """Queue a checkpoint's conditions on a split, less what the rows already have."""
        from m2ray.jobs import jobs_of

        assert self._pool is not None
        for job in jobs_of(trial, split, folder, self.constants):
            key = self._key(job)
            if key in self._have:
                continue
            self._have.add(key)
            self.board.expect(1)
            self._pool.submit(job)

    @staticmethod
    def _key(job: Job) -> tuple[str, str, str, int, str]:
        """What a job's rows depend on, so that nothing is played twice."""
        from m2ray.codec import read_record
        from m2ray.conditions import condition

        depends = condition(job.names[0]).depends
        checkpoint = read_record(job.folder)["digest"] if depends == "checkpoint" and job.folder else ""
        slots = job.trial.codec.k if depends != "receiver" else 0
        place = job.trial.codec.place if depends != "receiver" else ""
        return (checkpoint, job.split, job.trial.evaluation.decoding, slots, place)

    def recall(self) -> None:
        """Learn from the rows on disk what need not be played again."""
        rows = self.store.read()
        keys = ["checkpoint", "split", "decoding", "k", "place"]
        for key in rows[rows.condition != "failed"][keys].drop_duplicates().itertuples(index=False):
            checkpoint, split, decoding, k, place = key
            self._have.add((checkpoint, split, decoding, k, place))

    def _take(self, done: Done) -> None:
        self.board.evaluated(done.job.label, done.cause)
        if done.rows is None:
            name = done.job.folder.parts[-3] if done.job.folder else ""
            self.fail(name or "receiver", f"evaluation on {done.job.split}: {done.cause}")
            return
        self.store.append(done.rows)

    def finish_evaluation(self) -> None:
        """Wait for all queued jobs."""
        assert self._pool is not None
        for done in self._pool.drain():
            self._take(done)

    def fail(self, name: str, cause: str) -> None:
        """Put a failure on the board."""
        self.proposer.failures[name] = cause

    # --- the whole ---

    def run(self, address: str | None) -> None:
        """Search, select, confirm; what an earlier run left is not done again."""
        from m2ray import cluster
        from m2ray.jobs import last_checkpoints, trial_of

        space = self.plan.space
        nested = any(config.workers > 1 for config in [*self.plan.points.values(), self.plan.example])
        self.recall()
        cluster.start(address, nested)
        self._pool = cluster.Pool(space.resources.evaluators, space.resources.gpus_per_evaluator)
        try:
            self.board.phase(f"search: {self.proposer.total} configurations x {len(space.search.seeds)} seeds")
            trained = self.root / "checkpoints"
            for folder in sorted(trained.glob("*/seed-*/epoch-*/config.json")):
                self.evaluate(trial_of(folder.parent), "search", folder.parent)
            cluster.search(
                self,
                self,
                space.resources,
                space.search.pruner,
                max_epochs(self.plan) * len(space.search.seeds),
                None,
                self.root / "ray",
            )
            self.finish_evaluation()
            latest = last_checkpoints(trained)
            self._record_failures()
            chosen = self.best(latest, "search", space.judge.select)
            self.board.phase(f"select: {len(chosen)} configurations")
            self._play(latest, chosen, "select")
            winners = self.best(latest, "select", space.judge.confirm)
            judged = [*self.plan.points, *winners]
            self.board.phase(f"confirm: {len(judged)} configurations, looked at once")
            self._play(latest, judged, "confirm")
            self._record_failures()
        finally:
            self._pool.close()
            cluster.stop()
        self.store.compact()

    # the proposer, with the board told of ends
    def propose(self) -> dict[str, Any] | None:
        """See `m2ray.proposer`."""
        return self.proposer.propose()

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """See `m2ray.proposer`."""
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
        from m2ray.rows import paired_gain

        rows = self.store.read()
        rows = rows[rows.split == split]
        gains: dict[str, list[float]] = {}
        for (name, _), folder in latest.items():
            digest = read_record(folder)["digest"]
            if name in self.plan.points or name in self.proposer.failures:
                continue
            own = rows[rows.checkpoint == digest]
            if len(own):
                gains.setdefault(name, []).append(paired_gain(with_baseline(own, rows)))
        ranked = sorted(gains, key=lambda name: (-sum(gains[name]) / len(gains[name]), name))
        return ranked[:count]

    def _record_failures(self) -> None:
        """Failures as rows, so that the board can be rebuilt from rows alone."""
        from m2ray.rows import failure_row

        for name, cause in self.proposer.failures.items():
            config = self.proposer.configs.get(name, self.plan.example)
            self.store.append(failure_row(name, config.codec.k, config.task.level, cause))


def max_epochs(plan: Plan) -> int:
    """Epochs of the longest training in a plan."""
    return max(config.training.epochs for config in [*plan.points.values(), plan.example])


def with_baseline(own: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """A checkpoint's rows with the P0 rows they are paired with."""
    import pandas as pd

    baseline = rows[(rows.condition == "P0") & (rows.decoding == own.decoding.iloc[0])]
    return pd.concat([own, baseline], ignore_index=True)


def describe(plan: Plan, file: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Everything that decides a sweep's outcome, for sweep.yaml."""
    import importlib.metadata
    import platform
    import shlex
    import subprocess

    from m2ray.receiver import load_receiver

    packages = ("m2ray", "torch", "transformers", "ray", "optuna", "numpy", "scipy", "statsmodels", "pandas")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    receiver = load_receiver(plan.example.receiver)
    return {
        "command": shlex.join(["python", "-m", "m2ray.sweep", *argv]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {receiver.device.type}",
        "python": platform.python_version(),
        "git": commit.stdout.strip() or "not a git checkout",
        "receiver": {"name": receiver.name, "digest": receiver.digest},
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "space": plan.space.model_dump(by_alias=True),
        "file": str(file),
        "points": {name: config.model_dump() for name, config in plan.points.items()},
    }


def dry_run(plan: Plan, root: Path) -> None:
    """Print the cells, the cost and the checks; train nothing, write nothing."""
    from m2ray.evaluation import check_no_leak, condition_names
    from m2ray.receiver import load_receiver
    from m2ray.source import Source

    space, example = plan.space, plan.example
    configs = [*plan.points.values(), *[example] * space.search.trials]
    seeds, conditions = len(space.search.seeds), condition_names(example.evaluation)
    samples = sum(c.training.epochs * c.training.epoch_samples for c in configs) * seeds
    reports = sum(c.training.epochs for c in configs) * seeds
    sizes = {split: len(example.splits.seeds(split)) for split in ("search", "select", "confirm")}
    judged = len(plan.points) + space.judge.confirm
    cells = reports * sizes["search"] + seeds * (space.judge.select * sizes["select"] + judged * sizes["confirm"])
    receiver = load_receiver(example.receiver)
    source = Source(example.task)
    source.check_disjoint(example.splits)
    check_no_leak(receiver, source.get(example.splits.seeds("search"), "search"))
    weights = sum(p.numel() for p in receiver.model.parameters())
    tokens = receiver.layout(
        source.get(example.splits.seeds("search")[:50], "search"), example.codec.k
    ).ids_BT.shape[1]
    print(f"{space.name}: {space.about}")
    print(f"  writes to        {root}")
    print(f"  receiver         {receiver.name}, {weights / 1e6:.1f} M parameters, digest {receiver.digest}")
    print(
        f"  configurations   {len(plan.points)} points ({', '.join(plan.points)}) + {space.search.trials} sampled"
    )
    for key, axis in space.axes.items():
        print(
            f"    axis           {key}: {axis.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)}"
        )
    print(f"  training         x {seeds} seeds, {samples:,} samples, {reports} checkpoints")
    print(f"  episodes         {', '.join(f'{split} {size}' for split, size in sizes.items())}")
    print(f"  conditions       {', '.join(conditions)}")
    print(f"  evaluation       about {cells * len(conditions):,} answers to decode")
    # 2 operations a weight and token forward, 4 backward (to activations only: 2), right and wrong message.
    work = samples * tokens * weights * (2 * 4 + 2) + cells * len(conditions) * tokens * weights * 4
    print(f"  cost             about {work:.1e} operations of the receiver, {tokens} tokens a row")
    print(
        "  checks           space valid; splits disjoint by seed and content; B's tokens do not leak the message"
    )


def main(argv: Sequence[str]) -> int:
    """Run a sweep, print the leaderboard and where everything was written."""
    parser = Parser(prog="python -m m2ray.sweep", description="Train, ablate, judge and tabulate codecs.")
    parser.add_argument("space", nargs="?", type=Path, default=DEFAULT_SPACE, help=f"default: {DEFAULT_SPACE}")
    parser.add_argument("--receiver", help="mini, a folder, or a hub name; over the space's own")
    parser.add_argument("--trials", type=int, help="configurations to sample, beyond the points")
    parser.add_argument("--name", help="folder below --results; default: the space's name")
    parser.add_argument("--seeds", help="training seeds of each configuration, such as 0,1,2")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--address", help="of a running Ray cluster, or auto; default: a local one")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep that was stopped")
    parser.add_argument("--dry-run", action="store_true", help="print cells, cost and checks, train nothing")
    parser.add_argument("--require-pass", action="store_true", help="exit 1 if nothing passes its gate")
    args = parser.parse_args(argv)

    overrides: dict[str, Any] = {"receiver": args.receiver} if args.receiver else {}
    plan = load_plan(args.space, overrides, search_overrides(args.trials, args.seeds))
    root = (args.results / (args.name or plan.space.name)).resolve()
    if args.dry_run:
        dry_run(plan, root)
        return DONE
    check_folder(root, args.resume, args.name)
    return execute(plan, root, args, argv)


def search_overrides(trials: int | None, seeds: str | None) -> dict[str, Any]:
    """What the command line says about the search, over the file."""
    over: dict[str, Any] = {}
    if trials is not None:
        over["trials"] = trials
    if seeds is not None:
        try:
            over["seeds"] = [int(part) for part in seeds.split(",")]
        except ValueError:
            raise UserError(f"--seeds: {seeds!r} is no list of whole numbers; write 0,1,2") from None
    return over


def check_folder(root: Path, resume: bool, name: str | None) -> None:
    """Refuse to mix two sweeps in one folder.

    Raises:
        UserError: the folder holds a sweep and `--resume` was not given, or the other way round.
    """
    if name is not None and (name in (".", "..") or Path(name).name != name):
        raise UserError(f"--name: {name!r} is no plain folder name; use letters, digits, - and _")
    there = (root / "sweep.yaml").is_file()
    if there and not resume:
        raise UserError(f"{root}: already holds a sweep; go on with --resume, or choose another --name")
    if resume and not there:
        raise UserError(f"{root}: no sweep.yaml to resume; check --name and --results, or leave --resume out")


def execute(plan: Plan, root: Path, args: Any, argv: Sequence[str]) -> int:
    """The sweep itself, then the board."""
    import yaml

    from m2ray.proposer import Journal, OptunaProposer
    from m2ray.report import build, print_board
    from m2ray.state import write_atomic

    about = describe(plan, args.space, argv)
    record = root / "sweep.yaml"
    if args.resume:
        before = yaml.safe_load(record.read_text())
        for key in ("space", "points", "receiver"):
            if before.get(key) != yaml.safe_load(yaml.safe_dump(about[key])):
                raise UserError(
                    f"{record}: {key}: differs from what this sweep began with; restore it or use another --name"
                )
    else:
        write_atomic(record, yaml.safe_dump(about, sort_keys=False).encode())
    started = time.monotonic()
    proposer = OptunaProposer(plan, root / "checkpoints", Journal(root / "trials.jsonl"))
    with Board(root.name, proposer.total, max_epochs(plan) * len(plan.space.search.seeds)) as board:
        sweep = Sweep(plan, root, proposer, board)
        sweep.run(args.address)
    leaderboard = build(root)
    print_board(leaderboard)
    print(f"\n{time.monotonic() - started:.0f} s; everything is in {root}")
    if proposer.failures:
        for name, cause in proposer.failures.items():
            print(f"failed: {name}: {cause}", file=sys.stderr)
        return SOME_FAILED
    if args.require_pass and not (leaderboard.verdict == "PASS").any():
        return NOT_PASSED
    return DONE


if __name__ == "__main__":
    run(main)
