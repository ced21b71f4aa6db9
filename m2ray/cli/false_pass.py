# NEWDOC
"""How often the whole pipeline passes codecs that carry nothing: simulated sweeps on real rows.

python -m m2ray.false_pass results/NAME --out results/false-pass     # two minutes on one core

The rows of a real sweep hold what the receiver answers when its slots carry nothing: no slots, zeros, noise, a
trained constant, the mean prefix, Gaussians. A simulated configuration answers each episode as one of these did
that very episode, in proportions of its own: some prime the receiver well, some badly, some episodes are easy, but
whether the message is the right one makes no difference. Each simulated sweep resamples the episodes of every
split with replacement and then runs the pipeline's own functions: rank on search, choose on select, judge once on
confirm, by every gate in the package, Holm-corrected. Beside it stand the naive readings of the same outcomes: the
best of all trainings on one split, read on that split.

Shapes: C configurations, S training seeds, Q content-free conditions, P real columns of them, E episodes played,
N episodes resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.config.space import Judge
from m2ray.evaluation.rows import read_rows
from m2ray.judging.false_pass import CONTENT_FREE, SPLITS, columns_of, lines_of, table
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic, write_json
from m2ray.util.tables import markdown


def main(argv: Sequence[str]) -> int:
    """Simulate, print the table, write false-pass.json and false-pass.md."""
    parser = Parser(prog="python -m m2ray.false_pass", description="How often codecs that carry nothing pass.")
    parser.add_argument("rows", type=Path, help="rows.parquet of a finished sweep, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for false-pass.json and false-pass.md")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated, of each size; default: 1000")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds of a configuration; default: 2")
    parser.add_argument("--draws", type=int, default=0, help="seed of the simulation; default: 0")
    args = parser.parse_args(argv)
    for name in ("sweeps", "seeds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.draws < 0:
        raise UserError(f"--draws {args.draws}: give 0 or more")
    rows = read_rows(args.rows)
    splits = {name: columns_of(rows, name) for name in SPLITS}
    lines = lines_of(splits, args.sweeps, args.seeds, args.draws)
    head = (
        f"# False passes\n\nShare of {args.sweeps} simulated sweeps in which anything passes although no codec "
        "carries anything, with 95 % Wilson intervals. Each sweep ranks its configurations of "
        f"{args.seeds} training seeds on search, takes {Judge().select} to select and judges {Judge().confirm} on "
        "confirm, each split of n episodes at the most. Outcomes are resampled from the content-free rows "
        f"({', '.join(CONTENT_FREE)}) of `{args.rows}`. The naive readings look at the best training on "
        "n episodes of one split, and judge it there."
    )
    text = f"{head}\n\n{markdown(table(lines))}\n"
    print("\n" + text)
    write_json(
        args.out / "false-pass.json",
        {"rows": str(args.rows), "seeds": args.seeds, "lines": [line._asdict() for line in lines]},
    )
    write_atomic(args.out / "false-pass.md", text.encode())
    return DONE
