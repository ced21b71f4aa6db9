"""Judge outcomes by a gate: its criteria over rows, or over bare counts, give a verdict.

Shapes: E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from m2ray.config.gate_file import Criterion, GateConfig, GateName
from m2ray.evaluation.rows import outcomes
from m2ray.judging import statistics as stats
from m2ray.util.errors import UserError
from m2ray.util.text import percent

PASS, FAIL, NOT_APPLICABLE = "PASS", "FAIL", "n/a"

Counts = Mapping[str, tuple[int, int]]  # (successes, n) by condition


# --- verdicts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CriterionResult:
    """The result of one criterion: what was measured, the threshold it was compared with, and a sentence.

    `measured` and `threshold` by kind, with `condition` and `against` as in the gate file:

    - lower_bound: the Wilson lower bound of `condition`, and the bar that it must reach.
    - difference_above_zero: the lower bound of the paired difference `condition` - `against`, and 0.
    - overlap, below: the success rates of `condition` and of `against`.
    - same_answers: the share of episodes with equal answers, and 1.
    - mcnemar: the one-sided p-value, which is in `p_value` as well, and alpha.
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
    """The results of all criteria that apply to one checkpoint, and the verdict that follows from them."""

    k: int
    results: tuple[CriterionResult, ...]
    counts: Counts
    backwards: bool  # a wrong message does better than the right one
    retention: stats.Estimate | None  # None without rows of normal, P0 and P1

    def gate(self, name: GateName) -> str:
        """Return PASS, FAIL or n/a for the criteria of one gate."""
        passed = [result.passed for result in self.results if result.gate == name]
        return (PASS if all(passed) else FAIL) if passed else NOT_APPLICABLE

    @property
    def passed(self) -> bool:
        """True if all criteria hold."""
        return all(result.passed for result in self.results)

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return PASS if self.passed else FAIL

    @property
    def reason(self) -> str:
        """The first criterion that fails, with its figures; BACKWARDS if a wrong message beats the right one."""
        failed = [f"{r.gate}, {r.name}: {r.sentence}" for r in self.results if not r.passed]
        backwards = "BACKWARDS: a wrong message does better than the right one; " if self.backwards else ""
        return backwards + failed[0] if failed else "all criteria hold"


def judge(rows: pd.DataFrame, gate: GateConfig) -> Verdict:
    """Judge one checkpoint's rows on one split, as returned by `m2ray.evaluation.rows.judged_rows`.

    Raises:
        UserError: as in `judge_counts`; or no row belongs to a checkpoint, or an episode has two rows.
    """
    own = rows[rows.config != ""]
    if own.empty:
        raise UserError("rows: none belongs to a checkpoint; evaluate one")
    duplicates = rows[rows.duplicated(["condition", "episode"])]
    if not duplicates.empty:
        first = duplicates.iloc[0]
        raise UserError(
            f"rows: condition {first.condition}, episode {first.episode}: given twice; "
            "keep the rows of one checkpoint, task and decoding"
        )
    return judge_counts(count_successes(rows), int(own.k.iloc[0]), gate, rows)


def judge_counts(counts: Counts, k: int, gate: GateConfig, rows: pd.DataFrame | None = None) -> Verdict:
    """Judge the successes of each condition; criteria that need paired outcomes are judged only if rows are given.

    Raises:
        UserError: a condition that a criterion names is missing or was evaluated on other episodes, or no
            criterion of the gate can be judged.
    """
    source = "--counts" if rows is None else "rows"
    criteria = [c for c in gate.criteria if c.applies(k) and not (c.paired and rows is None)]
    if not criteria:
        # A verdict without results would pass.
        raise UserError(
            f"{source}: gate {gate.name}: no criterion can be judged at k = {k}; use another gate or k"
        )
    for criterion in criteria:
        for name in criterion.conditions:
            if name not in counts:
                raise UserError(
                    f"{source}: condition {name}: missing, and the criterion '{criterion.name}' needs it; add it"
                )
    if rows is not None:  # `outcomes` refuses conditions on different episodes
        outcomes(rows, list(dict.fromkeys(name for c in criteria for name in c.conditions)))
    results = tuple(_judge_criterion(criterion, counts, gate.alpha, rows) for criterion in criteria)
    both = {"shuffle", "normal"} <= set(counts)
    backwards = both and success_rate(counts["shuffle"]) > success_rate(counts["normal"])
    kept = None
    if rows is not None and {"normal", "P0", "P1"} <= set(counts):
        normal_E, p0_E, p1_E = outcomes(rows, ["normal", "P0", "P1"])
        kept = stats.retention(normal_E, p0_E, p1_E, gate.alpha)
    return Verdict(k, results, counts, backwards, kept)


# --- counts --------------------------------------------------------------------------------------------------


