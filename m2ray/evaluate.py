"""`python -m m2ray.evaluate CHECKPOINT`: play one checkpoint under the ablation conditions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from m2ray.command import DONE, Parser, UserError, run
from m2ray.config import TrialConfig, parse_seeds


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
    if args.out is not None and args.out.suffix != ".parquet":
        raise UserError(f"--out {args.out}: rows are Parquet; name it something.parquet")

    from m2ray.conditions import condition
    from m2ray.evaluation import condition_names
    from m2ray.jobs import Job, run_job, trial_of
    from m2ray.report import wilson_table
    from m2ray.rows import write_rows
    from m2ray.source import cache_root

    trial: TrialConfig = trial_of(args.checkpoint)
    if args.receiver:
        trial = trial.model_copy(update={"receiver": args.receiver})
    names = args.conditions.split(",") if args.conditions else condition_names(trial.evaluation)
    for name in names:
        condition(name)
    split = args.split or args.seeds or "search"
    if args.seeds:
        try:
            parse_seeds(args.seeds)
        except ValueError as error:
            raise UserError(f"--seeds: {error}") from None
    if split == "confirm":
        note_look(args.checkpoint, args.unlock)
    rows = run_job(Job(trial, split, tuple(names), args.checkpoint, cache_root() / "constants"))
    print(wilson_table(rows))
    if args.out is not None:
        write_rows(args.out, rows)
        print(f"rows: {args.out}\nnext: python -m m2ray.gate {args.out}")
    return DONE


def note_look(checkpoint: Path, unlock: bool) -> None:
    """Keep the confirm split honest: it is looked at once per published result.

    Raises:
        UserError: it has been looked at, and no one unlocked it.
    """
    folder = next(
        (parent for parent in checkpoint.resolve().parents if (parent / "sweep.yaml").is_file()), checkpoint
    )
    ledger = folder / "confirm-looks.log"
    looked = ledger.is_file() or _sweep_looked(folder)
    if looked and not unlock:
        raise UserError(
            f"{folder}: confirm has been looked at; judge on fresh --seeds A:B, or look again with --unlock, "
            "which the report will say"
        )
    with ledger.open("a", encoding="utf-8") as out:
        out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} evaluate {checkpoint.name}\n")


def _sweep_looked(folder: Path) -> bool:
    from m2ray.rows import RowStore

    if not (folder / "sweep.yaml").is_file():
        return False
    return bool((RowStore(folder).read().split == "confirm").any())


if __name__ == "__main__":
    run(main)
