"""The outcomes of a configuration, read from its rows: episodes, their clusters, training seeds.

Shapes: S training seeds, E episodes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m2ray.evaluation.rows import GROUP
from m2ray.judging import statistics as stats
from m2ray.judging.arms import NO_SEED, Counts, ScoreArms
from m2ray.judging.contrasts import Floats, is_binary
from m2ray.util.errors import UserError
from m2ray.util.text import list_some

# Messages that repeat by chance hardly matter, and their episodes are compared by exact tests. From this design
# effect on they are clusters: the factor by which repeats would raise the variance of a mean if all episodes of a
# message had the same outcome (Kish 1965), the sum of squared cluster sizes over n.
MAX_DESIGN_EFFECT = 1.1


class RowArms(ScoreArms):
    """Rows of one configuration, of one or several training seeds, with the rows that its seeds share.

    Args:
        rows: Columns condition, seed, episode and success at least; success is boolean or in 0..1. Rows of seed -1
            are shared by all seeds. `group`, where it is given, names clusters of episodes, or `message` does
            (`m2ray.evaluation.rows.GROUP`); else episodes with the same `message` are a cluster, where many
            messages repeat.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        seeds = sorted({int(seed) for seed in rows.seed if seed != NO_SEED}) or [NO_SEED]
        normal = rows[rows.condition == "normal"]
        if len(normal) and seeds != [NO_SEED] and set(normal.seed) == {NO_SEED}:
            fix = "give normal its seeds, or no condition any"
            raise UserError(f"rows: condition normal: without a seed, and others are of seed {seeds[0]}; {fix}")
        first = normal if len(normal) else rows[rows.condition == rows.condition.iloc[0]]
        self._index = pd.Index(sorted(first.episode.unique()))
        self._by_condition = dict(list(rows.groupby("condition", sort=False)))
        super().__init__({}, seeds, self._groups())

    def _groups(self) -> NDArray[np.int64] | None:
        """Return the numbers of the episodes' groups; None where each episode counts as a group of one."""
        if self._grouped:
            numbers = self._numbers("group" if "group" in self.rows else "message")
            return None if len(np.unique(numbers)) == len(numbers) else numbers
        if "message" not in self.rows:
            return None
        numbers = self._numbers("message")
        sizes = np.bincount(numbers)
        return numbers if (sizes**2).sum() > MAX_DESIGN_EFFECT * len(numbers) else None

    def _numbers(self, column: str) -> NDArray[np.int64]:
        """Return a number for each value of a column, by episode; an episode without one has its own."""
        # Rows of an earlier version, which lack the value, may be beside newer ones of the same episode.
        names = self.rows[column].astype(str).groupby(self.rows.episode).max().reindex(self._index)
        if column == "group":
            self._check_groups(names)
        # A group may have the name of another episode.
        own = pd.Series([(episode,) for episode in self._index], self._index)
        return pd.factorize(names.where(names != "", own))[0]

    def _check_groups(self, group_of: pd.Series[str]) -> None:
        """Refuse an episode that is in several groups, given the last one's name by episode."""
        named = self.rows[self.rows.group.astype(str) != ""]
        differing = named[named.group.astype(str) != named.episode.map(group_of)]
        if len(differing):
            first = differing.iloc[0]
            both = f"{first.group} and {group_of[first.episode]}"
            raise UserError(f"rows: episode {first.episode}: in the groups {both}; give one")

    @property
    def unit(self) -> str:
        """What the clusters are: groups where they are given, else messages."""
        return "groups" if self._grouped else "messages"

    @cached_property
    def _grouped(self) -> bool:
        """True if the rows name groups of episodes."""
        named = self.rows.message.astype(str).str.startswith(GROUP) if "message" in self.rows else None
        return "group" in self.rows or (named is not None and bool(named.any()))

    @property
    def messages(self) -> int | None:
        """The number of different messages, or of groups where they are given; None where it is not known."""
        known = self.rows.message[self.rows.message != ""] if "message" in self.rows else ()
        return len(np.unique(self._numbers("message"))) if len(known) else None

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self._index)

    @cached_property
    def binary(self) -> bool:
        """True if every outcome is a success or a failure."""
        return is_binary(self.rows.success.astype(float).to_numpy())

    @cached_property
    def counts(self) -> Counts:
        """Implement `Arms.counts`."""
        grouped = self.rows.groupby("condition").success.agg(["sum", "size"])
        return {str(name): (round(float(row["sum"])), int(row["size"])) for name, row in grouped.iterrows()}

    def of_seed(self, seed: int) -> RowArms:
        """Return the outcomes of one training seed, with those that all seeds share."""
        if list(self.seeds) == [seed]:
            return self
        return RowArms(self.rows[(self.rows.seed == seed) | (self.rows.seed == NO_SEED)])

    def scores(self, name: str) -> Floats:
        """Return a condition's successes or scores, [S, E] or [1, E].

        Raises:
            UserError: see `column`.
        """
        if name not in self._scores:
            self._scores[name] = self.column(name).astype(float)
        return self._scores[name]

    def column(self, name: str, column: str = "success") -> NDArray[np.object_]:
        """Return a column of a condition, [S, E], or [1, E] where all seeds share its rows.

        Raises:
            UserError: the condition is missing, is on other episodes than `normal`, or a seed lacks it.
        """
        part = self._by_condition.get(name)
        if part is None:
            if "checkpoint" in self.rows:
                raise UserError(f"rows: condition {name}: missing; evaluate with --conditions {name} as well")
            known = list_some(sorted(map(str, self._by_condition)))
            raise UserError(f"condition {name}: missing, there are {known}; add its outcomes on the same episodes")
        self._check_seeds(name, {int(seed) for seed in part.seed})
        rows_SE = []
        for seed in sorted(part.seed.unique()):
            own = part.loc[part.seed == seed, ["episode", column]].set_index("episode")[column].sort_index()
            if own.index.has_duplicates:
                double = own.index[own.index.duplicated()][0]
                one = (
                    "the rows of one checkpoint, task and decoding" if "checkpoint" in self.rows else "one of them"
                )
                raise UserError(f"rows: condition {name}, episode {double}: given twice; keep {one}")
            if not own.index.equals(self._index):
                lacking, extra = self._index.difference(own.index), own.index.difference(self._index)
                where = f"lacks {lacking[0]}" if len(lacking) else f"has {extra[0]} besides"
                raise UserError(
                    f"rows: condition {name}: not on the episodes of normal ({len(own)} and {len(self._index)}; "
                    f"it {where}); evaluate both on the same ones"
                )
            rows_SE.append(own.to_numpy())
        return np.stack(rows_SE)

    def _check_seeds(self, name: str, found: set[int]) -> None:
        """Refuse a condition that has neither all training seeds nor rows that they share."""
        if found in ({NO_SEED}, set(self.seeds)):
            return
        if NO_SEED in found:
            some = f"some outcomes are of seed {max(found)}, some of no seed"
            raise UserError(f"rows: condition {name}: {some}; give all a seed, or none")
        lacking = sorted({*self.seeds} - found)[0]
        raise UserError(f"rows: condition {name}, seed {lacking}: missing; evaluate every seed under it")


def cluster_intervals(rows: pd.DataFrame, alpha: float = stats.ALPHA) -> dict[str, stats.Interval]:
    """Return the interval of every condition in one checkpoint's rows; none where episodes have no clusters."""
    arms = RowArms(rows)
    return {} if arms.clusters is None else arms.intervals(alpha)


def count_successes(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return successes and n of every condition in one checkpoint's rows."""
    return dict(RowArms(rows).counts)
