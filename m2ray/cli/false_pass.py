"""Estimate how often codecs that carry nothing pass: `python -m m2ray.false_pass results/NAME --out FOLDER`.

It takes two minutes on one core. `m2ray.judging.false_pass` describes the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.config.space import Judge
from m2ray.evaluation.rows import read_rows
from m2ray.judging.false_pass import CONTENT_FREE, SPLITS, pass_rate_table, pass_rates, read_columns
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable, write_atomic, write_json
from m2ray.util.tables import markdown


def main(argv: Sequence[str]) -> int:
    """Simulate sweeps, print the table, and write false-pass.json and false-pass.md."""
    parser = Parser(prog="python -m m2ray.false_pass", description="How often codecs that carry nothing pass.")
    parser.add_argument("rows", type=Path, help="rows.parquet of a finished sweep, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for false-pass.json and false-pass.md")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each size; default: 1000")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds of a configuration; default: 2")
    parser.add_argument("--draws", type=int, default=0, help="seed of the simulation; default: 0")
    args = parser.parse_args(argv)
    for name in ("sweeps", "seeds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.draws < 0:
        raise UserError(f"--draws {args.draws}: give 0 or more")
    check_writable("--out", args.out)
    rows = read_rows(args.rows)
    if rows.empty:
        raise UserError(
            f"{args.rows}: no rows in it; give the results folder of a finished sweep, or its rows.parquet"
        )
    splits = {name: read_columns(rows, name) for name in SPLITS}
    rates = pass_rates(splits, args.sweeps, args.seeds, args.draws)
    text = false_pass_text(args.rows, args.sweeps, args.seeds, markdown(pass_rate_table(rates)))
    print("\n" + text)
    write_json(
        args.out / "false-pass.json",
        {"rows": str(args.rows), "seeds": args.seeds, "lines": [rate._asdict() for rate in rates]},
    )
    write_atomic(args.out / "false-pass.md", text.encode())
    return DONE


def false_pass_text(rows: Path, sweeps: int, seeds: int, table: str) -> str:
    """Return the table in Markdown with its explanation."""
    explanation = (
        f"# False passes\n\nShare of {sweeps} simulated sweeps in which anything passes although no codec "
        "carries anything, with 95 % Wilson intervals. Each sweep ranks its configurations of "
        f"{seeds} training seeds on search, takes {Judge().select} to select and judges {Judge().confirm} on "
        "confirm, each split of n episodes at the most. Outcomes are resampled from the content-free rows "
        f"({', '.join(CONTENT_FREE)}) of `{rows}`. The naive readings look at the best training on "
        "n episodes of one split, and judge it there."
    )
    return f"{explanation}\n\n{table}\n"
