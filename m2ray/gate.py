"""The judge: pre-registered criteria over rows, or over bare counts, give a verdict.

`python -m m2ray.gate ROWS.parquet` or `--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from m2ray import stats
from m2ray.command import DONE, NOT_PASSED, Parser, UserError, run
from m2ray.criteria import REFERENCE, Criterion, GateConfig, GateName, load_gate
from m2ray.rows import FAILED, judged_rows, outcomes, read_rows

PASS, FAIL, NOT_APPLICABLE = "PASS", "FAIL", "n/a"

Counts = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Finding:
    """A criterion, judged.

    `measured` against `threshold`: lower_bound and difference_above_zero, the interval's lower bound and the bar;
    overlap and below, the two shares; same_answers, the share of equal answers and 1; mcnemar, p and alpha.
    """

    gate: GateName
    name: str
    measured: float
    threshold: float
    passed: bool
    sentence: str
    p_value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """All findings of one checkpoint."""

    k: int
    findings: tuple[Finding, ...]
    counts: Counts
    backwards: bool
    retention: stats.Estimate | None

    def gate(self, name: GateName) -> str:
        """PASS, FAIL or n/a."""
        mine = [finding.passed for finding in self.findings if finding.gate == name]
        return (PASS if all(mine) else FAIL) if mine else NOT_APPLICABLE

    @property
    def passed(self) -> bool:
        """Whether every criterion that applies holds."""
        return all(finding.passed for finding in self.findings)

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return PASS if self.passed else FAIL

    @property
    def reason(self) -> str:
        """The first criterion that fails, with its figures; BACKWARDS where a wrong message beats the right."""
        failed = [f"{f.gate}, {f.name}: {f.sentence}" for f in self.findings if not f.passed]
        backwards = "BACKWARDS: a wrong message does better than the right one; " if self.backwards else ""
        return backwards + failed[0] if failed else "all criteria hold"


def percent(share: float) -> str:
    """`12.8%`."""
    return f"{100 * share:.1f}%"


def against_bar(low: float, bar: float) -> str:
    """`12.8% < 30.0%`, with as many decimals as it takes to tell the two apart."""
    sign = ">=" if low >= bar else "<"
    digits = next((d for d in range(1, 6) if f"{100 * low:.{d}f}" != f"{100 * bar:.{d}f}"), 1)
    return f"{100 * low:.{digits}f}% {sign} {100 * bar:.{digits}f}%"


def judge_counts(counts: Counts, k: int, gate: GateConfig, rows: pd.DataFrame | None = None) -> Verdict:
    """Judge successes out of n per condition; with rows, also what only paired outcomes can tell.

    Raises:
        UserError: a condition that a criterion names is missing or was played on other episodes, or no criterion
            of the gate can be judged.
    """
    source = "--counts" if rows is None else "rows"
    criteria = [c for c in gate.criteria if c.applies(k) and not (c.paired and rows is None)]
    if not criteria:
        # An empty list of findings would pass.
        raise UserError(
            f"{source}: gate {gate.name}: no criterion can be judged at k = {k}; use another gate or k"
        )
    for criterion in criteria:
        for name in criterion.conditions:
            if name not in counts:
                raise UserError(
                    f"{source}: condition {name}: missing, and the criterion '{criterion.name}' needs it; add it"
                )
    if rows is not None:
        outcomes(rows, list(dict.fromkeys(name for c in criteria for name in c.conditions)))
    findings = [_judge_one(criterion, counts, gate.alpha, rows) for criterion in criteria]
    backwards = {"shuffle", "normal"} <= set(counts) and share(counts["shuffle"]) > share(counts["normal"])
    kept = None
    if rows is not None and {"normal", "P0", "P1"} <= set(counts):
        normal_E, p0_E, p1_E = outcomes(rows, ["normal", "P0", "P1"])
        kept = stats.retention(normal_E, p0_E, p1_E, gate.alpha)
    return Verdict(k, tuple(findings), counts, backwards, kept)


def share(count: tuple[int, int]) -> float:
    """Successes over n."""
    return count[0] / count[1]


def fallen(measured: float, against: float, floor: float) -> bool:
    """Whether a share is below another, or at a floor below which that one leaves nothing to fall."""
    return measured <= floor if against <= floor else measured < against


def _judge_one(criterion: Criterion, counts: Counts, alpha: float, rows: pd.DataFrame | None) -> Finding:
    first, second = criterion.condition, criterion.against or ""
    p_value = None
    if criterion.kind == "lower_bound":
        bar = criterion.bar({name: share(count) for name, count in counts.items()})
        low = stats.wilson(*counts[first], alpha).low
        measured, threshold, passed = low, bar, low >= bar
        sentence = f"CI_low({first}) = {against_bar(low, bar)}"
    elif criterion.kind == "overlap":
        one, other = (stats.wilson(*counts[name], alpha) for name in (first, second))
        measured, threshold, passed = share(counts[first]), share(counts[second]), one.overlaps(other)
        sentence = (
            f"{first} [{percent(one.low)}, {percent(one.high)}] {'overlaps' if passed else 'does not overlap'} "
            f"{second} [{percent(other.low)}, {percent(other.high)}]"
        )
    elif criterion.kind == "below":
        measured, threshold = share(counts[first]), share(counts[second])
        grounded = threshold <= criterion.floor
        passed = fallen(measured, threshold, criterion.floor)
        sentence = f"{first} {percent(measured)} is {'' if passed else 'not '}below {second} {percent(threshold)}"
        if grounded:
            sentence = (
                f"{second} {percent(threshold)} leaves nothing to fall, and {first} {percent(measured)} is "
                f"{'not ' if passed else ''}above {percent(criterion.floor)}"
            )
        if rows is not None:
            first_E, second_E = outcomes(rows, [first, second])
            sentence += f" (McNemar p = {stats.mcnemar(second_E, first_E).p_greater:.2g}, for information)"
    else:
        assert rows is not None
        if criterion.kind == "same_answers":
            ours, theirs = outcomes(rows, [first, second], "answer")
            same = int((ours == theirs).sum())
            measured, threshold, passed = same / len(ours), 1.0, same == len(ours)
            sentence = f"{first} gives {second}'s answer in {same} of {len(ours)} episodes"
        elif criterion.kind == "difference_above_zero":
            first_E, second_E = outcomes(rows, [first, second])
            gain = stats.paired_difference(first_E, second_E, alpha)
            measured, threshold, passed = gain.low, 0.0, gain.low > 0
            interval = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            sentence = f"{first} - {second} = {100 * gain.value:+.1f} points {interval}"
        else:
            first_E, second_E = outcomes(rows, [first, second])
            test = stats.mcnemar(first_E, second_E)
            measured = p_value = test.p_greater
            threshold, passed = alpha, p_value <= alpha
            alone = f"only {first} solves {test.only_first}, only {second} {test.only_second}"
            sentence = f"{alone} (McNemar p = {p_value:.2g})"
    return Finding(criterion.gate, criterion.name, measured, threshold, passed, sentence, p_value)


def counts_of(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Successes and n of every condition, of one checkpoint's rows."""
    grouped = rows.groupby("condition").success.agg(["sum", "size"])
    return {str(name): (int(row["sum"]), int(row["size"])) for name, row in grouped.iterrows()}


