"""The criteria of a gate, one function a kind: what is measured, and whether it holds.

Shapes: E episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from m2ray.config.gate_file import Criterion
from m2ray.judging import statistics as stats
from m2ray.judging.arms import Arms, ScoreArms
from m2ray.judging.contrasts import MeanDifference, mean_difference
from m2ray.judging.row_arms import RowArms
from m2ray.judging.verdict import FAIL, PASS, UNTESTABLE, CriterionResult
from m2ray.util.errors import UserError
from m2ray.util.text import percent

# Conditions that must be the same are apart by rounding, in mean absolute nats per episode. In 16 bits it also
# changes free-text answers.
MAX_NLL_DIFFERENCE = 0.02  # where the answers are the same
MAX_ROUNDING = 0.02  # where some are not, as a share of what the text is worth
ROUNDS = 1e-3  # less is not the rounding of 16 bits, so that other answers are a fault
SAME_SUCCESS = 0.05  # margin of the success rates of two conditions that are the same but for rounding
# A variance over fewer clusters is too uncertain: "few" is less than 20 to 50 (Cameron and Miller 2015).
MIN_CLUSTERS = 20
POWER = 0.8  # the chance that a gate's number of episodes must give


def judge_criterion(criterion: Criterion, arms: Arms, alpha: float, level: float) -> CriterionResult:
    """Judge one criterion.

    Args:
        criterion: The criterion.
        arms: The outcomes; the criterion's conditions are among them.
        alpha: Level of the gate's intervals, and of its tests before Holm's correction.
        level: Level of the tests of `exceeds` and `better`, after it.

    Raises:
        UserError: conditions are on different episodes, or a column is missing.
    """
    corrected = level if criterion.gate != "validity" else alpha
    found = _KINDS[criterion.kind](criterion, arms, corrected if criterion.kind in CORRECTED else alpha)
    return CriterionResult(criterion.gate, criterion.name, decides=criterion.decides, **found._asdict())


def p_value(criterion: Criterion, arms: Arms) -> float | None:
    """Return the p-value of a criterion that is a test with a p-value in Holm's family, None for another kind."""
    if criterion.kind == "exceeds":
        return arms.contrast(*_pair(criterion)).p_above(criterion.margin)
    return arms.p_better(*_pair(criterion)) if criterion.kind == "better" else None


class _Measurement(NamedTuple):
    """A criterion's result without its name."""

    measured: float
    threshold: float
    status: str
    sentence: str
    p_value: float | None = None
    explains_others: bool = False


def _status(passed: bool) -> str:
    return PASS if passed else FAIL


def is_below(rate: float, against: float, floor: float) -> bool:
    """Return whether a success rate is below another one.

    Where the other one is at most `floor`, it leaves little to lose: the rate must then be at most `floor`, too.
    """
    return rate <= floor if against <= floor else rate < against


def compare_to_bar(low: float, bar: float) -> str:
    """Return `12.8% < 30.0%`, with as many decimals as it takes for the two to differ."""
    sign, digits = ">=" if low >= bar else "<", _digits_apart(low, bar)
    return f"{100 * low:.{digits}f}% {sign} {100 * bar:.{digits}f}%"


def _digits_apart(share: float, other: float) -> int:
    """Return how many decimals it takes for two percentages to differ; 1 if five do not do."""
    return next((d for d in range(1, 6) if f"{100 * share:.{d}f}" != f"{100 * other:.{d}f}"), 1)


def _pair(criterion: Criterion) -> tuple[str, str]:
    assert criterion.against is not None, "gate files give these kinds a second condition"
    return criterion.condition, criterion.against


def _rows(arms: Arms) -> RowArms:
    assert isinstance(arms, RowArms), "criteria that need rows are left out where there are only counts"
    return arms


# --- with margins --------------------------------------------------------------------------------------------


def _exceeds(criterion: Criterion, arms: Arms, level: float) -> _Measurement:
    first, second = _pair(criterion)
    contrast = arms.contrast(first, second)
    low, p = contrast.low(level), contrast.p_above(criterion.margin)
    digits = 1 if p <= level else _digits_apart(low, criterion.margin)  # a FAIL does not read as the margin
    sentence = (
        f"{first} - {second} = {100 * contrast.value:+.1f} points, lower bound {100 * low:+.{digits}f} "
        f"({_confidence(level)}, one-sided), needs {100 * criterion.margin:+.1f}"
    )
    return _Measurement(low, criterion.margin, _status(p <= level), sentence, p)


