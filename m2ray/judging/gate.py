"""Judge outcomes by a gate: one verdict for a configuration over its training seeds, and one for each seed.

A configuration's rows -> `Arms` (one array per condition) -> each criterion of the gate -> `Verdict`. All
configurations that are judged together share one Holm family (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from m2ray.config.gate_file import Criterion, GateConfig
from m2ray.judging import statistics as stats
from m2ray.judging.amount import measure_amounts
from m2ray.judging.arms import Arms, CountArms, Counts, ScoreArms
from m2ray.judging.criteria import answers_share, clusters_text, judge_criterion, p_value
from m2ray.judging.holm import holm, holm_corrected
from m2ray.judging.row_arms import RowArms
from m2ray.judging.verdict import CriterionResult, Verdict, over_seeds
from m2ray.util.errors import UserError
from m2ray.util.text import list_some

FEW_ALIKE = 5  # episodes with another outcome than most, from which on seeds with the same outcomes are named


@dataclass(frozen=True)
class JudgedConfiguration:
    """A configuration's outcomes, its verdict over its training seeds, and that of each seed."""

    arms: RowArms
    verdict: Verdict
    seeds: dict[int, Verdict]


def judge_together(configurations: Sequence[pd.DataFrame], gate: GateConfig) -> list[JudgedConfiguration]:
    """Judge configurations on one split, Holm-corrected together.

    Args:
        configurations: The rows of each, as `m2ray.evaluation.row_selection.configuration_rows` returns them.
        gate: The gate.

    Raises:
        UserError: as in `judge`.
    """
    arms = [(RowArms(rows), slots(rows)) for rows in configurations]
    if gate.grades is None:
        return _judge_each_seed(arms, gate)
    levels = family_levels(arms, gate)
    judged = []
    for (own, k), level in zip(arms, levels, strict=True):
        together = len(arms)
        verdict = judge_arms(own, k, gate, level, "rows", together)
        if len(own.seeds) == 1:
            seeds = {own.seeds[0]: verdict}
        else:
            seeds = {seed: judge_arms(own.of_seed(seed), k, gate, level, "rows", together) for seed in own.seeds}
        judged.append(JudgedConfiguration(own, verdict, seeds))
    return judged


def _judge_each_seed(arms: Sequence[tuple[RowArms, int | None]], gate: GateConfig) -> list[JudgedConfiguration]:
    """Judge by a gate without grades: each seed by itself, all tests of all of them in one Holm family."""
    verdicts = [
        [judge_arms(own.of_seed(seed), k, gate, gate.alpha, "rows") for seed in own.seeds] for own, k in arms
    ]
    corrected = iter(holm_corrected([verdict for row in verdicts for verdict in row], gate.alpha))
    judged = [(own, {seed: next(corrected) for seed in own.seeds}) for own, _ in arms]
    return [JudgedConfiguration(own, over_seeds(by_seed, own.counts), by_seed) for own, by_seed in judged]


