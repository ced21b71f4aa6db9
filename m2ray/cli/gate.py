"""Command `python -m m2ray.gate`: judge outcomes by a gate.

`python -m m2ray.gate FILE`, where FILE is rows, a results folder, or outcomes of any system; or
`--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from m2ray.cli.runner import DONE, NOT_PASSED, Parser
from m2ray.config.condition_names import (
    BUILT_IN,
    TABLE_ORDER,
    facts_count,
    has_parameter,
    tokens_count,
    tokens_name,
)
from m2ray.config.gate_file import GateConfig, load_gate, registered_gate
from m2ray.config.split_names import CONFIRM, family, is_confirm
from m2ray.evaluation.row_selection import configuration_rows
from m2ray.judging.arms import Counts
from m2ray.judging.gate import JudgedConfiguration, judge_counts, judge_together
from m2ray.judging.read_any import Cell, are_rows, cells_in, read_any
from m2ray.judging.verdict import INVALID
from m2ray.judging.verdict_tables import print_configuration, print_counts, print_decision, print_verdict
from m2ray.util.errors import UserError
from m2ray.util.text import list_columns, list_some


def main(argv: Sequence[str]) -> int:
    """Judge and print the reference report's tables."""
    args = parse_arguments(argv)
    gate = load_gate(args.gate)
    if args.counts is None:
        return judge_file(args, gate)
    counts = parse_counts(args.counts)
    if args.p1 is not None:
        if "P1" in counts:
            raise UserError("--p1: P1 is in --counts already; keep one")
        counts["P1"] = parse_count(args.p1, "--p1")
    return judge_bare_counts(counts, 4 if args.k is None else args.k, gate)


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Read the command line; refuse options of a file with counts, and of counts with a file."""
    parser = Parser(prog="python -m m2ray.gate", description="Judge outcomes by a gate.")
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="rows.parquet, a results folder, or outcomes of any system: JSONL, CSV or Parquet with the columns "
        "id, condition and success (0 or 1) or score (0 to 1), and optionally codec, seed, k, group, answer, nll, "
        "parsed and truncated",
    )
    parser.add_argument("--counts", help="normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50")
    parser.add_argument("--p1", help="with --counts: count of the full text, such as 34/50")
    parser.add_argument("--k", type=int, help="with --counts: number of slots; default: 4")
    parser.add_argument("--gate", help="content (default), reference, or a gate file")
    parser.add_argument("--config", help="with a file: only this configuration or codec")
    parser.add_argument("--seed", type=int, help="with a file: only this training seed")
    parser.add_argument("--split", help="with rows: only this split; default: confirm if there is one, else all")
    args = parser.parse_args(argv)
    if (args.file is None) == (args.counts is None):
        raise UserError("python -m m2ray.gate: give a file or --counts; see --help")
    other = "a file" if args.file is None else "--counts"
    for name in ("config", "seed", "split") if args.file is None else ("p1", "k"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: goes with {other}; remove it")
    return args


# --- bare counts ---------------------------------------------------------------------------------------------


def parse_counts(text: str) -> dict[str, tuple[int, int]]:
    """Return the counts in `normal=11/50,null=12/50`.

    Raises:
        UserError: the text has another form, a condition is given twice, or has more successes than episodes.
    """
    counts: dict[str, tuple[int, int]] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in BUILT_IN and not has_parameter(name):
            raise UserError(f"--counts: condition {name!r} does not exist; use some of {', '.join(TABLE_ORDER)}")
        if name in counts:
            raise UserError(f"--counts: condition {name!r} is given twice; keep one")
        counts[name] = parse_count(value, f"--counts: {name}")
    return counts


def parse_count(text: str, source: str) -> tuple[int, int]:
    """Return successes and n in `11/50`.

    Raises:
        UserError: the text has another form, or there are more successes than episodes.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    if match is None or int(match[2]) == 0:
        raise UserError(f"{source}: {text[:40]!r} is not a count; write successes/episodes such as 11/50")
    successes, n = int(match[1]), int(match[2])
    if successes > n:
        raise UserError(f"{source}: {text} has more successes than episodes; fix the count")
    return successes, n


def judge_bare_counts(counts: Counts, k: int, gate: GateConfig) -> int:
    """Judge bare counts, print the verdict and what counts cannot show, and return the exit code."""
    if k < 1:
        raise UserError(f"--k: {k} is not a number of slots; give 1 or more")
    title = f"Counts, k = {k}, gate {gate.name}"
    if gate.grades and "P1" not in counts:
        print_counts(counts, k, title, gate.name)
        print(f"\nVerdict: {INVALID} - P1 is missing, so nothing shows that the text helps; add --p1 34/50\n")
        return NOT_PASSED
    verdict = judge_counts(counts, k, gate)
    print_counts(counts, k, title, gate.name)
    print_decision(verdict, gate)
    if len(sizes := sorted({n for _, n in counts.values()})) > 1:
        print(f"The conditions differ in n ({', '.join(map(str, sizes))}): not the same episodes.")
    if skipped := [c.name for c in gate.criteria if c.applies(k) and c.paired]:
        print(f"Not judged, as it needs rows: {', '.join(skipped)}.")
    if gate.grades:
        print("Bare counts are not paired, so intervals are wider than those of rows; give outcomes per episode.")
    return DONE if verdict.passed else NOT_PASSED


# --- files ---------------------------------------------------------------------------------------------------


