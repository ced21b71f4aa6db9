"""The amount of a message that a codec carries, in several measures with intervals.

Shapes: S training seeds, E episodes.
"""

from __future__ import annotations

import math

import numpy as np

from m2ray.config.condition_names import facts_count, facts_name, tokens_name
from m2ray.config.gate_file import Grades
from m2ray.judging.arms import Arms
from m2ray.judging.contrasts import Contrast, mean_difference
from m2ray.judging.row_arms import RowArms
from m2ray.judging.statistics import Estimate
from m2ray.judging.verdict import Amount
from m2ray.util.text import percent


def measure_amounts(
    arms: Arms, k: int | None, retention: Estimate | None, grades: Grades, alpha: float
) -> tuple[Amount, ...]:
    """Return every measure that the outcomes allow.

    Args:
        arms: The outcomes.
        k: Number of slots, if there are slots.
        retention: (normal - P0) / (P1 - P0).
        grades: The gate's bounds.
        alpha: Level of the two-sided intervals, and of the test of `facts`.
    """
    found = [
        _retention(retention),
        _facts(arms, grades, alpha),
        _against(arms, "init", "learned", "beyond itself untrained", alpha),
        _against(arms, tokens_name(k), "over_tokens", f"over {k} tokens of text", alpha) if k else None,
        _follows_wrong(arms, alpha),
    ]
    return tuple(amount for amount in found if amount is not None)


def _retention(retention: Estimate | None) -> Amount | None:
    if retention is None or math.isnan(retention.value):
        return None
    bounds = "" if math.isnan(retention.low) else f" [{retention.low:.2f}, {retention.high:.2f}]"
    return Amount("retention", *retention, f"keeps {retention.value:.2f}{bounds} of the text's gain")


def _facts(arms: Arms, grades: Grades, alpha: float) -> Amount | None:
    """Return the largest M of `facts-M` that normal is shown to be not worse than, 0 for none."""
    known = sorted(count for name in arms.counts if (count := facts_count(name)) is not None)
    if not known:
        return None
    worth = 0
    for count in known:
        if arms.contrast("normal", facts_name(count)).p_above(-grades.facts_within) > alpha:
            break
        worth = count
    of = f" of {total}" if (total := facts_in_message(arms)) else f" (shown: {', '.join(map(str, known))})"
    at_least = "at least " if worth == known[-1] else ""
    return Amount("facts", worth, math.nan, math.nan, f"is worth the text of {at_least}{worth}{of} facts")


def facts_in_message(arms: Arms) -> int | None:
    """Return the number of facts of each message; None where it is not known or differs."""
    if not isinstance(arms, RowArms) or "facts" not in arms.rows:
        return None
    lengths = set(arms.rows.facts.dropna().str.len()) - {0}
    return int(lengths.pop()) if len(lengths) == 1 else None


def _against(arms: Arms, other: str, name: str, words: str, alpha: float) -> Amount | None:
    if other not in arms.counts:
        return None
    contrast: Contrast = arms.contrast("normal", other)
    low, high = contrast.low(alpha / 2), contrast.high(alpha / 2)
    points = f"{100 * contrast.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return Amount(name, contrast.value, low, high, f"{points} {words}")


def _follows_wrong(arms: Arms, alpha: float) -> Amount | None:
    """Return the share of a wrong message's readable facts that B's answer agrees with, mean over episodes."""
    shares = {name: _agreement(arms, name) for name in ("shuffle", "normal", "P0")}
    if shares["shuffle"] is None:
        return None
    wrong_SE, group_E = shares["shuffle"]
    mean = mean_difference(wrong_SE, group_E, lowest=0.0)
    low, high = max(0.0, mean.low(alpha / 2)), min(1.0, mean.high(alpha / 2))
    beside = [
        f"{words} {percent(float(np.mean(other[0])))}"
        for name, words in (("normal", "of right ones"), ("P0", "by chance"))
        if (other := shares[name]) is not None
    ]
    sentence = f"B follows {percent(mean.value)} of wrong messages' facts"
    return Amount("follows_wrong", mean.value, low, high, sentence + (f" ({', '.join(beside)})" if beside else ""))


def _agreement(arms: Arms, condition: str) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return the share of readable facts that B's answer agrees with, [S, E], of episodes with readable ones.

    The second value is the numbers of these episodes' groups, if they are in groups.
    """
    if not isinstance(arms, RowArms) or "facts" not in arms.rows or condition not in arms.counts:
        return None
    facts_SE = arms.column(condition, "facts")
    shares_SE = np.array(
        [
            [
                text.count("1") / readable if (readable := len(text) - text.count("-")) else math.nan
                for text in facts_E
            ]
            for facts_E in (column_E.astype(str) for column_E in facts_SE)
        ]
    )
    known_E = ~np.isnan(shares_SE).any(axis=0)
    if known_E.sum() < 2:
        return None
    group_E = None if arms.group_E is None else np.unique(arms.group_E[known_E], return_inverse=True)[1]
    if group_E is not None and group_E.max() == 0:
        return None
    return shares_SE[:, known_E], group_E
