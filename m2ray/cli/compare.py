"""Command `python -m m2ray.compare A B`: the difference between two results, with its interval.

A and B are results folders, rows, or outcomes of any system; `PATH:CONFIG` names one configuration of several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from m2ray.cli.runner import DONE, Parser
from m2ray.config.split_names import is_confirm, most_conclusive
from m2ray.evaluation.row_selection import configuration_rows
from m2ray.evaluation.rows import FAILED
from m2ray.judging.comparison import Comparison, Difference, System, compare, describe, sample_text
from m2ray.judging.read_any import are_rows, read_any
from m2ray.util.errors import UserError
from m2ray.util.files import check_file
from m2ray.util.tables import Table, markdown
from m2ray.util.text import list_columns, list_some, percent

FIGURES = (".png", ".svg", ".pdf")


class Named(NamedTuple):
    """An argument: the text that the user gave, its file or folder, the configuration that it names, its rows.

    `unused` are the columns of its file that nothing reads, such as misspelt ones.
    """

    text: str
    path: Path
    config: str | None
    rows: pd.DataFrame
    unused: list[str]


def main(argv: Sequence[str]) -> int:
    """Compare two results, print the table, and draw the picture where requested."""
    args = _parser().parse_args(argv)
    if args.figure is not None:
        check_file("--figure", args.figure, FIGURES)
    names = None if args.conditions is None else [name.strip() for name in args.conditions.split(",")]
    sides = [_named(text, args.config) for text in (args.a, args.b)]
    splits = _splits(sides, args.split)
    first, second = (_system(side, split) for side, split in zip(sides, splits, strict=True))
    comparison = compare(first, second, names)
    comparison.notes.extend(f"{side.text}: not read: {list_columns(side.unused)}" for side in sides if side.unused)
    if args.json:
        print(json.dumps(_plain(comparison, first, second)))
    else:
        print(_text(comparison, first, second, splits))
    if args.figure is not None and not comparison.is_of_one:
        # Loads matplotlib, which a table does not need.
        from m2ray.reporting.figures.comparison import draw_comparison
        from m2ray.util.plotting import save, use_file_backend

        use_file_backend()
        save(draw_comparison(comparison, first.label, second.label), args.figure)
        if not args.json:
            print(f"\nfigure: {args.figure}")
    return DONE


def _parser() -> Parser:
    parser = Parser(prog="python -m m2ray.compare", description="Compare two results: the difference A - B.")
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="results folder, rows, or outcomes; PATH:CONFIG names one of several configurations",
        )
    parser.add_argument("--config", help="the configuration of both, where A or B does not name one")
    parser.add_argument("--split", help="default: the most conclusive split that both have")
    parser.add_argument(
        "--conditions", help="comma-separated; default: all that both have, scale_gate=S and drop-J left out"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--figure", type=Path, metavar="PATH", help=f"draw the differences: {', '.join(FIGURES)}")
    return parser


# --- A and B -------------------------------------------------------------------------------------------------


def _named(text: str, config: str | None) -> Named:
    """Read A or B, given as PATH or PATH:CONFIG."""
    path, colon, name = text.rpartition(":")
    if colon and not Path(text).exists() and Path(path).exists():
        return Named(text, Path(path), name, *read_any(Path(path)))
    return Named(text, Path(text), config, *read_any(Path(text)))


def _splits(sides: Sequence[Named], wanted: str | None) -> list[str]:
    """Return the split of each side: the wanted one, else the most conclusive that both have, else its own.

    What was judged at different looks at confirm is compared there: select and search chose both.
    """
    known = []
    for side in sides:
        rows = _of_codecs(side.rows)
        named = rows[rows.config == side.config]
        own = list(dict.fromkeys((named if len(named) else rows).split))
        if not own:
            raise UserError(f"{side.text}: holds no outcomes; give results of m2ray.sweep or m2ray.evaluate")
        if wanted is not None and not are_rows(side.rows):
            raise UserError(f"--split: goes with rows of m2ray.evaluate; {side.text} has no splits, remove it")
        if wanted is not None and wanted not in own:
            raise UserError(f"--split: {side.text} has none of that name; choose from {', '.join(own)}")
        known.append([wanted] if wanted is not None else own)
    best = [most_conclusive(splits) or "" for splits in known]
    common = most_conclusive(split for split in known[0] if split in known[1])
    judged_apart = all(map(is_confirm, best)) and not is_confirm(common or "")
    return best if common is None or judged_apart else [common] * 2


def _of_codecs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of configurations; all, where only a receiver was measured."""
    evaluated = rows[rows.condition != FAILED]
    own = evaluated[evaluated.config != ""]
    return own if len(own) else evaluated


