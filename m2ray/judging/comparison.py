"""Compare two results: the difference between two systems under each condition that both were run under.

Episodes are paired where receiver, task and episodes agree; else the two are independent samples. Training seeds
are samples of either system, and episodes with one message, or of one group, are a cluster, as in the gate.

Shapes: S training seeds, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from m2ray.config.condition_names import TABLE_ORDER, dropped_slot, scale_gate_of
from m2ray.evaluation.rows import FAILED
from m2ray.judging.arms import NO_SEED
from m2ray.judging.contrasts import (
    Contrast,
    Floats,
    PairedBinary,
    Unpaired,
    difference_of_samples,
    difference_of_systems,
    is_binary,
    mean_difference,
)
from m2ray.judging.row_arms import RowArms
from m2ray.judging.statistics import ALPHA
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

GAIN, RETENTION = "normal - P0", "retention"


class System(NamedTuple):
    """One of the two results: the name that the user gave it, and its rows of one configuration on one split."""

    label: str
    rows: pd.DataFrame


class Difference(NamedTuple):
    """A measure of both systems, and the first minus the second with its 95 % interval and two-sided p-value."""

    name: str
    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float


class Comparison(NamedTuple):
    """The outcome of a comparison.

    Attributes:
        paired: True if both were run on the same episodes of one task with one receiver.
        why: The reason.
        notes: What else a reader must know.
        first: The first system's outcomes, of the shared episodes where the two are paired.
        second: The second system's.
        conditions: The difference under each condition that both have.
        derived: The differences in gain over no message, and in retention, where P0 and P1 allow them.
        same: Conditions whose rows are the same in both, so that there is nothing to compare.
    """

    paired: bool
    why: str
    notes: list[str]
    first: RowArms
    second: RowArms
    conditions: list[Difference]
    derived: list[Difference]
    same: list[str]

    @property
    def is_of_one(self) -> bool:
        """True if all that would be compared are the same rows: a result with itself, or with a copy."""
        return not self.conditions and not self.derived


def compare(first: System, second: System, names: Sequence[str] | None = None) -> Comparison:
    """Compare two systems.

    Args:
        first: One system.
        second: The other.
        names: Conditions; by default all that both have.

    Raises:
        UserError: They have no condition in common, or a named one is missing.
    """
    names = common_conditions(first, second, names)
    paired, why = pairing(first.rows, second.rows)
    notes = _notes(first, second)
    parts = [part[part.condition.isin(_needed(names))] for part in (first.rows, second.rows)]
    if paired:
        parts = [part.assign(episode=part.episode.astype(str)) for part in parts]
        shared = set(parts[0].episode) & set(parts[1].episode)
        parts = [part[part.episode.isin(shared)] for part in parts]
    arms = [_arms(system.label, part) for system, part in zip((first, second), parts, strict=True)]
    equal = _same_conditions(first, second, parts) if paired else set()
    same = [name for name in names if name in equal]
    conditions = [
        _difference(arms, paired, name, partial(RowArms.scores, name=name)) for name in names if name not in equal
    ]
    return Comparison(paired, why, notes, arms[0], arms[1], conditions, _derived(arms, paired, equal), same)


# --- pairing -------------------------------------------------------------------------------------------------


def common_conditions(first: System, second: System, names: Sequence[str] | None = None) -> list[str]:
    """Return the conditions that both systems have, in the order of the tables.

    Scale gates and blanked slots belong to one system's own geometry, and are compared only by name.

    Raises:
        UserError: there are none, or one system lacks a named one.
    """
    own = [set(system.rows.condition) - {FAILED} for system in (first, second)]
    for name in names or ():
        for system, present in zip((first, second), own, strict=True):
            if name not in present:
                raise UserError(
                    f"--conditions: {name}: {system.label} does not have it; use some of {_listed(present)}"
                )
    common = own[0] & own[1]
    if not common:
        raise UserError(
            f"{first.label} and {second.label} have no condition in common ({_listed(own[0])}; "
            f"{_listed(own[1])}); run both under normal"
        )
    if names:
        return list(dict.fromkeys(names))
    others = {name for name in common if scale_gate_of(name) is None and dropped_slot(name) is None}
    return [name for name in TABLE_ORDER if name in common] + sorted(others - {*TABLE_ORDER})


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _needed(names: Sequence[str]) -> set[str]:
    """Return the conditions to read: those named, and those that gain and retention need."""
    return {*names, "normal", "P0", "P1"}


def pairing(first: pd.DataFrame, second: pd.DataFrame) -> tuple[bool, str]:
    """Return whether two systems were run on the same episodes, and why."""
    known = "receiver" in first and "receiver" in second
    for column in ("receiver", "task") if known else ():
        values = [", ".join(sorted(set(rows[column]) - {""})) for rows in (first, second)]
        if values[0] != values[1]:
            return False, f"{column} {values[0] or 'unknown'} and {values[1] or 'unknown'}"
    ids = [set(rows.episode.astype(str)) for rows in (first, second)]
    shared = ids[0] & ids[1]
    if len(shared) < min(len(ids[0]), len(ids[1])):
        return False, f"other episodes: {len(shared)} of {len(ids[0])} and {len(ids[1])} are the same"
    if changed := _other_messages(first, second):
        return False, f"other messages under the same numbers, as in episode {changed}"
    if len(shared) < 2:
        return False, "a single episode is the same"
    of = "" if len(ids[0]) == len(ids[1]) else f" of {len(ids[0])} and {len(ids[1])}"
    what = "receiver, task and" if known else "ids of"
    return True, f"the same {what} {len(shared)} episodes{of}"


def _other_messages(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Return an episode whose message differs between the two; empty if there is none, or messages are unknown."""
    known = []
    for rows in (first, second):
        if "message" not in rows:
            return ""
        named = rows[rows.message != ""]
        known.append(named.groupby(named.episode.astype(str)).message.first())
    both = pd.concat(known, axis=1, join="inner", keys=["first", "second"])
    differing = both.index[both["first"] != both["second"]]
    return str(differing[0]) if len(differing) else ""