def judge(rows: pd.DataFrame, gate: GateConfig) -> Verdict:
    """Judge one checkpoint's rows on one split, as `m2ray.rows.judged_rows` gives them.

    Raises:
        UserError: as `judge_counts`; or there are no rows of a checkpoint, or an episode counts twice.
    """
    own = rows[rows.config != ""]
    if own.empty:
        raise UserError("rows: none belongs to a checkpoint; evaluate one")
    twice = rows[rows.duplicated(["condition", "episode"])]
    if not twice.empty:
        one = twice.iloc[0]
        raise UserError(
            f"rows: condition {one.condition}, episode {one.episode}: given twice; "
            "keep the rows of one checkpoint, task and decoding"
        )
    return judge_counts(counts_of(rows), int(own.k.iloc[0]), gate, rows)


def holm(verdicts: Sequence[Verdict], alpha: float = stats.ALPHA) -> list[Verdict]:
    """Correct the tests of all winners judged together for their number; a p that no longer holds fails.

    Give it all verdicts of a split: a smaller family is corrected less.
    """
    spots = [
        (v, f)
        for v, verdict in enumerate(verdicts)
        for f, x in enumerate(verdict.findings)
        if x.p_value is not None
    ]
    adjusted = stats.holm([verdicts[v].findings[f].p_value or 0.0 for v, f in spots])
    corrected = [list(verdict.findings) for verdict in verdicts]
    for (v, f), p_value in zip(spots, adjusted, strict=True):
        finding = corrected[v][f]
        text = finding.sentence.removesuffix(")") + f", Holm {p_value:.2g})"
        corrected[v][f] = replace(
            finding, measured=p_value, threshold=alpha, passed=p_value <= alpha, p_value=p_value, sentence=text
        )
    return [replace(verdict, findings=tuple(row)) for verdict, row in zip(verdicts, corrected, strict=True)]


# --- command -------------------------------------------------------------------------------------------------


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
        raise UserError(f"{where}: {text} has more successes than episodes; mend the count")
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
        return judge_bare(counts, 4 if args.k is None else args.k, gate)
    return judge_file(args.rows, gate, args.config, args.seed, args.split)


def judge_bare(counts: Counts, k: int, gate: GateConfig) -> int:
    """Judge bare counts, and say what they cannot tell."""
    if k < 1:
        raise UserError(f"--k: {k} is no number of slots; give 1 or more")
    from m2ray.verdicts import print_verdict  # which needs this module

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
    from m2ray.verdicts import print_verdict  # as above

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
        for cell, part, verdict in zip(family, parts, holm(verdicts, gate.alpha), strict=True):
            if cell in wanted:
                title = f"{cell[0]}, seed {cell[1]}, split {where}, k = {verdict.k}, gate {gate.name}"
                print_verdict(verdict, gate, part, title)
                passed.append(verdict.passed)
        if where != "confirm":
            print(f"Split {where}: a verdict counts on confirm, on episodes that nothing was chosen by.")
    return DONE if all(passed) else NOT_PASSED


if __name__ == "__main__":
    run(main)
