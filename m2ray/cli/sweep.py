"""Command `python -m m2ray.sweep`: train, ablate, judge and tabulate codecs by the stages of `m2ray.engine`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from m2ray.cli.runner import DONE, NOT_PASSED, SOME_FAILED, Parser
from m2ray.config.gate_file import GateConfig, load_plan_gate
from m2ray.config.packaged_spaces import DEFAULT, find_space, packaged_spaces
from m2ray.config.plan import Plan, load_plan
from m2ray.config.settings import HELP, parse_settings
from m2ray.config.sweep_record import PROGRESS_FILE, read_sweep_record, record_file, write_sweep_record
from m2ray.engine.growing.growth import Growth, Registered, grow, read_growth, read_training_seeds, search_at_start
from m2ray.engine.record import (
    check_results_folder,
    decided_type,
    describe_sweep,
    extend,
    forget,
    lock_results_folder,
    settle_changes,
)
from m2ray.receiver.loading import resolve_receiver
from m2ray.util.errors import UserError, one_line
from m2ray.util.stopping import Stopped, check_stopped, stoppable

if TYPE_CHECKING:
    from m2ray.engine.progress import OutputForm

LOOK_S = 0.2  # between two looks whether a signal was received
# What trials and evaluators take longest to import.
PRELOAD = ("m2ray.engine.trial", "transformers.modeling_utils")


def main(argv: Sequence[str]) -> int:
    """Run a sweep, print the leaderboard and where everything was written."""
    args = _parser().parse_args(argv)
    if args.list:
        for name, about in packaged_spaces().items():
            print(f"{name:<18} {about}")
        return DONE
    if args.json and args.dry_run:
        raise UserError("--json: goes with a sweep that runs; leave it or --dry-run out")
    growth = read_growth(args.add_trials, args.add_seeds)
    if growth.option and args.dry_run:
        raise UserError(f"{growth.option}: goes with a sweep that runs; leave it or --dry-run out")
    args.resume = "--resume" if args.resume else growth.option
    if args.accept_changes and not args.resume:
        raise UserError("--accept-changes: goes with --resume; add that or leave it out")
    plan, root = _load(args, growth)
    gate = load_plan_gate(plan)
    try:
        resolve_receiver(plan.example.receiver)
    except UserError as error:
        raise UserError(f"{plan.file}: {error}") from None
    if args.dry_run:
        _dry_run(plan, gate, root)
        return DONE
    started = time.monotonic()
    try:
        with stoppable(), ExitStack() as lock:
            if args.resume:
                lock.enter_context(lock_results_folder(root))
            registered = check_and_start(plan, gate, root, argv, args, growth)
            return run_sweep(registered, gate, root, args, started, lock)
    except Stopped as stopped:
        begun = record_file(root).is_file()
        option = f"--resume instead of {growth.option}" if growth.option else "--resume"
        advice = f"the same command with {option} continues {root}" if begun else "nothing had begun"
        print(f"stopped; {advice}", file=sys.stderr)
        return stopped.code


def _parser() -> Parser:
    parser = Parser(prog="python -m m2ray.sweep", description="Train, ablate, judge and tabulate codecs.")
    parser.add_argument(
        "space", nargs="?", default=DEFAULT, help=f"YAML file, or a name that --list prints; default: {DEFAULT}"
    )
    parser.add_argument("--list", action="store_true", help="print the spaces that come with the package")
    parser.add_argument(
        "--receiver",
        help="mini, mini-arithmetic, a fetched one, a folder, or a hub name; replaces the space's own",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=HELP)
    parser.add_argument("--trials", type=int, help="configurations to sample, beyond the points")
    parser.add_argument("--name", help="folder below --results; default: the space's name")
    parser.add_argument("--seeds", help="training seeds of each configuration, such as 0,1,2")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="suggest the same whichever trial ends first; one trial at a time, or resources.trials_at_once",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="folder for the results of sweeps; default: ./results",
    )
    parser.add_argument("--address", help="address of a running Ray cluster, or auto; default: a local one")
    parser.add_argument("--resume", action="store_true", help="continue a sweep that was stopped")
    parser.add_argument("--add-trials", type=int, help="continue a sweep with so many sampled configurations more")
    parser.add_argument(
        "--add-seeds", help="continue a sweep with further training seeds, such as 3,4, of what it judges"
    )
    parser.add_argument("--accept-changes", action="store_true", help="with --resume: accept settings that differ")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configurations, cost and checks; train nothing"
    )
    parser.add_argument("--require-pass", action="store_true", help="exit with 1 if nothing passes its gate")
    parser.add_argument(
        "--quiet", action="store_true", help="print failures and the final leaderboard only, no progress"
    )
    parser.add_argument(
        "--json", action="store_true", help="print progress and leaderboard as JSON, one object per line"
    )
    return parser


def _load(args: Namespace, growth: Growth) -> tuple[Plan, Path]:
    """Return the plan and the results folder that the command line names.

    A sweep that grows has the trials and seeds that it began with, whether the file or the command line gave them.
    """
    overrides: dict[str, Any] = {"receiver": args.receiver} if args.receiver else {}
    search = search_overrides(args.trials, args.seeds, args.deterministic)
    plan = load_plan(find_space(args.space), overrides, search, parse_settings(args.set))
    root = _root(args, plan)
    if root.is_symlink():
        raise UserError(f"{root}: a link to {root.resolve()}; give that folder by --results and --name")
    root = root.resolve()
    check_results_folder(root, args.resume, args.name, args.dry_run)
    if args.resume and (began := search_at_start(root, growth)):
        plan = load_plan(plan.file, overrides, {**began, **search})
    return plan, root


def _root(args: Namespace, plan: Plan) -> Path:
    folder: Path = args.results / (args.name or plan.space.name)
    return folder


def results_folder(argv: Sequence[str]) -> Path:
    """Return the results folder of a command line."""
    args = _parser().parse_args(argv)
    return _root(args, load_plan(find_space(args.space), {}, {}, parse_settings(args.set)))


def search_overrides(trials: int | None, seeds: str | None, deterministic: bool) -> dict[str, Any]:
    """Return the settings of `search` that the command line gives."""
    overrides: dict[str, Any] = {"deterministic": True} if deterministic else {}
    if trials is not None:
        overrides["trials"] = trials
    if seeds is not None:
        overrides["seeds"] = read_training_seeds("--seeds", seeds)
    return overrides


def _dry_run(plan: Plan, gate: GateConfig, root: Path) -> None:
    from m2ray.engine.preflight import check_plan, print_plan  # loads torch: --help must not wait for it

    check_plan(plan, gate)
    print_plan(plan, gate, root)


def check_and_start(
    plan: Plan, gate: GateConfig, root: Path, argv: Sequence[str], args: Namespace, growth: Growth
) -> Registered:
    """Start Ray, and meanwhile check the plan: each takes seconds, and neither needs the other."""
    from m2ray.engine import cluster  # loads Ray: --help and --dry-run must not wait for it

    stopping = Event()

    def check() -> Registered:
        from m2ray.engine.growing.confirm_looks import ConfirmLooks  # load torch, while Ray starts
        from m2ray.engine.preflight import check_plan

        if args.resume:
            plan.receiver_dtype = decided_type(root, plan)
        check_plan(plan, gate)
        record = describe_sweep(plan, gate, argv)
        plan.receiver_dtype = record["receiver_run"]["dtype"]
        grown = plan
        if args.resume:
            grown = grow(plan, root, growth)
            ConfirmLooks(root, grown).check_fresh_messages()
            settle_changes(root, record, args.accept_changes)
        if not stopping.is_set():
            announce(args, f"{root.name}: checked; Ray starts")
        return Registered(grown, record, growth, record["command"])

    try:
        with ThreadPoolExecutor(1) as executor:
            checked = executor.submit(check)
            try:
                cluster.start(args.address, nested=plan.workers > 1, preload=PRELOAD)
                check_stopped()
            except BaseException:
                stopping.set()
                raise
            while not wait([checked], timeout=LOOK_S).done:
                check_stopped()
            return checked.result()
    except BaseException:
        cluster.stop()
        raise


def announce(args: Namespace, text: str) -> None:
    """Print a first line of progress: seconds pass until the cluster is up and has work."""
    if args.json:
        print(json.dumps({"event": "phase", "phase": text, "share": 0.0, "seconds": 0.0}), flush=True)
    elif not args.quiet:
        print(text, flush=True)


def run_sweep(
    registered: Registered, gate: GateConfig, root: Path, args: Namespace, started: float, lock: ExitStack
) -> int:
    """Run the sweep on a cluster that is up, then report; return the exit code."""
    # Loads Ray and torch: see above.
    from m2ray.engine import cluster
    from m2ray.engine.cost.forecast import forecast
    from m2ray.engine.preflight import Unfit
    from m2ray.engine.progress import Progress
    from m2ray.engine.proposer import OptunaProposer
    from m2ray.engine.sweep import Sweep
    from m2ray.util.journal import Journal

    plan, growth = registered.plan, registered.growth
    try:
        check_stopped()
        cluster.check_resources(plan.space.resources, plan.workers, local=args.address is None)
        if not args.resume:  # a new folder is made, and locked, after all checks
            lock.enter_context(lock_results_folder(root))
            # Another sweep may have ended there meanwhile.
            check_results_folder(root, args.resume, args.name, args.dry_run)
            write_sweep_record(root, registered.record)
        if growth.option:
            extend(root, growth.trials, growth.seeds, registered.command)
        withdrawn = read_sweep_record(root).get("withdrawn", {})
        proposer = OptunaProposer(plan, root / "checkpoints", Journal(root / "trials.jsonl"), withdrawn)
        form: OutputForm = "json" if args.json else "quiet" if args.quiet else "people"
        with Progress(root.name, forecast(plan), form, root / PROGRESS_FILE) as progress:
            sweep = Sweep(plan, root, proposer, progress, gate)
            sweep.run()
            check_stopped()
            progress.phase("report: tables and pictures")
    except Unfit as error:
        if not args.resume:
            forget(root)
        raise UserError(f"{plan.file}: {error}") from None
    finally:
        cluster.stop()
    failures = {**proposer.failures, **sweep.seed_failures, **sweep.evaluations.diagnosis_failures}
    return report_results(root, failures, started, args)


def report_results(root: Path, failures: Mapping[str, str], started: float, args: Namespace) -> int:
    """Print the leaderboard and what failed, and draw the reports; return the exit code.

    What is judged is written and printed first, and an error while the rest is drawn does not lose it.
    """
    # Loads pandas, statsmodels and matplotlib: see above.
    from m2ray.evaluation.confirm_ledger import looks_line
    from m2ray.reporting.build import judge_folder, write_reports
    from m2ray.reporting.leaderboard import anything_passes
    from m2ray.reporting.leaderboard_text import print_leaderboard

    judged, failures = judge_folder(root), dict(failures)
    leaderboard, looks = judged.leaderboard, judged.record.get("looks", [])
    if args.json:
        lines = json.loads(leaderboard.to_json(orient="records"))
        print(json.dumps({"event": "board", "results": str(root), "looks": len(looks), "board": lines}))
    else:
        print_leaderboard(leaderboard)
        if len(looks) > 1:
            print(f"\n{looks_line(looks)}")
    try:
        write_reports(judged)
    except Exception as error:
        cause = one_line(f"{type(error).__name__}: {error}")
        failures["reports"] = f"{cause}; to repeat: python -m m2ray.report {root}"
    (root / PROGRESS_FILE).unlink(missing_ok=True)
    if not args.json:
        print(f"\n{time.monotonic() - started:.0f} s; everything is in {root}")
    for name, cause in failures.items():
        print(f"failed: {name}: {cause}", file=sys.stderr)
    if args.require_pass and not anything_passes(leaderboard):
        return NOT_PASSED
    return SOME_FAILED if failures else DONE
