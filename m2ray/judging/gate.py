"""Judge outcomes by a gate: one verdict for a configuration over its training seeds, and one for each seed.

A configuration's rows -> `Arms` (one array per condition) -> each criterion of the gate -> `Verdict`. All
configurations that are judged together share one Holm family (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from m2ray.config.gate_file import Criterion, GateConfig
from m2ray.judging import statistics as stats
from m2ray.judging.amount import measure_amounts
from m2ray.judging.arms import NO_SEED, Arms, CountArms, Counts, RowArms
from m2ray.judging.criteria import answers_share, judge_criterion
from m2ray.judging.holm import holm, holm_corrected
from m2ray.judging.verdict import CriterionResult, Verdict, over_seeds
from m2ray.util.errors import UserError


@dataclass(frozen=True)
class JudgedConfiguration:
    """A configuration's verdict over its training seeds, and that of each seed."""

    verdict: Verdict
    seeds: dict[int, Verdict]


def judge_together(configurations: Sequence[pd.DataFrame], gate: GateConfig) -> list[JudgedConfiguration]:
    """Judge configurations on one split, Holm-corrected together.

    Args:
        configurations: The rows of each, as `m2ray.evaluation.rows.configuration_rows` returns them.
        gate: The gate.

    Raises:
        UserError: as in `judge`.
    """
    seeds = [{seed: one_seed(rows, seed) for seed in training_seeds(rows)} for rows in configurations]
    if gate.grades is None:
        verdicts = [[judge(rows, gate) for rows in by_seed.values()] for by_seed in seeds]
        corrected = iter(holm_corrected([verdict for row in verdicts for verdict in row], gate.alpha))
        judged = [{seed: next(corrected) for seed in by_seed} for by_seed in seeds]
        pooled = [RowArms(rows).counts if len(training_seeds(rows)) > 1 else {} for rows in configurations]
        return [
            JudgedConfiguration(over_seeds(by_seed, counts), by_seed)
            for by_seed, counts in zip(judged, pooled, strict=True)
        ]
    levels = holm_levels([joint_p_value(rows, gate) for rows in configurations], gate.alpha)
    return [
        JudgedConfiguration(
            judge(rows, gate, level),
            {seed: judge(own, gate, level) for seed, own in by_seed.items()},
        )
        for rows, by_seed, level in zip(configurations, seeds, levels, strict=True)
    ]


def training_seeds(rows: pd.DataFrame) -> list[int]:
    """Return the training seeds of a configuration's rows, or [-1] for a system without them."""
    return sorted({int(seed) for seed in rows[rows.config != ""].seed if seed != NO_SEED}) or [NO_SEED]