def _notes(first: System, second: System) -> list[str]:
    notes = []
    if "decoding" in first.rows and "decoding" in second.rows:
        ways = [", ".join(sorted(set(system.rows.decoding))) for system in (first, second)]
        if ways[0] != ways[1]:
            notes.append(f"decoding differs: {ways[0]} and {ways[1]}")
    for system in (first, second):
        seeds = set(system.rows.seed) - {NO_SEED}
        if len(seeds) == 1:
            notes.append(f"{system.label}: 1 training seed, so that the interval does not cover its choice")
    return notes


def _arms(label: str, rows: pd.DataFrame) -> RowArms:
    try:
        arms = RowArms(rows)
        for name in arms.counts:
            arms.scores(name)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    return arms


def _same_conditions(first: System, second: System, parts: Sequence[pd.DataFrame]) -> set[str]:
    """Return the conditions whose rows are one measurement, not two.

    Rows of a codec are known by its checkpoint. Two systems of which only the outcomes are known may agree under a
    condition by chance, or since both solve all: theirs are the same rows if they have one name, or if they agree
    under all conditions, and solve some episodes only.
    """
    same = {
        name for name in set(parts[0].condition) & set(parts[1].condition) if _same_rows(parts[0], parts[1], name)
    }
    if all("checkpoint" in part for part in parts):
        return same
    whole = all(set(part.condition) == same for part in parts)
    if whole and (first.label == second.label or parts[0].success.nunique() > 1):
        return same
    return {name for name in same if all((part.config[part.condition == name] == "").all() for part in parts)}


def _same_rows(first: pd.DataFrame, second: pd.DataFrame, name: str) -> bool:
    """Return whether a condition's rows are the same in both, whatever the configurations are called."""
    keys = ["seed", "episode"]
    parts = [rows[rows.condition == name].sort_values(keys) for rows in (first, second)]
    columns = [
        column
        for column in (*keys, "checkpoint", "success", "answer", "nll")
        if column in first and column in second
    ]
    return parts[0][columns].reset_index(drop=True).equals(parts[1][columns].reset_index(drop=True))


# --- differences ---------------------------------------------------------------------------------------------