def _system(side: Named, split: str) -> System:
    """Return the rows of the configuration that a side names, or of its only one.

    Raises:
        UserError: it has several and names none, or has none of that name.
    """
    own = _of_codecs(side.rows)
    configs = sorted(own[own.split == split].config.unique())
    if side.config is None and len(configs) > 1:
        raise UserError(
            f"{side.text}: holds {len(configs)} configurations; name one, such as {side.path}:{configs[0]}, of "
            f"{list_some(configs)}"
        )
    config = configs[0] if side.config is None else side.config
    if config not in configs:
        where = f" on split {split}" if split else ""
        raise UserError(f"{side.path}: no configuration {config!r:.60}{where}; choose from {list_some(configs)}")
    label = side.text if side.config is None or side.text.endswith(f":{config}") else f"{side.path}:{config}"
    if not config:
        return System(label, own[own.split == split])
    return System(label, configuration_rows(side.rows, config, split))


# --- output --------------------------------------------------------------------------------------------------


def _text(comparison: Comparison, first: System, second: System, splits: Sequence[str]) -> str:
    """Return who is compared, the table, and the finding; only the last where there is nothing to compare."""
    if comparison.is_of_one:
        return describe(comparison)
    arms = (comparison.first, comparison.second)
    lines = [
        f"{letter}: {', '.join([system.label, *([f'split {split}'] if split else []), sample_text(own)])}"
        for letter, system, split, own in zip("AB", (first, second), splits, arms, strict=True)
    ]
    lines.append(f"{'Paired' if comparison.paired else 'Not paired'}: {comparison.why}.")
    lines += [f"Note: {note}." for note in comparison.notes]
    parts = ["\n".join(lines)]
    if table := _table(comparison):
        parts.append(markdown(table))
    if comparison.same:
        parts.append(f"The same rows in both, so not compared: {', '.join(comparison.same)}.")
    parts.append(describe(comparison))
    return "\n\n".join(parts)


def _table(comparison: Comparison) -> Table:
    lines = [_line(difference) for difference in (*comparison.conditions, *comparison.derived)]
    header = ["condition", "A", "B", "A - B", "95 % CI", "p"]
    return [header, *lines] if lines else []


def _line(difference: Difference) -> list[str]:
    if difference.name == "retention":
        first, second = f"{difference.first:.2f}", f"{difference.second:.2f}"
        bounds = f"[{difference.low:+.2f}, {difference.high:+.2f}]"
        return [difference.name, first, second, f"{difference.value:+.2f}", bounds, _p_text(difference.p_value)]
    first, second = percent(difference.first), percent(difference.second)
    bounds = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return [difference.name, first, second, f"{100 * difference.value:+.1f}", bounds, _p_text(difference.p_value)]


def _p_text(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _plain(comparison: Comparison, first: System, second: System) -> dict[str, Any]:
    """Return the comparison as plain values; shares are 0 to 1."""
    sides = {
        letter: {
            "name": system.label,
            "n": own.episodes,
            "clusters": own.clusters,
            "seeds": [int(seed) for seed in own.seeds if seed >= 0],
        }
        for letter, system, own in (("a", first, comparison.first), ("b", second, comparison.second))
    }
    differences = [
        {
            "condition": d.name,
            "a": round(d.first, 6),
            "b": round(d.second, 6),
            "difference": round(d.value, 6),
            "ci_low": round(d.low, 6),
            "ci_high": round(d.high, 6),
            "p": d.p_value,
        }
        for d in (*comparison.conditions, *comparison.derived)
    ]
    return {
        **sides,
        "paired": comparison.paired,
        "why": comparison.why,
        "notes": comparison.notes,
        "differences": differences,
        "same": comparison.same,
    }