def one_seed(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of one training seed, and those that all seeds share."""
    own: pd.DataFrame = rows[(rows.seed == seed) | (rows.seed == NO_SEED)]
    return own


def judge(rows: pd.DataFrame, gate: GateConfig, level: float | None = None) -> Verdict:
    """Judge one configuration's rows on one split.

    Args:
        rows: Its rows, of one or several training seeds, and the rows that are paired with them. A gate without
            grades judges one seed.
        gate: The gate.
        level: Level of the tests after Holm's correction; by default the gate's alpha.

    Raises:
        UserError: no row belongs to a codec, an episode has two rows, a condition that a criterion needs is
            missing or was run on other episodes, or no criterion can be judged.
    """
    return judge_arms(RowArms(rows), slots(rows), gate, level or gate.alpha, "rows")


def slots(rows: pd.DataFrame) -> int | None:
    """Return k of a configuration's rows; None for a system without slots.

    Raises:
        UserError: no row belongs to a codec.
    """
    own = rows[rows.config != ""]
    if own.empty:
        raise UserError("rows: none belongs to a checkpoint; evaluate one")
    return int(own.k.max()) or None


def judge_counts(counts: Counts, k: int | None, gate: GateConfig) -> Verdict:
    """Judge bare counts of successes; criteria that need rows are left out.

    Raises:
        UserError: as in `judge`.
    """
    return judge_arms(CountArms(counts), k, gate, gate.alpha, "--counts")


def judge_arms(arms: Arms, k: int | None, gate: GateConfig, level: float, source: str) -> Verdict:
    """Judge outcomes; see `judge`. Errors start with `source`."""
    results = criterion_results(arms, k, gate, level, source)
    both = {"shuffle", "normal"} <= set(arms.counts)
    verdict = Verdict(
        k=k,
        results=results,
        counts=arms.counts,
        backwards=both and arms.rate("shuffle") > arms.rate("normal"),
        retention=_retention(arms, gate),
        seeds=len(arms.seeds),
        n=arms.episodes,
        grades=gate.grades,
    )
    if gate.grades is None:
        return verdict
    return replace(
        verdict,
        whole=arms.contrast("normal", "P1").p_above(-gate.grades.whole_within) <= level,
        amounts=measure_amounts(arms, k, verdict.retention, gate.grades, gate.alpha),
        not_shown=not_shown(arms, gate),
    )


def criterion_results(
    arms: Arms, k: int | None, gate: GateConfig, level: float, source: str
) -> tuple[CriterionResult, ...]:
    """Return the results of all criteria that can be judged; see `judge`."""
    criteria = applicable(arms, k, gate)
    if not criteria:
        # A verdict without results would pass.
        raise UserError(
            f"{source}: gate {gate.name}: no criterion can be judged at k = {k}; use another gate or k"
        )
    for criterion in criteria:
        for name in criterion.conditions:
            if name not in arms.counts:
                raise UserError(
                    f"{source}: condition {name}: missing, and the criterion '{criterion.name}' needs it; add it"
                )
    return tuple(judge_criterion(criterion, arms, gate.alpha, level) for criterion in criteria)


def _retention(arms: Arms, gate: GateConfig) -> stats.Estimate | None:
    if not {"normal", "P0", "P1"} <= set(arms.counts) or (gate.grades is None and not arms.paired):
        return None
    return arms.retention(gate.alpha)


def applicable(arms: Arms, k: int | None, gate: GateConfig) -> list[Criterion]:
    """Return the criteria that can be judged: those for this k, and of the optional ones those with outcomes."""
    return [
        criterion
        for criterion in gate.criteria
        if criterion.applies(k)
        and not (criterion.paired and not isinstance(arms, RowArms))
        and not (criterion.optional and _missing(arms, criterion))
    ]


def _missing(arms: Arms, criterion: Criterion) -> list[str]:
    """Return what an optional criterion lacks: conditions, or the column that it reads."""
    lacking = [name for name in criterion.conditions if name not in arms.counts]
    if lacking or criterion.column is None:
        return lacking
    known = isinstance(arms, RowArms) and answers_share(arms, criterion.condition, criterion.column) is not None
    return [] if known else [f"{criterion.column} answers"]


def not_shown(arms: Arms, gate: GateConfig) -> tuple[str, ...]:
    """Return what the gate's optional criteria would have needed, in the gate's order, conditions first."""
    lacking = [name for c in gate.criteria if c.optional and c.decides for name in _missing(arms, c)]
    return tuple(sorted(dict.fromkeys(lacking), key=lambda name: name.endswith(" answers")))


# --- Holm's family -------------------------------------------------------------------------------------------


def joint_p_value(rows: pd.DataFrame, gate: GateConfig) -> float:
    """Return a configuration's p-value in its family: that of its criteria together.

    All must hold, so it is the largest of theirs (an intersection-union test, Berger 1982).
    """
    p_values = [
        result.p_value
        for result in criterion_results(RowArms(rows), slots(rows), gate, gate.alpha, "rows")
        if result.p_value is not None and result.gate != "validity" and result.decides
    ]
    return max(p_values, default=0.0)


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """Return the level at which each test is decided, so that p <= level is Holm's decision.

    The level of a test is alpha over the factor that Holm's method multiplies its p-value by.
    """
    count = len(p_values)
    levels = []
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        factor = adjusted / p_value if p_value > 0 and adjusted < 1 else count
        levels.append(alpha / min(max(factor, 1.0), count))
    return levels