def family_levels(arms: Sequence[tuple[ScoreArms, int | None]], gate: GateConfig) -> list[float]:
    """Return the level at which each configuration's tests are decided, after Holm's correction over all."""
    return holm_levels([joint_p_value(own, k, gate) for own, k in arms], gate.alpha)


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
        UserError: no row belongs to a codec, or its rows differ in k.
    """
    own = rows[rows.config != ""]
    if own.empty:
        raise UserError("rows: none belongs to a checkpoint; evaluate one")
    if "checkpoint" in own and own.k.max() < 1:  # outcomes of other systems have no checkpoints, and may have no k
        raise UserError("rows: column k: a codec with 0 slots; fix the rows")
    numbers = sorted({int(k) for k in own.k} - {0})
    if len(numbers) > 1:
        found = list_some([str(number) for number in numbers])
        raise UserError(f"rows: column k: {found} in one codec; give each k a codec of its own")
    return numbers[0] if numbers else None


def judge_counts(counts: Counts, k: int | None, gate: GateConfig) -> Verdict:
    """Judge bare counts of successes; criteria that need rows are left out.

    Raises:
        UserError: as in `judge`.
    """
    return judge_arms(CountArms(counts), k, gate, gate.alpha, "--counts")


def judge_arms(
    arms: Arms, k: int | None, gate: GateConfig, level: float, source: str, together: int = 1
) -> Verdict:
    """Judge outcomes; see `judge`.

    Args:
        arms: The outcomes.
        k: Number of slots, if there are slots.
        gate: The gate.
        level: Level of the tests after Holm's correction.
        source: What errors start with.
        together: How many configurations are judged together. What tells PART, PASS and WHOLE apart is decided at
            alpha over their number: Holm's levels come from other tests, and would not hold for these.
    """
    results = criterion_results(arms, k, gate, level, source)
    verdict = Verdict(
        k=k,
        results=results,
        counts=arms.counts,
        backwards=_backwards(arms, gate),
        retention=_retention(arms, gate),
        seeds=len(arms.seeds),
        n=arms.episodes,
        clusters=clusters_text(arms),
        grades=gate.grades,
    )
    if gate.grades is None:
        return verdict
    return replace(
        verdict,
        kept=None if verdict.failed else _kept(arms, verdict.retention, gate.alpha, together),
        whole=arms.contrast("normal", "P1").p_above(-gate.grades.whole_within) <= gate.alpha / together,
        wrong_helps=_wrong_helps(arms, gate.alpha),
        amounts=measure_amounts(arms, k, verdict.retention, gate.grades, gate.alpha),
        not_shown=not_shown(arms, gate),
        copied=_copied_seeds(arms),
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


def _backwards(arms: Arms, gate: GateConfig) -> bool:
    """Whether a wrong message does better than the right one.

    A gate without grades repeats the reference report, which says so of any difference; one with grades needs a
    difference beyond chance (its alpha, one-sided, without Holm's correction: it is a description, not a verdict).
    """
    if not {"shuffle", "normal"} <= set(arms.counts):
        return False
    if gate.grades is None:
        return arms.rate("shuffle") > arms.rate("normal")
    return arms.contrast("shuffle", "normal").p_above(0.0) <= gate.alpha


def _retention(arms: Arms, gate: GateConfig) -> stats.Estimate | None:
    if not {"normal", "P0", "P1"} <= set(arms.counts) or (gate.grades is None and not arms.paired):
        return None
    return arms.retention(gate.alpha)


def _kept(arms: Arms, retention: stats.Estimate | None, alpha: float, together: int) -> float | None:
    """Return retention's lower bound, for so many configurations together."""
    if retention is None:
        return None
    return retention.low if together == 1 else arms.retention(alpha / together).low


def _wrong_helps(arms: Arms, alpha: float) -> float | None:
    """Return by how much a wrong message helps over none; None where it is not shown to."""
    if not {"shuffle", "P0"} <= set(arms.counts):
        return None
    contrast = arms.contrast("shuffle", "P0")
    return contrast.value if contrast.p_above(0.0) <= alpha else None


def applicable(arms: Arms, k: int | None, gate: GateConfig) -> list[Criterion]:
    """Return the criteria that can be judged: those for this k, and of the optional ones those with outcomes."""
    return [
        criterion
        for criterion in gate.criteria
        if criterion.applies(k)
        and not (criterion.paired and not isinstance(arms, ScoreArms))
        and not (criterion.optional and _missing(arms, criterion))
    ]


def _missing(arms: Arms, criterion: Criterion) -> list[str]:
    """Return what an optional criterion lacks: conditions, or the column that it reads."""
    lacking = [name for name in criterion.conditions if name not in arms.counts]
    if lacking or criterion.column is None:
        return lacking
    known = (
        isinstance(arms, RowArms) and answers_share(arms.rows, criterion.condition, criterion.column) is not None
    )
    return [] if known else [f"{criterion.column} answers"]


def not_shown(arms: Arms, gate: GateConfig) -> tuple[str, ...]:
    """Return what the gate's optional criteria would have needed, in the gate's order, conditions first."""
    named = [c for c in gate.criteria if c.optional and c.decides and not c.silent]
    lacking = [name for c in named for name in _missing(arms, c)]
    return tuple(sorted(dict.fromkeys(lacking), key=lambda name: name.endswith(" answers")))


def _copied_seeds(arms: Arms) -> tuple[int, ...]:
    """Return the training seeds that have the same outcomes as another one by the right message.

    Seeds that solve nearly all episodes, or hardly any, may do so without being copies.
    """
    if not isinstance(arms, ScoreArms) or len(arms.seeds) < 2:
        return ()
    by_outcomes: dict[bytes, list[int]] = {}
    for seed, outcome_E in zip(arms.seeds, arms.scores("normal"), strict=True):
        if len(outcome_E) - np.unique(outcome_E, return_counts=True)[1].max() >= FEW_ALIKE:
            by_outcomes.setdefault(outcome_E.tobytes(), []).append(seed)
    return tuple(sorted(seed for same in by_outcomes.values() if len(same) > 1 for seed in same))


# --- Holm's family -------------------------------------------------------------------------------------------


def joint_p_value(arms: ScoreArms, k: int | None, gate: GateConfig) -> float:
    """Return a configuration's p-value in its family: that of its criteria together.

    All must hold, so it is the largest of theirs (an intersection-union test, Berger 1982).
    """
    tested = [c for c in applicable(arms, k, gate) if c.gate != "validity" and c.decides]
    return max((p for c in tested if (p := p_value(c, arms)) is not None), default=0.0)


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """Return the level at which each test is decided, so that p <= level is Holm's decision.

    The level of a test is alpha over the factor that Holm's method multiplies its p-value by.
    """
    count = len(p_values)
    levels = []
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        factor = adjusted / p if p > 0 and adjusted < 1 else count
        levels.append(alpha / min(max(factor, 1.0), count))
    return levels
