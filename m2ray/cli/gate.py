"""Command `python -m m2ray.gate`: judge rows, or bare counts, by a gate.

`python -m m2ray.gate ROWS.parquet` or `--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from m2ray.cli.runner import DONE, NOT_PASSED, Parser
from m2ray.config.condition_names import TABLE_ORDER
from m2ray.config.gate_file import REFERENCE, GateConfig, load_gate
from m2ray.evaluation.rows import FAILED, judged_rows, read_rows
from m2ray.judging.gate import Counts, Verdict, judge, judge_counts
from m2ray.judging.holm import holm_corrected
from m2ray.judging.verdict_tables import print_verdict
from m2ray.util.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Judge and print the reference report's tables."""
    args = parse_arguments(argv)
    gate = load_gate(args.gate)
    if args.counts is None:
        return judge_file(args.rows, gate, args.config, args.seed, args.split)
    counts = parse_counts(args.counts)
    if args.p1 is not None:
        if "P1" in counts:
            raise UserError("--p1: P1 is in --counts already; keep one")
        counts["P1"] = parse_count(args.p1, "--p1")
    return judge_bare_counts(counts, 4 if args.k is None else args.k, gate)


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Read the command line; refuse options of rows with counts, and of counts with rows."""
    parser = Parser(prog="python -m m2ray.gate", description="Judge rows, or bare counts, by a gate.")
    parser.add_argument("rows", nargs="?", type=Path, help="rows.parquet, or a results folder")
    parser.add_argument("--counts", help="normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50")
    parser.add_argument("--p1", help="with --counts: count of the full text, such as 34/50")
    parser.add_argument("--k", type=int, help="with --counts: number of slots; default: 4")
    parser.add_argument("--gate", type=Path, help=f"gate YAML; default: {REFERENCE.name} of the package")
    parser.add_argument("--config", help="with rows: only this configuration")
    parser.add_argument("--seed", type=int, help="with rows: only this training seed")
    parser.add_argument("--split", help="with rows: only this split; default: confirm if there is one, else all")
    args = parser.parse_args(argv)
    if (args.rows is None) == (args.counts is None):
        raise UserError("python -m m2ray.gate: give a rows file or --counts; see --help")
    other = "a rows file" if args.rows is None else "--counts"
    for name in ("config", "seed", "split") if args.rows is None else ("p1", "k"):
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
        if name not in TABLE_ORDER:
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
    verdict = judge_counts(counts, k, gate)
    print_verdict(verdict, gate, None, f"Counts, k = {k}, gate {gate.name}")
    if len(sizes := sorted({n for _, n in counts.values()})) > 1:
        print(f"The conditions differ in n ({', '.join(map(str, sizes))}): not the same episodes.")
    if skipped := [c.name for c in gate.criteria if c.applies(k) and c.paired]:
        print(f"Not judged, as bare counts are not paired (give rows): {', '.join(skipped)}.")
    return DONE if verdict.passed else NOT_PASSED


# --- rows ----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A training run on a split."""

    config: str
    seed: int
    split: str


class JudgedRows(NamedTuple):
    """The rows that one run is judged by, and the verdict."""

    run: Run
    rows: pd.DataFrame
    verdict: Verdict


def judge_file(path: Path, gate: GateConfig, config: str | None, seed: int | None, split: str | None) -> int:
    """Judge all runs in a rows file, print the requested ones, and return the exit code.

    All runs of a split are Holm-corrected together, whichever are printed: requesting a single one does not make
    it the only one that was tried.

    Raises:
        UserError: there are no rows of a codec, no run is the requested one, or rows cannot be judged.
    """
    rows = read_rows(path)
    runs = runs_in(rows, split)
    if not runs:
        raise UserError(f"{path}: no rows of a codec; give those of m2ray.evaluate, or the folder of a sweep")
    wanted = [run for run in runs if config in (None, run.config) and seed in (None, run.seed)]
    if not wanted:
        near = [run for run in runs if run.config == config] or runs
        known = ", ".join(f"{run.config}/{run.seed}/{run.split}" for run in near[:5])
        more = ", ..." if near[5:] else ""
        raise UserError(f"{path}: no rows of that --config, --seed and --split; choose from {known}{more}")
    passed = []
    for name in dict.fromkeys(run.split for run in wanted):
        for judged in judge_split(path, rows, [run for run in runs if run.split == name], gate):
            if judged.run in wanted:
                title = f"{judged.run.config}, seed {judged.run.seed}, split {name}"
                title += f", k = {judged.verdict.k}, gate {gate.name}"
                print_verdict(judged.verdict, gate, judged.rows, title)
                passed.append(judged.verdict.passed)
        if name != "confirm":
            print(f"Split {name}: a verdict counts on confirm only, on episodes that no choice was based on.")
    return DONE if all(passed) else NOT_PASSED


def runs_in(rows: pd.DataFrame, split: str | None) -> list[Run]:
    """Return the runs with outcomes on a split; default: on confirm where there is one, else on every split."""
    own = rows[(rows.config != "") & (rows.condition != FAILED)]
    if split is None and (own.split == "confirm").any():
        split = "confirm"
    if split is not None:
        own = own[own.split == split]
    return [Run(*run) for run in own[list(Run._fields)].drop_duplicates().itertuples(index=False, name=None)]


def judge_split(path: Path, rows: pd.DataFrame, runs: Sequence[Run], gate: GateConfig) -> list[JudgedRows]:
    """Judge all runs of one split, Holm-corrected together.

    Raises:
        UserError: a run's rows cannot be judged.
    """
    parts, verdicts = [judged_rows(rows, *run) for run in runs], []
    for run, part in zip(runs, parts, strict=True):
        try:
            verdicts.append(judge(part, gate))
        except UserError as error:
            raise UserError(f"{path}: {run.config}, seed {run.seed}, split {run.split}: {error}") from None
    return [JudgedRows(*line) for line in zip(runs, parts, holm_corrected(verdicts, gate.alpha), strict=True)]
