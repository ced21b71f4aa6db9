"""`python -m m2ray.sweep`: train, ablate, judge and tabulate codecs; `m2ray.stages` has what happens when."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ray.cli.runner import DONE, NOT_PASSED, SOME_FAILED, Parser, Stopped, stoppable
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import Plan, load_plan
from m2ray.config.record import record_file, write_sweep_record
from m2ray.engine.preflight import check_plan, print_plan
from m2ray.engine.record import check_results_folder, describe_sweep, settle_changes
from m2ray.receiver.loading import resolve_receiver
from m2ray.util.errors import UserError

if TYPE_CHECKING:
    from m2ray.config.gate_file import GateConfig
    from m2ray.engine.progress import OutputForm

DEFAULT_SPACE = Path("search_spaces/quickstart.yaml")


PRELOAD = (
    "m2ray.engine.trial",
    "transformers.modeling_utils",
)  # what trials and evaluators take longest to import


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
    if args.json and args.dry_run:
        raise UserError("--json: goes with a sweep that runs; leave it or --dry-run out")
    overrides: dict[str, Any] = {"receiver": args.receiver} if args.receiver else {}
    plan = load_plan(args.space, overrides, search_overrides(args.trials, args.seeds, args.deterministic))
    root = args.results / (args.name or plan.space.name)
    if root.is_symlink():
        raise UserError(f"{root}: a link to {root.resolve()}; give that folder by --results and --name")
    root = root.resolve()
    check_results_folder(root, args.resume, args.name, args.dry_run)

    gate = load_plan_gate(plan)
    try:
        resolve_receiver(plan.example.receiver)
    except UserError as error:
        raise UserError(f"{plan.file}: {error}") from None
    if args.dry_run:
        check_plan(plan, gate)
        print_plan(plan, gate, root)
        return DONE
    started = time.monotonic()
    try:
        with stoppable():
            about = check_and_start(plan, gate, root, argv, args)
            return run_sweep(plan, root, about, args, started)
    except Stopped as stopped:
        begun = record_file(root).is_file()
        said = f"the same command with --resume goes on with {root}" if begun else "nothing had begun"
        print(f"stopped; {said}", file=sys.stderr)
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


def check_and_start(plan: Plan, gate: GateConfig, root: Path, argv: Sequence[str], args: Any) -> Mapping[str, Any]:
    """Start Ray, and meanwhile refuse what cannot be run: each takes seconds, and neither needs the other.

    Returns:
        What sweep.yaml is to say.
    """
    from m2ray.engine import cluster

    def check() -> Mapping[str, Any]:

        check_plan(plan, gate)
        about = describe_sweep(plan, gate, argv)
        if args.resume:
            settle_changes(root, about, args.accept_changes)
        return about

    try:
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(check)
            cluster.start(args.address, nested=plan.workers > 1, preload=PRELOAD)
            return checked.result()
    except BaseException:
        cluster.stop()
        raise


def run_sweep(plan: Plan, root: Path, about: Mapping[str, Any], args: Any, started: float) -> int:
    """The sweep itself on a cluster that is up, then the board."""
    from m2ray.engine import cluster
    from m2ray.engine.cost import count_work
    from m2ray.engine.progress import ProgressBoard
    from m2ray.engine.proposer import OptunaProposer
    from m2ray.engine.sweep import Sweep
    from m2ray.util.journal import Journal

    try:
        cluster.check_resources(plan.space.resources, plan.workers, local=args.address is None)
        if not args.resume:
            write_sweep_record(root, about)
        proposer = OptunaProposer(plan, root / "checkpoints", Journal(root / "trials.jsonl"))
        form: OutputForm = "json" if args.json else "quiet" if args.quiet else "people"
        with ProgressBoard(root.name, proposer.total, count_work(plan).jobs, form) as board:
            sweep = Sweep(plan, root, proposer, board)
            sweep.run()
            board.phase("report: tables and pictures")
    finally:
        cluster.stop()
    return report_results(root, {**proposer.failures, **sweep.undiagnosed}, started, args)


def report_results(root: Path, failures: Mapping[str, str], started: float, args: Any) -> int:
    """Build what is reported, print the board and what failed; the exit code."""
    from m2ray.judging.gate import PASS
    from m2ray.reporting.build import build
    from m2ray.reporting.leaderboard import print_leaderboard

    leaderboard = build(root)
    if args.json:
        lines = json.loads(leaderboard.to_json(orient="records"))
        print(json.dumps({"event": "board", "results": str(root), "board": lines}))
    else:
        print_leaderboard(leaderboard)
        print(f"\n{time.monotonic() - started:.0f} s; everything is in {root}")
    for name, cause in failures.items():
        print(f"failed: {name}: {cause}", file=sys.stderr)
    if args.require_pass and not (leaderboard.verdict == PASS).any():
        return NOT_PASSED
    return SOME_FAILED if failures else DONE