def _equivalent(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    contrast, margin = arms.contrast(first, second), criterion.margin
    low, high = contrast.low(alpha), contrast.high(alpha)
    passed = contrast.p_equivalent(margin) <= alpha
    interval = f"{first} - {second} = {100 * contrast.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    outcome = f"within {100 * margin:.1f}"
    if not passed:
        outcome = f"not shown to be within {100 * margin:.1f}"
        if low <= 0 <= high:
            outcome += f"; n = {arms.episodes} is too few, take more episodes"
    return _Measurement(low if abs(low) > abs(high) else high, margin, _status(passed), f"{interval}, {outcome}")


def _power(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    """Compare n with the episodes that find a difference of twice the margin, at the variance of P1 - P0."""
    first, second = _pair(criterion)
    n, clusters = arms.episodes, arms.clusters
    least = clusters_needed(criterion.margin, alpha)
    if (independent := arms.independent) < least:
        only = "" if clusters is None else f", but of {clusters_text(arms)} only"
        if clusters is not None and clusters >= least:
            only = f" of {clusters_text(arms)}, which by their sizes count as {independent:.1f} equal ones"
        sentence = f"n = {n}{only}; take {least} at least"
        return _Measurement(independent, least, FAIL, sentence, explains_others=True)
    room = 0.0
    if isinstance(arms, ScoreArms) and isinstance(arms.contrast(first, second), MeanDifference):
        largest = 1 if arms.group_E is None else np.bincount(arms.group_E).max()
        room = (1 + 2 * criterion.margin) * float(largest)
    needed = max(least, episodes_needed(_variance(arms, first, second), criterion.margin, alpha, room))
    of = f" of {clusters_text(arms)}" if clusters is not None else ""
    sentence = (
        f"n = {n}{of}; a codec at {second} + {200 * criterion.margin:.0f} points is found with a chance of "
        f"{100 * POWER:.0f}% from n = {needed} on"
    )
    return _Measurement(n, needed, _status(n >= needed), sentence)


def clusters_needed(margin: float, alpha: float) -> int:
    """Return the clusters that it takes to show a difference of twice the margin in outcomes that are all alike.

    A sample of G misses a share of losing clusters with a probability of (1 - share)^G (`BoundedSample`), and
    that must not take the bound of a mean of twice the margin below the margin.
    """
    share = margin / (1 + 2 * margin)
    return max(MIN_CLUSTERS, math.ceil(math.log(alpha) / math.log1p(-share)))


def episodes_needed(variance: float, excess: float, alpha: float, room: float = 0.0) -> int:
    """Return the episodes at which a mean `excess` above a margin is found with a chance of 80 %.

    n = ((z_alpha + z_power) / excess)^2 variance, the normal approximation. The bound of Gaffke's test is farther
    from the mean: the random weight of the lowest value is nearly exponential, with a mean of 1 / n. The quantile
    of the sum of both is that of Cornish and Fisher (1938), with the skewness of the exponential part.

    Args:
        variance: Variance of an episode's difference.
        excess: The true difference less the margin.
        alpha: Level of the one-sided test.
        room: Where Gaffke's test is asked, the distance of the mean from its lowest value, times the episodes of
            the largest group.
    """
    z_alpha, z_power = map(float, scipy.stats.norm.ppf([1 - alpha, POWER]))
    normal = ((z_alpha + z_power) / excess) ** 2 * variance
    if room == 0:
        return max(2, math.ceil(round(normal, 9)))

    def lacks(n: float) -> float:
        """Return by how much n episodes fall short."""
        error, shift = math.sqrt(variance / n), room / n
        spread = math.hypot(error, shift)
        quantile = z_alpha + 2 * (shift / spread) ** 3 * (z_alpha**2 - 1) / 6
        return z_power * error + shift + spread * quantile - excess

    return math.ceil(float(scipy.optimize.brentq(lacks, 1.0, 4 * normal + 100 * room / excess)))


def clusters_text(arms: Arms) -> str:
    """Return what the tests count instead of episodes, such as `11 messages`; empty where they count episodes."""
    return "" if arms.clusters is None else f"{arms.clusters} {arms.unit}"


def _variance(arms: Arms, first: str, second: str) -> float:
    """Return the variance of an episode's difference; of clusters, that at which n episodes have their error."""
    if isinstance(arms, ScoreArms):
        difference_E = arms.scores(first).mean(axis=0) - arms.scores(second).mean(axis=0)
        if arms.group_E is None:
            return float(difference_E.var(ddof=1))
        return mean_difference(difference_E[None], arms.group_E).error ** 2 * len(difference_E)
    rates = [arms.rate(name) for name in (first, second)]
    return sum(rate * (1 - rate) for rate in rates)


def _confidence(level: float) -> str:
    """Return a one-sided level as confidence, with as many decimals as it takes: `95%`, `98.3%`."""
    return f"{100 * (1 - level):.3g}%"


# --- tests ---------------------------------------------------------------------------------------------------


def _better(criterion: Criterion, arms: Arms, level: float) -> _Measurement:
    first, second = _pair(criterion)
    p = arms.p_better(first, second)
    difference = 100 * (arms.rate(first) - arms.rate(second))
    seeds = f"in each of {len(arms.seeds)} seeds, largest " if len(arms.seeds) > 1 else ""
    sentence = f"{first} - {second} = {difference:+.1f} points ({seeds}{arms.test(first, second)} p = {p:.2g})"
    if arms.interval(first, 2 * level).high <= criterion.floor:
        floor = f"{first} is at the floor, {percent(arms.rate(first))}, and cannot fall; {sentence}"
        return _Measurement(p, level, UNTESTABLE, floor, p)
    return _Measurement(p, level, _status(p <= level), sentence, p)


def _mcnemar(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    test = stats.mcnemar(*_one_seed(arms, first, second))
    alone = f"only {first} solves {test.only_first}, only {second} {test.only_second}"
    sentence = f"{alone} (McNemar p = {test.p_greater:.2g})"
    return _Measurement(test.p_greater, alpha, _status(test.p_greater <= alpha), sentence, test.p_greater)


def _difference(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    first_E, second_E = _one_seed(arms, first, second)
    difference = stats.paired_difference(first_E, second_E, alpha)
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    sentence = f"{first} - {second} = {100 * difference.value:+.1f} points {interval}"
    return _Measurement(difference.low, 0.0, _status(difference.low > 0), sentence)


def _one_seed(arms: Arms, *names: str) -> list[np.ndarray]:
    """Return the successes of conditions in a training seed; gates without grades judge one at a time."""
    assert isinstance(arms, ScoreArms), "criteria that pair episodes are left out where there are only counts"
    return [arms.scores(name)[0] for name in names]


# --- rates ---------------------------------------------------------------------------------------------------


def _lower_bound(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    bar = criterion.bar({name: arms.rate(name) for name in criterion.conditions})
    low = arms.interval(criterion.condition, alpha).low
    sentence = f"CI_low({criterion.condition}) = {compare_to_bar(low, bar)}"
    return _Measurement(low, bar, _status(low >= bar), sentence)


def _overlap(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    interval, other = (arms.interval(name, alpha) for name in (first, second))
    passed = interval.overlaps(other)
    verb = "overlaps" if passed else "does not overlap"
    sentence = (
        f"{first} [{percent(interval.low)}, {percent(interval.high)}] {verb} "
        f"{second} [{percent(other.low)}, {percent(other.high)}]"
    )
    return _Measurement(arms.rate(first), arms.rate(second), _status(passed), sentence)


def _below(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    rate, against, floor = arms.rate(first), arms.rate(second), criterion.floor
    status = _status(is_below(rate, against, floor))
    sentence = f"{first} {percent(rate)} is {'' if rate < against else 'not '}below {second} {percent(against)}"
    if against <= floor:
        status = UNTESTABLE if rate <= floor else FAIL
        sentence = f"{second} {percent(against)} is at the floor of {percent(floor)} and cannot fall; {first} is "
        sentence += percent(rate)
    if arms.paired or not criterion.decides:
        p = arms.p_better(second, first)
        helps = arms.p_better(first, second)
        if helps <= alpha:
            sentence += f", above it: even a wrong message helps (p = {helps:.2g})"
        else:
            sentence += f" ({arms.test(first, second)} p = {p:.2g}, for information)"
    return _Measurement(rate, against, status, sentence)


# --- answers -------------------------------------------------------------------------------------------------


def _same_answers(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    first, second = _pair(criterion)
    rows = _rows(arms)
    column = "answer" if "answer" in rows.rows else "success"
    first_SE, second_SE = np.broadcast_arrays(rows.column(first, column), rows.column(second, column))
    same_SE = first_SE == second_SE
    if column == "answer":  # two empty answers say nothing
        empty_SE = (first_SE == "") & (second_SE == "")
        same_SE = same_SE & ~(empty_SE & (rows.scores(first) != rows.scores(second)))
    same, n = int(same_SE.sum()), same_SE.size
    verb = "gives" if column == "answer" else "has"
    what = "answer" if column == "answer" else "outcome"
    sentence = f"{first} {verb} {second}'s {what} in {same} of {n} episodes"
    # Equal answers can hide different logits.
    apart = _nll_difference(rows, first, second)
    if same == n and apart <= MAX_NLL_DIFFERENCE:
        return _Measurement(1.0, 1.0, PASS, sentence)
    allowed = _allowed_rounding(rows, second) if apart >= ROUNDS else 0.0
    if allowed:
        apart_by = f"its NLL differs by {apart:.3g} nats, of {allowed:.3g} allowed for rounding in 16 bits"
        equal = arms.contrast(first, second).p_equivalent(SAME_SUCCESS) <= alpha
        success = f"success is {'' if equal else 'not '}shown to be within {100 * SAME_SUCCESS:.0f} points"
        return _Measurement(
            same / n, 1.0, _status(apart <= allowed and equal), f"{sentence}; {apart_by}; {success}"
        )
    if apart > MAX_NLL_DIFFERENCE:
        sentence += f", but its NLL differs by {apart:.3g} nats, of {MAX_NLL_DIFFERENCE} allowed"
    return _Measurement(same / n, 1.0, FAIL, sentence)


def _allowed_rounding(arms: RowArms, text: str) -> float:
    """Return the largest NLL difference from the text's that rounding explains, in nats per episode.

    It is `MAX_ROUNDING` of what the text is worth over no message, so that what it hides cannot matter to a
    verdict; 0 where that is not known, or is less than the bound for equal answers.
    """
    if "nll" not in arms.rows or "P0" not in arms.counts:
        return 0.0
    worth = float(np.nanmean(_nll(arms, "P0"))) - float(np.nanmean(_nll(arms, text)))
    allowed = MAX_ROUNDING * worth
    return allowed if allowed > MAX_NLL_DIFFERENCE else 0.0


def _nll_difference(arms: RowArms, first: str, second: str) -> float:
    """Return the mean absolute difference of two conditions' NLL per episode; 0 where it was not recorded."""
    if "nll" not in arms.rows:
        return 0.0
    differences_SE = np.abs(_nll(arms, first) - _nll(arms, second))
    known_SE = np.isfinite(differences_SE)
    return float(differences_SE[known_SE].mean()) if known_SE.any() else 0.0


def _nll(arms: RowArms, condition: str) -> NDArray[np.float64]:
    """Return a condition's NLL per episode, [S, E], or [1, E] where all seeds share it."""
    nll_SE: NDArray[np.float64] = arms.column(condition, "nll").astype(float)
    return nll_SE


def _at_most(criterion: Criterion, arms: Arms, alpha: float) -> _Measurement:
    assert criterion.column is not None, "gate files give this kind a column"
    share = answers_share(_rows(arms).rows, criterion.condition, criterion.column)
    if share is None:
        raise UserError(f"rows: column {criterion.column}: missing, and '{criterion.name}' needs it; add it")
    sentence = (
        f"{percent(share)} of {criterion.condition}'s answers are {criterion.column}, of "
        f"{percent(criterion.at_most)} allowed"
    )
    return _Measurement(share, criterion.at_most, _status(share <= criterion.at_most), sentence)


def answers_share(rows: pd.DataFrame, condition: str, column: str) -> float | None:
    """Return the share of a condition's answers that are truncated or unparsed; None where it is not known."""
    source = "parsed" if column == "unparsed" else column
    if source not in rows:
        return None
    values = rows.loc[rows.condition == condition, source].dropna().astype(float)
    if values.empty:
        return None
    return float(1 - values.mean()) if column == "unparsed" else float(values.mean())


CORRECTED = ("exceeds", "better")  # kinds whose p-values are in Holm's family, where a gate has grades
_KINDS: dict[str, Callable[[Criterion, Arms, float], _Measurement]] = {
    "exceeds": _exceeds,
    "equivalent": _equivalent,
    "power": _power,
    "better": _better,
    "mcnemar": _mcnemar,
    "difference_above_zero": _difference,
    "lower_bound": _lower_bound,
    "overlap": _overlap,
    "below": _below,
    "same_answers": _same_answers,
    "at_most": _at_most,
}
