"""Command `python -m m2ray.evaluate CHECKPOINT`: run one checkpoint under the ablation conditions."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2ray.cli.runner import DONE, Parser
from m2ray.codec.checkpoints import read_record, trial_of
from m2ray.config.gate_file import load_gate
from m2ray.config.trial import EVALUATION_SPLITS, TrialConfig
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root, check_writable

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str]) -> int:
    """Evaluate, print success per condition, write rows where requested."""
    args = _parser().parse_args(argv)
    if args.out is not None:
        check_out(args.out)

    # Loads torch and pandas: --help and bad options must not wait for them.
    from m2ray.evaluation import confirm_ledger
    from m2ray.evaluation.rows import write_rows

    trial = trial_of(args.checkpoint)
    names = _condition_names(args, trial)
    split = args.split or args.seeds or "search"
    # A published codec has been judged: running it again chooses nothing.
    published = "published" in read_record(args.checkpoint)
    looks = _overlaps_confirm(trial, split) and not published
    ledger = confirm_ledger.confirm_ledger(args.checkpoint)
    if looks and not args.unlock:
        confirm_ledger.check_first_look(ledger, split)
    trial = _with_receiver(args, trial)
    rows = _run(args.checkpoint, trial, split, names, published)
    if looks:
        confirm_ledger.record_look(ledger, args.checkpoint, split)
    print(wilson_table(rows))
    if args.out is not None:
        write_rows(args.out, rows)
        print(f"rows: {args.out}")
        if not (lacking := [name for name in load_gate().conditions if name not in names]):
            print(f"next: python -m m2ray.gate {args.out}")
        else:
            print(f"the gate also needs {', '.join(lacking)}; leave --conditions out to run all")
    return DONE


def _parser() -> Parser:
    parser = Parser(prog="python -m m2ray.evaluate", description="Run a checkpoint under the ablation conditions.")
    parser.add_argument("checkpoint", type=Path, help="folder with codec.safetensors and config.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=EVALUATION_SPLITS, help="default: search")
    which.add_argument("--seeds", help="episode seeds A:B, end excluded; messages never seen in training")
    parser.add_argument(
        "--conditions", help="comma-separated; default: those that the checkpoint's configuration names"
    )
    parser.add_argument("--receiver", help="folder or name of the receiver, if it has moved")
    parser.add_argument("--out", type=Path, help="write rows to this Parquet file")
    parser.add_argument("--unlock", action="store_true", help="look at confirm again; the report will list it")
    return parser


def check_out(path: Path) -> None:
    """Refuse, before any work, a place where rows cannot be written.

    Raises:
        UserError: the path is not named as Parquet, is a folder, or lies inside a file.
    """
    if path.suffix != ".parquet":
        raise UserError(f"--out {path}: rows are Parquet; name it something.parquet")
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file")
    check_writable(f"--out {path}", path.parent)


def _condition_names(args: Namespace, trial: TrialConfig) -> list[str]:
    from m2ray.evaluation.conditions import get_condition  # loads torch

    names: list[str] = (
        args.conditions.split(",") if args.conditions is not None else trial.evaluation.condition_names
    )
    for name in names:
        get_condition(name)
    return names


def _overlaps_confirm(trial: TrialConfig, split: str) -> bool:
    """Return whether seeds of the confirm split are among those to run."""
    from m2ray.engine.jobs import split_seeds  # loads torch

    try:
        seeds, confirm = split_seeds(trial, split), trial.splits.seeds("confirm")
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None
    return seeds.start < confirm.stop and confirm.start < seeds.stop


def _with_receiver(args: Namespace, trial: TrialConfig) -> TrialConfig:
    """Return the configuration with the receiver that the command line names, if any."""
    if args.receiver:
        return trial.model_copy(update={"receiver": args.receiver})
    try:
        load_receiver(trial.receiver)
    except UserError as error:
        raise UserError(f"{args.checkpoint}: {error}; --receiver says where it is now") from None
    return trial


def _run(checkpoint: Path, trial: TrialConfig, split: str, names: Sequence[str], published: bool) -> pd.DataFrame:
    from m2ray.engine.jobs import EvaluationJob, run_evaluation  # loads torch
    from m2ray.evaluation.confirm_ledger import sweep_of

    sweep = sweep_of(checkpoint)
    # A published folder stays as it is.
    constants = (cache_root() if sweep is None or published else sweep / "checkpoints") / "constants"
    if "constant" in names and not list(constants.glob("*/epoch-01/config.json")):
        print(f"training the constant prefix of condition constant, once, into {constants}", flush=True)
    return run_evaluation(EvaluationJob(trial, split, tuple(dict.fromkeys(names)), checkpoint, constants))


def wilson_table(rows: pd.DataFrame) -> str:
    """Return success per condition with its interval, for rows of one checkpoint, as Markdown."""
    # Loads statsmodels: see above.
    from m2ray.judging.gate import count_successes
    from m2ray.judging.verdict_tables import summary_table
    from m2ray.util.tables import markdown

    return markdown(summary_table(count_successes(rows)))