def count_successes(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return successes and n of every condition in one checkpoint's rows."""
    grouped = rows.groupby("condition").success.agg(["sum", "size"])
    return {str(name): (int(row["sum"]), int(row["size"])) for name, row in grouped.iterrows()}


def success_rate(count: tuple[int, int]) -> float:
    """Return successes over n."""
    return count[0] / count[1]


def is_below(rate: float, against: float, floor: float) -> bool:
    """Return whether a success rate is below another one.

    Where the other one is at most `floor`, it leaves little to lose: the rate must then be at most `floor`, too.
    """
    return rate <= floor if against <= floor else rate < against


def compare_to_bar(low: float, bar: float) -> str:
    """Return `12.8% < 30.0%`, with as many decimals as it takes for the two to differ."""
    sign = ">=" if low >= bar else "<"
    digits = next((d for d in range(1, 6) if f"{100 * low:.{d}f}" != f"{100 * bar:.{d}f}"), 1)
    return f"{100 * low:.{digits}f}% {sign} {100 * bar:.{digits}f}%"


# --- criteria, one function a kind ---------------------------------------------------------------------------


class _Measurement(NamedTuple):
    """A criterion's result without its name: the last fields of `CriterionResult`."""

    measured: float
    threshold: float
    passed: bool
    sentence: str
    p_value: float | None = None


def _judge_criterion(
    criterion: Criterion, counts: Counts, alpha: float, rows: pd.DataFrame | None
) -> CriterionResult:
    if criterion.kind == "lower_bound":
        found = _judge_lower_bound(criterion, counts, alpha)
    elif criterion.kind == "overlap":
        found = _judge_overlap(criterion, counts, alpha)
    elif criterion.kind == "below":
        found = _judge_below(criterion, counts, rows)
    else:
        assert rows is not None, "paired criteria are left out where there are only counts"
        if criterion.kind == "same_answers":
            found = _judge_same_answers(criterion, rows)
        elif criterion.kind == "difference_above_zero":
            found = _judge_difference(criterion, rows, alpha)
        else:
            found = _judge_mcnemar(criterion, rows, alpha)
    return CriterionResult(criterion.gate, criterion.name, *found)


def _pair(criterion: Criterion) -> tuple[str, str]:
    assert criterion.against is not None, "gate files give every kind but lower_bound a second condition"
    return criterion.condition, criterion.against


def _judge_lower_bound(criterion: Criterion, counts: Counts, alpha: float) -> _Measurement:
    bar = criterion.bar({name: success_rate(count) for name, count in counts.items()})
    low = stats.wilson(*counts[criterion.condition], alpha).low
    return _Measurement(low, bar, low >= bar, f"CI_low({criterion.condition}) = {compare_to_bar(low, bar)}")


def _judge_overlap(criterion: Criterion, counts: Counts, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    interval, other = (stats.wilson(*counts[name], alpha) for name in (first, second))
    passed = interval.overlaps(other)
    verb = "overlaps" if passed else "does not overlap"
    sentence = (
        f"{first} [{percent(interval.low)}, {percent(interval.high)}] {verb} "
        f"{second} [{percent(other.low)}, {percent(other.high)}]"
    )
    return _Measurement(success_rate(counts[first]), success_rate(counts[second]), passed, sentence)


def _judge_below(criterion: Criterion, counts: Counts, rows: pd.DataFrame | None) -> _Measurement:
    first, second = _pair(criterion)
    rate, against = success_rate(counts[first]), success_rate(counts[second])
    passed = is_below(rate, against, criterion.floor)
    sentence = f"{first} {percent(rate)} is {'' if passed else 'not '}below {second} {percent(against)}"
    if against <= criterion.floor:
        floor = f"the floor of {percent(criterion.floor)}"
        sentence = f"{second} {percent(against)} and {first} {percent(rate)} are both at most {floor}"
        if not passed:
            sentence = f"{second} {percent(against)} is at most {floor}, but {first} {percent(rate)} is above it"
    if rows is not None:
        first_E, second_E = outcomes(rows, [first, second])
        sentence += f" (McNemar p = {stats.mcnemar(second_E, first_E).p_greater:.2g}, for information)"
    return _Measurement(rate, against, passed, sentence)


def _judge_same_answers(criterion: Criterion, rows: pd.DataFrame) -> _Measurement:
    first, second = _pair(criterion)
    first_E, second_E = outcomes(rows, [first, second], "answer")
    same, n = int((first_E == second_E).sum()), len(first_E)
    return _Measurement(same / n, 1.0, same == n, f"{first} gives {second}'s answer in {same} of {n} episodes")


def _judge_difference(criterion: Criterion, rows: pd.DataFrame, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    first_E, second_E = outcomes(rows, [first, second])
    difference = stats.paired_difference(first_E, second_E, alpha)
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    sentence = f"{first} - {second} = {100 * difference.value:+.1f} points {interval}"
    return _Measurement(difference.low, 0.0, difference.low > 0, sentence)


def _judge_mcnemar(criterion: Criterion, rows: pd.DataFrame, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    first_E, second_E = outcomes(rows, [first, second])
    test = stats.mcnemar(first_E, second_E)
    alone = f"only {first} solves {test.only_first}, only {second} {test.only_second}"
    sentence = f"{alone} (McNemar p = {test.p_greater:.2g})"
    return _Measurement(test.p_greater, alpha, test.p_greater <= alpha, sentence, test.p_greater)
