"""The judge: pre-registered criteria over rows, or over bare counts, give a verdict.

`python -m m2ray.gate ROWS.parquet` or `--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field, model_validator

from m2ray import stats
from m2ray.command import DONE, NOT_PASSED, Parser, UserError, run
from m2ray.config import Share, Strict, load
from m2ray.rows import FAILED, judged_rows, outcomes, read_rows

REFERENCE = Path(__file__).parent / "gates" / "reference.yaml"
PASS, FAIL, NOT_APPLICABLE = "PASS", "FAIL", "n/a"

GateName = Literal["validity", "gate1", "gate2", "semantic"]
Counts = Mapping[str, tuple[int, int]]


class Criterion(Strict):
    """One line of a gate file; `gates/reference.yaml` explains the kinds."""

    gate: GateName
    name: str
    kind: Literal["difference_above_zero", "same_answers", "lower_bound", "overlap", "below", "mcnemar"]
    condition: str
    against: str | None = None
    at_least: Share = 0.0
    above: dict[str, Share] = {}
    share_of: dict[str, Share] = {}
    min_k: Annotated[int, Field(ge=1)] = 1
    max_k: Annotated[int, Field(ge=1)] = 1_000_000

    @model_validator(mode="after")
    def _complete(self) -> Criterion:
        if (self.kind == "lower_bound") == (self.against is not None):
            raise ValueError("lower_bound takes at_least, above or share_of; every other kind takes against")
        return self

    @property
    def paired(self) -> bool:
        """Whether it needs rows, not counts."""
        return self.kind in ("difference_above_zero", "same_answers", "mcnemar")

    def bar(self, shares: Mapping[str, float]) -> float:
        """The share that a lower bound must reach."""
        relative = [shares[name] + margin for name, margin in self.above.items()]
        parts = [shares[name] * part for name, part in self.share_of.items()]
        # 0.2 + 0.1 is 0.30000000000000004: bars are meant to a tenth of a billionth.
        return round(max([self.at_least, *relative, *parts]), 10)


class GateConfig(Strict):
    """A gate file."""

    name: str
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    criteria: Annotated[list[Criterion], Field(min_length=1)]


@dataclass(frozen=True)
class Finding:
    """A criterion, judged."""

    gate: GateName
    name: str
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
        failed = [finding.sentence for finding in self.findings if not finding.passed]
        backwards = "BACKWARDS: a wrong message does better than the right one; " if self.backwards else ""
        return backwards + failed[0] if failed else "all criteria hold"


def load_gate(path: Path | None = None) -> GateConfig:
    """Read a gate file; default: the reference's."""
    return load(GateConfig, path or REFERENCE)


def percent(share: float) -> str:
    """`12.8%`."""
    return f"{100 * share:.1f}%"


def judge_counts(counts: Counts, k: int, gate: GateConfig, rows: pd.DataFrame | None = None) -> Verdict:
    """Judge successes out of n per condition; with rows, also what only paired outcomes can tell.

    Raises:
        UserError: a condition that a criterion names is missing.
    """
    findings = []
    for criterion in gate.criteria:
        if not criterion.min_k <= k <= criterion.max_k or (criterion.paired and rows is None):
            continue
        named = [criterion.condition, *criterion.above, *criterion.share_of]
        for name in [*named, *([criterion.against] if criterion.against else [])]:
            if name not in counts:
                raise UserError(
                    f"{'--counts' if rows is None else 'rows'}: condition {name}: missing, and the criterion "
                    f"'{criterion.name}' needs it; add it"
                )
        findings.append(_judge_one(criterion, counts, gate.alpha, rows))
    backwards = {"shuffle", "normal"} <= set(counts) and share(counts["shuffle"]) > share(counts["normal"])
    kept = None
    if rows is not None and {"normal", "P0", "P1"} <= set(counts):
        normal_E, p0_E, p1_E = outcomes(rows, ["normal", "P0", "P1"])
        kept = stats.retention(normal_E, p0_E, p1_E, gate.alpha)
    return Verdict(k, tuple(findings), counts, backwards, kept)


def share(count: tuple[int, int]) -> float:
    """Successes over n."""
    return count[0] / count[1]


