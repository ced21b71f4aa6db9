# NEWDOC
"""The judge: pre-registered criteria over rows, or over bare counts, give a verdict.

`python -m m2ray.gate ROWS.parquet` or `--counts normal=11/50,null=12/50,... [--p1 34/50] [--k 4]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from m2ray.config.gate_file import Criterion, GateConfig, GateName
from m2ray.evaluation.rows import outcomes
from m2ray.judging import statistics as stats
from m2ray.util.errors import UserError
from m2ray.util.text import percent

PASS, FAIL, NOT_APPLICABLE = "PASS", "FAIL", "n/a"


Counts = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class CriterionResult:
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
    findings: tuple[CriterionResult, ...]
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


def compare_to_bar(low: float, bar: float) -> str:
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
    findings = [_judge_criterion(criterion, counts, gate.alpha, rows) for criterion in criteria]
    backwards = {"shuffle", "normal"} <= set(counts) and success_rate(counts["shuffle"]) > success_rate(
        counts["normal"]
    )
    kept = None
    if rows is not None and {"normal", "P0", "P1"} <= set(counts):
        normal_E, p0_E, p1_E = outcomes(rows, ["normal", "P0", "P1"])
        kept = stats.retention(normal_E, p0_E, p1_E, gate.alpha)
    return Verdict(k, tuple(findings), counts, backwards, kept)


def success_rate(count: tuple[int, int]) -> float:
    """Successes over n."""
    return count[0] / count[1]


def is_below(measured: float, against: float, floor: float) -> bool:
    """Whether a share is below another, or at a floor below which that one leaves nothing to fall."""
    return measured <= floor if against <= floor else measured < against


def _judge_criterion(
    criterion: Criterion, counts: Counts, alpha: float, rows: pd.DataFrame | None
) -> CriterionResult:
    first, second = criterion.condition, criterion.against or ""
    p_value = None
    if criterion.kind == "lower_bound":
        bar = criterion.bar({name: success_rate(count) for name, count in counts.items()})
        low = stats.wilson(*counts[first], alpha).low
        measured, threshold, passed = low, bar, low >= bar
        sentence = f"CI_low({first}) = {compare_to_bar(low, bar)}"
    elif criterion.kind == "overlap":
        one, other = (stats.wilson(*counts[name], alpha) for name in (first, second))
        measured, threshold, passed = (
            success_rate(counts[first]),
            success_rate(counts[second]),
            one.overlaps(other),
        )
        sentence = (
            f"{first} [{percent(one.low)}, {percent(one.high)}] {'overlaps' if passed else 'does not overlap'} "
            f"{second} [{percent(other.low)}, {percent(other.high)}]"
        )
    elif criterion.kind == "below":
        measured, threshold = success_rate(counts[first]), success_rate(counts[second])
        grounded = threshold <= criterion.floor
        passed = is_below(measured, threshold, criterion.floor)
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
    return CriterionResult(criterion.gate, criterion.name, measured, threshold, passed, sentence, p_value)


def count_successes(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
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
    return judge_counts(count_successes(rows), int(own.k.iloc[0]), gate, rows)


def holm_corrected(verdicts: Sequence[Verdict], alpha: float = stats.ALPHA) -> list[Verdict]:
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