def judge_file(args: Namespace, gate: GateConfig) -> int:
    """Judge all configurations in a file, print the requested ones, and return the exit code.

    All configurations of a split are Holm-corrected together, and those of all looks at confirm, whichever are
    printed: requesting a single one does not make it the only one that was tried.

    Raises:
        UserError: there are no rows of a codec, none is the requested one, or the outcomes cannot be judged.
    """
    path: Path = args.file
    rows = read_file(path, args.split)
    if not are_rows(rows):
        _name_unread(rows, gate)
    registered = registered_gate(path) if path.is_dir() else None
    if registered is not None and registered.digest != gate.digest:
        print(
            f"Not the registered gate: {gate.name} ({gate.digest}); the sweep was registered with "
            f"{registered.name} ({registered.digest})."
        )
    cells = cells_in(rows)
    if not cells:
        raise UserError(f"{path}: no rows of a codec; give those of m2ray.evaluate, or the folder of a sweep")
    wanted = [cell for cell in cells if _is_wanted(cell, rows, args)]
    if args.split is None and any(is_confirm(cell.split) for cell in cells):
        wanted = [cell for cell in wanted if is_confirm(cell.split)]
    if not wanted:
        runs = rows[rows.config != ""][["config", "seed", "split"]].drop_duplicates()
        if (runs.config == args.config).any():
            runs = runs[runs.config == args.config]
        names = ["/".join(map(str, run)) for run in runs.head(5).itertuples(index=False)]
        more = ", ..." if len(runs) > 5 else ""
        raise UserError(
            f"{path}: no rows of that --config, --seed and --split; choose from {', '.join(names)}{more}"
        )
    passed = []
    for split in dict.fromkeys(family(cell.split) for cell in wanted):
        own = [cell for cell in cells if family(cell.split) == split]
        parts = [configuration_rows(rows, *cell) for cell in own]
        try:
            judged = judge_together(parts, gate)
        except UserError:
            _blame(path, own, parts, gate)
            raise
        for cell, configuration in zip(own, judged, strict=True):
            if cell in wanted:
                passed.append(_print(cell, configuration, gate, args.seed))
        if split not in (CONFIRM, ""):
            print(f"Split {split}: a verdict counts on confirm only, on episodes that no choice was based on.")
    return DONE if all(passed) else NOT_PASSED


def _blame(path: Path, cells: Sequence[Cell], parts: Sequence[pd.DataFrame], gate: GateConfig) -> None:
    """Raise the error of the first configuration that cannot be judged, with its name."""
    for cell, part in zip(cells, parts, strict=True):
        try:
            judge_together([part], gate)
        except UserError as error:
            split = f", split {cell.split}" if cell.split else ""
            raise UserError(f"{path}: {cell.config}{split}: {error}") from None


def read_file(path: Path, split: str | None) -> pd.DataFrame:
    """Read what is judged, and name the columns that nothing reads.

    Raises:
        UserError: it cannot be judged, or --split is given with outcomes.
    """
    rows, unused = read_any(path)
    if split is not None and not are_rows(rows):
        raise UserError("--split: goes with rows of m2ray.evaluate, outcomes have no splits; remove it")
    if unused:
        print(f"Not read: {list_columns(unused)}.")
    return rows


def _name_unread(rows: pd.DataFrame, gate: GateConfig) -> None:
    """Name the conditions of outcomes that neither a criterion nor a measure of the amount reads."""
    read = {*gate.conditions, *(tokens_name(int(k)) for k in rows.k.unique() if k > 0)}
    given = sorted({str(name) for name in rows.condition})
    unread = [name for name in given if name not in read and facts_count(name) is None]
    hints = {name: f" (write {name.lower()})" for name in unread if name.lower() in read}
    hints |= {name: " (needs the column k)" for name in unread if tokens_count(name) and not (rows.k > 0).any()}
    if unread := [name + hints.get(name, "") for name in unread]:
        print(f"Not judged: the conditions {list_some(unread)}; gate {gate.name} has no criterion for them.")


def _is_wanted(cell: Cell, rows: pd.DataFrame, args: Namespace) -> bool:
    own = rows[(rows.config == cell.config) & (rows.split == cell.split)]
    named = args.config in (None, cell.config) and args.split in (None, cell.split)
    return named and (args.seed is None or bool((own.seed == args.seed).any()))


def _print(cell: Cell, judged: JudgedConfiguration, gate: GateConfig, seed: int | None) -> bool:
    """Print one configuration, or one of its training seeds; return whether it passes."""
    about = ", ".join(
        part
        for part in (
            f"split {cell.split}" if cell.split else "",
            f"k = {judged.verdict.k}" if judged.verdict.k else "",
            f"gate {gate.name}",
        )
        if part
    )
    chosen = [seed] if seed is not None else list(judged.seeds)
    if len(chosen) > 1 and gate.grades:
        print_configuration(judged, gate, f"{cell.config}, {len(chosen)} seeds, {about}")
        return judged.verdict.passed
    for one in chosen:
        title = f"{cell.config}, seed {one}, {about}" if one >= 0 else f"{cell.config}, {about}"
        print_verdict(judged.seeds[one], gate, judged.arms.of_seed(one), title)
    if len(judged.seeds) > len(chosen):
        # A training seed that somebody chose says little about the system.
        print(f"One of {len(judged.seeds)} training seeds; over all of them: {judged.verdict.verdict}.")
    return all(judged.seeds[one].passed for one in chosen) and judged.verdict.passed
