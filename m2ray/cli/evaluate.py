"""`python -m m2ray.evaluate CHECKPOINT`: play one checkpoint under the ablation conditions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from m2ray.cli.runner import DONE, Parser
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.confirm_ledger import check_first_look, confirm_ledger, sweep_of
from m2ray.judging.gate import count_successes
from m2ray.judging.verdict_tables import summary_table
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable
from m2ray.util.tables import markdown


def main(argv: Sequence[str]) -> int:
    """Evaluate, print success per condition, write rows where asked."""
    parser = Parser(
        prog="python -m m2ray.evaluate", description="Play a checkpoint under the ablation conditions."
    )
    parser.add_argument("checkpoint", type=Path, help="folder with codec.safetensors and config.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=("search", "select", "confirm"), help="default: search")
    which.add_argument("--seeds", help="episode seeds A:B, end excluded; messages never seen in training")
    parser.add_argument(
        "--conditions", help="comma-separated; default: those the checkpoint's configuration names"
    )
    parser.add_argument("--receiver", help="where the receiver is now, if it moved")
    parser.add_argument("--out", type=Path, help="write rows to this Parquet file")
    parser.add_argument("--unlock", action="store_true", help="look at confirm again; the report will say so")
    args = parser.parse_args(argv)
    if args.out is not None:
        check_out(args.out)

    from m2ray.codec.checkpoints import read_record, trial_of
    from m2ray.config.gate_file import load_gate
    from m2ray.engine.jobs import EvaluationJob, run_evaluation, split_seeds
    from m2ray.evaluation.conditions import get_condition
    from m2ray.evaluation.rows import write_rows
    from m2ray.receiver.loading import load_receiver
    from m2ray.util.files import cache_root

    trial: TrialConfig = trial_of(args.checkpoint)
    names = args.conditions.split(",") if args.conditions else trial.evaluation.condition_names
    for name in names:
        get_condition(name)
    split = args.split or args.seeds or "search"
    try:
        seeds, confirm = split_seeds(trial, split), trial.splits.seeds("confirm")
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None
    # A published codec has been judged: whoever plays it again chooses nothing by it.
    published = "published" in read_record(args.checkpoint)
    looks = seeds.start < confirm.stop and confirm.start < seeds.stop and not published
    ledger = confirm_ledger(args.checkpoint)
    if looks and not args.unlock:
        check_first_look(ledger, split)
    if args.receiver:
        trial = trial.model_copy(update={"receiver": args.receiver})
    else:
        try:
            load_receiver(trial.receiver)
        except UserError as error:
            raise UserError(f"{args.checkpoint}: {error}; --receiver says where it is now") from None
    sweep = sweep_of(args.checkpoint)
    # What is published stays as it is.
    constants = (cache_root() if sweep is None or published else sweep / "checkpoints") / "constants"
    if "constant" in names and not list(constants.glob("*/epoch-01/config.json")):
        print(f"training the constant prefix of condition constant, once, into {constants}", flush=True)
    rows = run_evaluation(EvaluationJob(trial, split, tuple(dict.fromkeys(names)), args.checkpoint, constants))
    if looks:
        with ledger.open("a", encoding="utf-8") as out:
            out.write(
                f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} evaluate {args.checkpoint.name} on {split}\n"
            )
    print(wilson_table(rows))
    if args.out is not None:
        write_rows(args.out, rows)
        print(f"rows: {args.out}")
        if not (lacking := [name for name in load_gate().conditions if name not in names]):
            print(f"next: python -m m2ray.gate {args.out}")
        else:
            print(f"the gate would judge {', '.join(lacking)} as well; leave --conditions out to play all")
    return DONE


def check_out(path: Path) -> None:
    """Refuse, before any work, a place where rows cannot be written.

    Raises:
        UserError: not named as Parquet, or a folder, or inside a file.
    """
    if path.suffix != ".parquet":
        raise UserError(f"--out {path}: rows are Parquet; name it something.parquet")
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file")
    check_writable(f"--out {path}", path.parent)


def wilson_table(rows: pd.DataFrame) -> str:
    """Success per condition with its interval, for rows of one checkpoint."""
    return markdown(summary_table(count_successes(rows)))
