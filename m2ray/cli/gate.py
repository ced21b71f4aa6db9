"""The judge: pre-registered criteria over rows, or over bare counts, give a verdict.

`python -m m2ray.gate ROWS.parquet` or `--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, NOT_PASSED, Parser
from m2ray.config.gate_file import REFERENCE, GateConfig, load_gate
from m2ray.evaluation.rows import FAILED, judged_rows, read_rows
from m2ray.judging.gate import Counts, holm_corrected, judge, judge_counts
from m2ray.judging.verdict_tables import print_verdict
from m2ray.util.errors import UserError


def parse_counts(text: str) -> dict[str, tuple[int, int]]:
    """`normal=11/50,null=12/50` as counts.

    Raises:
        UserError: not of that form, a condition given twice, or more successes than episodes.
    """
    known = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "mean", "matched", "identity")
    counts: dict[str, tuple[int, int]] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise UserError(f"--counts: condition {name!r} does not exist; use some of {', '.join(known)}")
        if name in counts:
            raise UserError(f"--counts: condition {name!r} is given twice; keep one")
        counts[name] = parse_count(value, f"--counts: {name}")
    return counts


def parse_count(text: str, where: str) -> tuple[int, int]:
    """`11/50`."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    if match is None or int(match[2]) == 0:
        raise UserError(f"{where}: {text[:40]!r} is no count; write successes/episodes such as 11/50")
    successes, n = int(match[1]), int(match[2])
    if successes > n:
        raise UserError(f"{where}: {text} has more successes than episodes; fix the count")
    return successes, n


def main(argv: Sequence[str]) -> int:
    """Judge rows or counts and print the verdict tables."""
    parser = Parser(prog="python -m m2ray.gate", description="Judge rows, or bare counts, by a gate.")
    parser.add_argument("rows", nargs="?", type=Path, help="rows.parquet, or a results folder")
    parser.add_argument("--counts", help="normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50")
    parser.add_argument("--p1", help="with --counts: the full text's, 34/50")
    parser.add_argument("--k", type=int, help="with --counts: slots; default: 4")
    parser.add_argument("--gate", type=Path, help=f"gate YAML; default: {REFERENCE.name} of the package")
    parser.add_argument("--config", help="with rows: only this configuration")
    parser.add_argument("--seed", type=int, help="with rows: only this training seed")
    parser.add_argument("--split", help="with rows: only this split; default: confirm where there is one")
    args = parser.parse_args(argv)
    if (args.rows is None) == (args.counts is None):
        raise UserError("python -m m2ray.gate: give a rows file or --counts; see --help")
    strangers = ("config", "seed", "split") if args.rows is None else ("p1", "k")
    for name in strangers:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: goes with {'a rows file' if args.rows is None else '--counts'}; remove it")
    gate = load_gate(args.gate)
    if args.counts is not None:
        counts = parse_counts(args.counts)
        if args.p1 is not None:
            if "P1" in counts:
                raise UserError("--p1: P1 is in --counts already; keep one")
            counts["P1"] = parse_count(args.p1, "--p1")
        return judge_bare_counts(counts, 4 if args.k is None else args.k, gate)
    return judge_file(args.rows, gate, args.config, args.seed, args.split)


def judge_bare_counts(counts: Counts, k: int, gate: GateConfig) -> int:
    """Judge bare counts, and say what they cannot tell."""
    if k < 1:
        raise UserError(f"--k: {k} is no number of slots; give 1 or more")
    verdict = judge_counts(counts, k, gate)
    print_verdict(verdict, gate, None, f"Counts, k = {k}, gate {gate.name}")
    if len(sizes := sorted({n for _, n in counts.values()})) > 1:
        print(f"The conditions differ in n ({', '.join(map(str, sizes))}): not the same episodes.")
    if skipped := [c.name for c in gate.criteria if c.applies(k) and c.paired]:
        print(f"Not judged, as bare counts are not paired (give rows): {', '.join(skipped)}.")
    return DONE if verdict.passed else NOT_PASSED


def judge_file(path: Path, gate: GateConfig, config: str | None, seed: int | None, split: str | None) -> int:
    """Judge each configuration and seed in a rows file and print those asked for.

    All of a split are Holm-corrected together whatever is asked for: asking for one does not make it the only
    one that was tried.
    """
    rows = read_rows(path)
    own = rows[(rows.config != "") & (rows.condition != FAILED)]
    if split is None and (own.split == "confirm").any():
        split = "confirm"
    if split is not None:
        own = own[own.split == split]
    cells = list(own[["config", "seed", "split"]].drop_duplicates().itertuples(index=False, name=None))
    wanted = [cell for cell in cells if config in (None, cell[0]) and seed in (None, cell[1])]
    if not cells:
        raise UserError(f"{path}: no rows of a codec; give those of m2ray.evaluate, or the folder of a sweep")
    if not wanted:
        near = [cell for cell in cells if cell[0] == config] or cells
        known = ", ".join(f"{name}/{number}/{where}" for name, number, where in near[:5])
        more = ", ..." if near[5:] else ""
        raise UserError(f"{path}: no rows of that --config, --seed and --split; choose from {known}{more}")
    passed = []
    for where in dict.fromkeys(cell[2] for cell in wanted):
        family = [cell for cell in cells if cell[2] == where]
        parts = [judged_rows(rows, *cell) for cell in family]
        verdicts = []
        for (name, number, _), part in zip(family, parts, strict=True):
            try:
                verdicts.append(judge(part, gate))
            except UserError as error:
                raise UserError(f"{path}: {name}, seed {number}, split {where}: {error}") from None
        for cell, part, verdict in zip(family, parts, holm_corrected(verdicts, gate.alpha), strict=True):
            if cell in wanted:
                title = f"{cell[0]}, seed {cell[1]}, split {where}, k = {verdict.k}, gate {gate.name}"
                print_verdict(verdict, gate, part, title)
                passed.append(verdict.passed)
        if where != "confirm":
            print(f"Split {where}: a verdict counts on confirm, on episodes that nothing was chosen by.")
    return DONE if all(passed) else NOT_PASSED
