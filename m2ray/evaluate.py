"""`python -m m2ray.evaluate CHECKPOINT`: play one checkpoint under the ablation conditions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from m2ray.command import DONE, Parser, UserError, check_place, run
from m2ray.config import TrialConfig


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

    from m2ray.codec import read_record
    from m2ray.conditions import condition
    from m2ray.criteria import load_gate
    from m2ray.evaluation import condition_names
    from m2ray.jobs import Job, run_job, seeds_of, trial_of
    from m2ray.loading import load_receiver
    from m2ray.report import wilson_table
    from m2ray.rows import write_rows
    from m2ray.source import cache_root

    trial: TrialConfig = trial_of(args.checkpoint)
    names = args.conditions.split(",") if args.conditions else condition_names(trial.evaluation)
    for name in names:
        condition(name)
    split = args.split or args.seeds or "search"
    try:
        seeds, confirm = seeds_of(trial, split), trial.splits.seeds("confirm")
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
    rows = run_job(Job(trial, split, tuple(dict.fromkeys(names)), args.checkpoint, constants))
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
    check_place(f"--out {path}", path.parent)


def confirm_ledger(checkpoint: Path) -> Path:
    """Where looks at the confirm split are noted: one file for all checkpoints of a sweep, or of a training."""
    whole = checkpoint.resolve()
    folder = sweep_of(whole)
    if folder is None:
        folder = whole.parent if whole.name.startswith("epoch-") else whole
    return folder / "confirm-looks.log"


def sweep_of(checkpoint: Path) -> Path | None:
    """The folder of the sweep that a checkpoint, `checkpoints/CONFIG/seed-N/epoch-M` or `best`, lies in."""
    near = checkpoint.resolve().parents[:4]
    return next((parent for parent in near if (parent / "sweep.yaml").is_file()), None)


def check_first_look(ledger: Path, split: str) -> None:
    """Keep the confirm split honest: it is looked at once per published result.

    Raises:
        UserError: it has been looked at.
    """
    if ledger.is_file() or _sweep_looked(ledger.parent):
        at = "confirm" if split == "confirm" else f"--seeds {split} overlaps confirm, which"
        raise UserError(
            f"{ledger.parent}: {at} has been looked at; judge on fresh --seeds A:B, or look again with --unlock, "
            "which the report will say"
        )


def _sweep_looked(folder: Path) -> bool:
    from m2ray.rows import RowStore

    if not (folder / "sweep.yaml").is_file():
        return False
    return bool((RowStore(folder).read().split == "confirm").any())


class _Callable(ModuleType):
    """`m2ray.evaluate` names this command and the function of `m2ray.api`: the module is that as well."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from m2ray import api

        return api.evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run(main)