def _judge_one(criterion: Criterion, counts: Counts, alpha: float, rows: pd.DataFrame | None) -> Finding:
    first, second = criterion.condition, criterion.against or ""
    p_value = None
    if criterion.kind == "lower_bound":
        bar = criterion.bar({name: share(count) for name, count in counts.items()})
        low = stats.wilson(*counts[first], alpha).low
        passed = low >= bar
        sentence = f"CI_low({first}) = {percent(low)} {'>=' if passed else '<'} {percent(bar)}"
    elif criterion.kind == "overlap":
        one, other = (stats.wilson(*counts[name], alpha) for name in (first, second))
        passed = one.overlaps(other)
        sentence = (
            f"{first} [{percent(one.low)}, {percent(one.high)}] {'overlaps' if passed else 'does not overlap'} "
            f"{second} [{percent(other.low)}, {percent(other.high)}]"
        )
    elif criterion.kind == "below":
        passed = share(counts[first]) < share(counts[second])
        sentence = (
            f"{first} {percent(share(counts[first]))} is {'' if passed else 'not '}below "
            f"{second} {percent(share(counts[second]))}"
        )
    else:
        assert rows is not None
        if criterion.kind == "same_answers":
            ours, theirs = outcomes(rows, [first, second], "answer")
            same = int((ours == theirs).sum())
            passed = same == len(ours)
            sentence = f"{first} gives {second}'s answer in {same} of {len(ours)} episodes"
        elif criterion.kind == "difference_above_zero":
            first_E, second_E = outcomes(rows, [first, second])
            gain = stats.paired_difference(first_E, second_E, alpha)
            passed = gain.low > 0
            interval = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            sentence = f"{first} - {second} = {100 * gain.value:+.1f} points {interval}"
        else:
            first_E, second_E = outcomes(rows, [first, second])
            test = stats.mcnemar(first_E, second_E)
            p_value, passed = test.p_greater, test.p_greater < alpha
            alone = f"only {first} solves {test.only_first}, only {second} {test.only_second}"
            sentence = f"{alone} (McNemar p = {p_value:.2g})"
    return Finding(criterion.gate, criterion.name, passed, sentence, p_value)


