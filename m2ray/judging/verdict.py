"""Results of criteria, and the verdict that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from m2ray.config.condition_names import TABLE_ORDER
from m2ray.config.gate_file import GateName, Grades
from m2ray.judging import statistics as stats
from m2ray.judging.arms import Counts
from m2ray.util.text import percent

INVALID, FAIL, PART, PASS, WHOLE = "INVALID SETTING", "FAIL", "PART", "PASS", "WHOLE"
PASSES = (PASS, WHOLE)
UNTESTABLE, NOT_APPLICABLE = "untestable", "n/a"
ALL_HOLD = "all criteria hold"  # the reason of a PASS without amounts
FEW_SEEDS = 3  # below which a verdict says how many training seeds it rests on


@dataclass(frozen=True)
class CriterionResult:
    """The result of one criterion: what was measured, the threshold it was compared with, and a sentence.

    `measured` and `threshold` by kind, with `condition` and `against` as in the gate file:

    - lower_bound: the Wilson lower bound of `condition`, and the bar that it must reach.
    - difference_above_zero: the lower bound of the paired difference `condition` - `against`, and 0.
    - exceeds: the one-sided lower bound of that difference, and the margin.
    - equivalent: the bound of that difference with the larger absolute value, and the margin.
    - overlap, below: the success rates of `condition` and of `against`.
    - same_answers: the share of episodes with equal answers, and 1.
    - at_most: the share of such answers, and the largest share allowed.
    - power: the number of episodes, and the number needed.
    - mcnemar, better: the one-sided p-value, which is in `p_value` as well, and alpha.

    `status` is PASS, FAIL or untestable. A criterion with `decides` False is for information. One that
    `explains_others` fails for a cause that makes others fail: too few episodes for any test.
    """

    gate: GateName
    name: str
    measured: float
    threshold: float
    status: str
    sentence: str
    p_value: float | None = None
    decides: bool = True
    explains_others: bool = False

    @property
    def passed(self) -> bool:
        """True unless the criterion fails; one that decides nothing never does."""
        return not self.decides or self.status != FAIL


class Amount(NamedTuple):
    """One measure of how much a codec carries; `low` and `high` are NaN where there is no interval."""

    name: str
    value: float
    low: float
    high: float
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The results of all criteria that apply to a configuration, or to one of its training seeds.

    Attributes:
        k: Number of slots; None for a system without them.
        results: The criteria's results.
        counts: Successes and episodes per condition; training seeds add up.
        backwards: True if a wrong message does better than the right one; with grades, beyond chance.
        retention: None without outcomes of normal, P0 and P1.
        kept: Its lower bound at alpha over the number of configurations that are judged together; None as for
            `retention`, and where a criterion fails.
        seeds: Number of training seeds.
        n: Number of episodes.
        clusters: What the tests count instead of episodes, such as `11 messages`; empty where they count episodes.
        grades: The gate's grades; None for a gate that gives PASS and FAIL only.
        whole: True if normal is shown to be not worse than the full text, within the gate's bound.
        wrong_helps: By how much a wrong message helps over none, where it is shown to.
        amounts: How much is carried.
        not_shown: Optional conditions of the gate that are missing.
        copied: Training seeds that solve the same episodes, and not nearly all or none of them.
        seed: The training seed that decides, where a gate judges each by itself and the verdict is that of the
            configuration.
    """

    k: int | None
    results: tuple[CriterionResult, ...]
    counts: Counts
    backwards: bool
    retention: stats.Estimate | None
    kept: float | None = None
    seeds: int = 1
    n: int = 0
    clusters: str = ""
    grades: Grades | None = None
    whole: bool = False
    wrong_helps: float | None = None
    amounts: tuple[Amount, ...] = ()
    not_shown: tuple[str, ...] = ()
    copied: tuple[int, ...] = ()
    seed: int | None = None

    def gate(self, name: GateName) -> str:
        """Return PASS, FAIL or n/a for the criteria of one gate."""
        passed = [result.passed for result in self.results if result.gate == name]
        return (PASS if all(passed) else FAIL) if passed else NOT_APPLICABLE

    @property
    def passed(self) -> bool:
        """True for PASS and WHOLE."""
        return self.verdict in PASSES

    @property
    def failed(self) -> list[CriterionResult]:
        """The criteria that do not hold, those on the setting first, and of these the one that explains others."""
        failed = [result for result in self.results if not result.passed]
        return sorted(failed, key=lambda result: (result.gate != "validity", not result.explains_others))

    @property
    def verdict(self) -> str:
        """INVALID SETTING, FAIL, PART, PASS or WHOLE; without grades PASS or FAIL."""
        if self.failed:
            return INVALID if self.grades and self.failed[0].gate == "validity" else FAIL
        if self.grades is None:
            return PASS
        if self.kept is None or not self.kept >= self.grades.part_below:
            return PART
        return WHOLE if self.whole else PASS

    @property
    def reason(self) -> str:
        """The finding that decided the verdict, with figures; BACKWARDS if a wrong message beats the right one."""
        if failed := self.failed:
            backwards = "BACKWARDS: a wrong message does better than the right one; " if self.backwards else ""
            if failed[0].gate == "validity":
                backwards = ""
            seed = f"seed {self.seed}: " if self.seed is not None else ""
            return f"{seed}{backwards}'{failed[0].name}' does not hold: {failed[0].sentence}"
        if self.grades is None:
            return ALL_HOLD
        parts = [amount.sentence for amount in self.amounts]
        if self.verdict == PART and self.retention and self.retention.low >= self.grades.part_below:
            parts.append(f"for all that are judged together, it is shown to keep {self.kept:.2f}")
        return "; ".join(parts) or ALL_HOLD

    @property
    def caveats(self) -> str:
        """Limits of the verdict: clusters of episodes, few or copied training seeds, and conditions not shown."""
        parts = [f"the tests count {self.clusters}, not {self.n} episodes"] if self.clusters else []
        if self.grades and self.seeds < FEW_SEEDS:
            parts.append(f"{self.seeds} training seed{'s' * (self.seeds > 1)}")
        if self.copied:
            seeds = ", ".join(map(str, self.copied))
            parts.append(f"seeds {seeds} solve the same episodes, as copies would")
        if self.grades and not self.failed and self.wrong_helps is not None:
            parts.append(f"a wrong message helps as well, by {100 * self.wrong_helps:+.1f} points over none")
        if self.not_shown:
            parts.append(f"not shown: {', '.join(self.not_shown)}")
        return "; ".join(parts)

    def __str__(self) -> str:
        """Return the verdict as the leaderboard words it, and the success rates below it."""
        caveats = f" ({self.caveats})" if self.caveats else ""
        rates = [
            f"{name} {percent(successes / n)}"
            for name in TABLE_ORDER
            if name in self.counts
            for successes, n in [self.counts[name]]
        ]
        return f"{self.verdict}: {self.reason}{caveats}\nsolved of n = {self.n}: {', '.join(rates)}"

    def amount(self, name: str) -> Amount:
        """Return a measure by name, with NaN for all values if it is missing."""
        found = next((amount for amount in self.amounts if amount.name == name), None)
        return found or Amount(name, math.nan, math.nan, math.nan, "")


def over_seeds(verdicts: dict[int, Verdict], counts: Counts) -> Verdict:
    """Return a configuration's verdict by a gate that judges each training seed by itself: all must pass."""
    deciding = next((seed for seed, verdict in verdicts.items() if not verdict.passed), None)
    chosen = next(iter(verdicts.values())) if deciding is None else verdicts[deciding]
    if len(verdicts) == 1:
        return chosen
    return replace(chosen, counts=counts, seeds=len(verdicts), seed=deciding)