def _difference(
    arms: Sequence[RowArms], paired: bool, name: str, measure: Callable[[RowArms], Floats], lowest: float = 0.0
) -> Difference:
    """Return the difference in the mean of a measure, [S, E] or [1, E] of each system, from `lowest` on."""
    first_SE, second_SE = (measure(own) for own in arms)
    contrast = _contrast(arms, paired, first_SE, second_SE, lowest)
    p_value = min(1.0, 2 * min(contrast.p_above(0.0), contrast.reversed.p_above(0.0)))
    low, high = contrast.low(ALPHA / 2), contrast.high(ALPHA / 2)
    return Difference(name, float(first_SE.mean()), float(second_SE.mean()), contrast.value, low, high, p_value)


def _contrast(
    arms: Sequence[RowArms], paired: bool, first_SE: Floats, second_SE: Floats, lowest: float
) -> Contrast:
    first, second = arms
    exact = (
        len(first_SE) == len(second_SE) == 1
        and first.group_E is None
        and second.group_E is None
        and is_binary(first_SE)
        and is_binary(second_SE)
    )
    if paired:
        if exact:
            return PairedBinary.of(first_SE, second_SE)
        group_E = first.group_E if first.group_E is not None else second.group_E
        return difference_of_systems(first_SE, second_SE, group_E, lowest)
    if exact:
        counts = [(round(float(scores_SE.sum())), scores_SE.shape[1]) for scores_SE in (first_SE, second_SE)]
        return Unpaired(counts[0], counts[1])
    means = [
        mean_difference(scores_SE, own.group_E, lowest)
        for own, scores_SE in zip(arms, (first_SE, second_SE), strict=True)
    ]
    return difference_of_samples(means[0], means[1])


def _derived(arms: Sequence[RowArms], paired: bool, same: set[str]) -> list[Difference]:
    """Return the differences in gain and in retention, where both systems have the conditions for them."""
    found = []
    if all({"normal", "P0"} <= set(own.counts) for own in arms) and not {"normal", "P0"} <= same:
        found.append(_difference(arms, paired, GAIN, _gain, -1.0))
    if all(_has_retention(own) for own in arms) and not {"normal", "P0", "P1"} <= same:
        found.append(_difference(arms, paired, RETENTION, _retention_parts, -1.0))
    return found


def _gain(arms: RowArms) -> Floats:
    gain_SE: Floats = arms.scores("normal") - arms.scores("P0")
    return gain_SE


def _has_retention(arms: RowArms) -> bool:
    """Return whether the text is shown to help, without which retention has no bounded interval."""
    if not {"normal", "P0", "P1"} <= set(arms.counts):
        return False
    return mean_difference(arms.scores("P1") - arms.scores("P0"), arms.group_E).low(ALPHA / 2) > 0


def _retention_parts(arms: RowArms) -> Floats:
    """Return [S, E] whose mean is the retention and whose spread is that of the ratio (delta method)."""
    gain_SE = _gain(arms)
    text_SE = np.broadcast_to(arms.scores("P1") - arms.scores("P0"), gain_SE.shape)
    retention, text = gain_SE.mean() / text_SE.mean(), text_SE.mean()
    parts_SE: Floats = retention + (gain_SE - retention * text_SE) / text
    return parts_SE


def describe(comparison: Comparison) -> str:
    """Return the finding on the first condition in one sentence."""
    if comparison.is_of_one:
        return f"A and B are the same rows ({sample_text(comparison.first)}), so there is nothing to compare."
    if not comparison.conditions:
        return "The conditions that were asked for are the same rows in both."
    first = comparison.conditions[0]
    points = f"{100 * first.value:+.1f} [{100 * first.low:+.1f}, {100 * first.high:+.1f}] points"
    if first.low > 0 or first.high < 0:
        return f"A solves {'more' if first.value > 0 else 'fewer'} than B under {first.name}: {points}."
    return f"No difference is shown under {first.name}: {points}."


def sample_text(arms: RowArms) -> str:
    """Return `n = 1000, 3 training seeds`, with the number of clusters where they count instead of episodes."""
    parts = [f"n = {arms.episodes}"]
    if arms.clusters is not None:
        parts.append(f"{arms.clusters} {arms.unit}")
    seeds = [seed for seed in arms.seeds if seed != NO_SEED]
    return ", ".join([*parts, *([pluralize(len(seeds), "training seed")] if seeds else [])])