def counts_of(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Successes and n of every condition, of one checkpoint's rows."""
    grouped = rows.groupby("condition").success.agg(["sum", "size"])
    return {str(name): (int(row["sum"]), int(row["size"])) for name, row in grouped.iterrows()}


def judge(rows: pd.DataFrame, gate: GateConfig) -> Verdict:
    """Judge one checkpoint's rows on one split, as `m2ray.rows.judged_rows` gives them."""
    own = rows[rows.config != ""]
    return judge_counts(counts_of(rows), int(own.k.iloc[0]), gate, rows)


def holm(verdicts: Sequence[Verdict], alpha: float = stats.ALPHA) -> list[Verdict]:
    """Correct the tests of all winners judged together for their number; a p that no longer holds fails."""
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
        corrected[v][f] = replace(finding, passed=p_value < alpha, p_value=p_value, sentence=text)
    return [replace(verdict, findings=tuple(row)) for verdict, row in zip(verdicts, corrected, strict=True)]


# --- tables --------------------------------------------------------------------------------------------------

Table = list[list[str]]


def primary_table(counts: Counts, k: int, gate: GateConfig) -> Table:
    """Condition, success rate, what is expected, status: the reference report's first table.

    Statuses: normal FAILs below its bar. Null and random are OK within 5 points of P0, slightly high or low where
    only the intervals still overlap, else FAIL. Shuffle is BACKWARDS above normal, OK below P0, else FAIL.
    """
    bars = [c for c in gate.criteria if c.kind == "lower_bound" and c.min_k <= k <= c.max_k]
    shares = {name: share(count) for name, count in counts.items()}
    table = [["Condition", "Success Rate", "Expected", "Status"]]
    for name in ("normal", "null", "random", "shuffle"):
        if name not in counts or "P0" not in counts:
            continue
        near = f"~{100 * shares['P0']:.0f}%"
        expected, status = near, ""
        if name == "normal":
            known = [c.bar(shares) for c in bars if {*c.above, *c.share_of} <= set(shares)]
            bar = max(known, default=math.nan)
            expected = f"> {100 * bar:.0f}%"
            status = "OK" if stats.wilson(*counts[name], gate.alpha).low >= bar else FAIL
        elif name == "shuffle":
            expected = f"< {100 * shares['P0']:.0f}%"
            status = "OK" if shares[name] < shares["P0"] else FAIL
            status = "BACKWARDS" if shares[name] > shares.get("normal", 1.0) else status
        else:
            off = shares[name] - shares["P0"]
            apart = not stats.wilson(*counts[name], gate.alpha).overlaps(stats.wilson(*counts["P0"], gate.alpha))
            status = "OK" if abs(off) <= 0.05 + 1e-9 else f"Slightly {'high' if off > 0 else 'low'}"
            status = FAIL if apart else status
        table.append([name.capitalize(), rate(counts[name]), expected, status])
    return table


def summary_table(counts: Counts, alpha: float = stats.ALPHA) -> Table:
    """Condition, success rate, confidence interval: the reference report's second table."""
    order = ["normal", "null", "random", "shuffle", "P0", "P1", "constant", "mean", "matched", "identity"]
    names = [name for name in order if name in counts] + sorted(
        name for name in counts if name not in order and not name.startswith("scale_gate=") and name != FAILED
    )
    table = [["Condition", "Success Rate", f"{100 * (1 - alpha):.0f}% CI"]]
    for name in names:
        low, high = stats.wilson(*counts[name], alpha)
        label = {"P0": "P0 baseline", "P1": "P1 full text"}.get(name, name[0].upper() + name[1:])
        table.append([label, percent(share(counts[name])), f"[{percent(low)}, {percent(high)}]"])
    return table


def rate(count: tuple[int, int]) -> str:
    """`22.0% (11/50)`."""
    return f"{percent(share(count))} ({count[0]}/{count[1]})"


def gate_curve(counts: Counts) -> Table:
    """Success against scale_gate."""
    curve = sorted(
        (float(name.partition("=")[2]), count) for name, count in counts.items() if "scale_gate=" in name
    )
    if not curve:
        return []
    peak = max(share(count) for _, count in curve)
    rows = [[f"{gate:.2f}", rate(count), "Peak" if share(count) == peak else ""] for gate, count in curve]
    return [["scale_gate", "Success Rate", "Notes"], *rows]


def matters(rows: pd.DataFrame) -> tuple[int, int, int]:
    """The communication-matters subset: (solved by normal, failed by null, all episodes)."""
    normal, null = outcomes(rows, ["normal", "null"])
    return int((normal & ~null).sum()), int((~null).sum()), len(null)


def bar_lines(verdict: Verdict, gate: GateConfig) -> list[str]:
    """The criterion on normal in the reference report's words, and what this n can and cannot show."""
    shares = {name: share(count) for name, count in verdict.counts.items()}
    n = verdict.counts["normal"][1]
    low = stats.wilson(*verdict.counts["normal"], gate.alpha).low
    lines = []
    for c in gate.criteria:
        if c.kind != "lower_bound" or not c.min_k <= verdict.k <= c.max_k:
            continue
        bar = c.bar(shares)
        needed = stats.successes_needed(n, bar, gate.alpha)
        detectable = stats.minimum_detectable_rate(n, bar, alpha=gate.alpha)
        outcome = PASS if low >= bar else FAIL
        lines += [
            f"{c.gate.capitalize().replace('e1', 'e 1').replace('e2', 'e 2')} Criterion: CI_low >= {percent(bar)}",
            f"Result: CI_low = {percent(low)} {'>=' if low >= bar else '<'} {percent(bar)} -> {outcome}",
            f"Needed at n = {n}: {needed if needed is not None else 'more than all'} successes"
            + (f" ({percent(needed / n)})" if needed is not None else ""),
            f"Power: a true rate of {percent(detectable)} or more clears the bar with a chance of 80%"
            if not math.isnan(detectable)
            else "Power: no true rate clears the bar at this n",
        ]
    return lines


def print_table(table: Table, title: str) -> None:
    """A table on the terminal, plain text elsewhere."""
    from tabulate import tabulate

    print(f"\n{title}\n")
    print(tabulate(table[1:], headers=table[0], tablefmt="github", disable_numparse=True))


def print_verdict(verdict: Verdict, gate: GateConfig, rows: pd.DataFrame | None, title: str) -> None:
    """The verdict tables of the reference report; from rows also what counts cannot give."""
    print(f"# {title}")
    print_table(primary_table(verdict.counts, verdict.k, gate), "Primary Metrics")
    print_table(summary_table(verdict.counts, gate.alpha), "Statistical Summary")
    print("\n" + "\n".join(bar_lines(verdict, gate)))
    if rows is not None:
        if curve := gate_curve(verdict.counts):
            print_table(curve, "Gate Sweep Results")
        solved, hard, n = matters(rows)
        print(f"\nCommunication-Matters Subset\n\n- Episodes where Null fails: {hard}/{n}")
        if hard:
            print(f"- Normal success on Null-failing episodes: {percent(solved / hard)} ({solved}/{hard})")
        if verdict.retention is not None:
            kept = verdict.retention
            print(f"\nRetention (normal - P0) / (P1 - P0): {kept.value:.2f} [{kept.low:.2f}, {kept.high:.2f}]")
    table = [["Gate", "Criterion", "Finding", "Status"]]
    table += [[f.gate, f.name, f.sentence, PASS if f.passed else FAIL] for f in verdict.findings]
    print_table(table, "Criteria")
    print(f"\nVerdict: {verdict.verdict} - {verdict.reason}\n")


# --- command -------------------------------------------------------------------------------------------------


def parse_counts(text: str) -> dict[str, tuple[int, int]]:
    """`normal=11/50,null=12/50` as counts.

    Raises:
        UserError: not of that form, or more successes than episodes.
    """
    known = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "mean", "matched", "identity")
    counts = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise UserError(f"--counts: condition {name!r} does not exist; use some of {', '.join(known)}")
        counts[name] = parse_count(value, f"--counts: {name}")
    return counts


def parse_count(text: str, where: str) -> tuple[int, int]:
    """`11/50`."""
    successes, _, n = text.partition("/")
    if not (successes.strip().isdecimal() and n.strip().isdecimal()) or not 0 < int(n) <= 10**9:
        raise UserError(f"{where}: {text!r} is no count; write successes/episodes such as 11/50")
    if int(successes) > int(n):
        raise UserError(f"{where}: {text} has more successes than episodes; mend the count")
    return int(successes), int(n)


def main(argv: Sequence[str]) -> int:
    """Judge rows or counts and print the verdict tables."""
    parser = Parser(prog="python -m m2ray.gate", description="Judge rows, or bare counts, by a gate.")
    parser.add_argument("rows", nargs="?", type=Path, help="rows.parquet, or a results folder")
    parser.add_argument("--counts", help="normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50")
    parser.add_argument("--p1", help="with --counts: the full text's, 34/50")
    parser.add_argument("--k", type=int, default=4, help="with --counts: slots")
    parser.add_argument("--gate", type=Path, help=f"gate YAML; default: {REFERENCE.name} of the package")
    parser.add_argument("--config", help="with rows: only this configuration")
    parser.add_argument("--seed", type=int, help="with rows: only this training seed")
    parser.add_argument("--split", help="with rows: only this split; default: confirm where there is one")
    args = parser.parse_args(argv)
    if (args.rows is None) == (args.counts is None):
        raise UserError("python -m m2ray.gate: give a rows file or --counts; see --help")
    gate = load_gate(args.gate)
    if args.counts is not None:
        if args.k < 1:
            raise UserError(f"--k: {args.k} is no number of slots; give 1 or more")
        counts = parse_counts(args.counts)
        if args.p1:
            counts["P1"] = parse_count(args.p1, "--p1")
        verdict = judge_counts(counts, args.k, gate)
        print_verdict(verdict, gate, None, f"Counts, k = {args.k}, gate {gate.name}")
        print("From bare counts: no paired tests (McNemar, retention); give rows for those.")
        return DONE if verdict.passed else NOT_PASSED
    return judge_file(args.rows, gate, args.config, args.seed, args.split)


def judge_file(path: Path, gate: GateConfig, config: str | None, seed: int | None, split: str | None) -> int:
    """Judge each configuration and seed in a rows file, all together Holm-corrected."""
    rows = read_rows(path)
    own = rows[(rows.config != "") & (rows.condition != FAILED)]
    if config is not None:
        own = own[own.config == config]
    if seed is not None:
        own = own[own.seed == seed]
    if split is None and (own.split == "confirm").any():
        split = "confirm"
    if split is not None:
        own = own[own.split == split]
    cells = list(own[["config", "seed", "split"]].drop_duplicates().itertuples(index=False, name=None))
    if not cells:
        raise UserError(
            f"{path}: no rows of that configuration, seed and split; see which there are with m2ray.report"
        )
    parts = [judged_rows(rows, *cell) for cell in cells]
    verdicts = holm([judge(part, gate) for part in parts], gate.alpha)
    for (name, number, where), part, verdict in zip(cells, parts, verdicts, strict=True):
        print_verdict(
            verdict, gate, part, f"{name}, seed {number}, split {where}, k = {verdict.k}, gate {gate.name}"
        )
    return DONE if all(verdict.passed for verdict in verdicts) else NOT_PASSED


if __name__ == "__main__":
    run(main)
