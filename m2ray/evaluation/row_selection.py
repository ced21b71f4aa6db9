"""The rows that are judged together: a configuration's own, and the shared ones that they are paired with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from m2ray.evaluation.row_scope import is_shared_with
from m2ray.evaluation.rows import KEY
from m2ray.util.errors import UserError


class RowsByConfiguration:
    """Rows divided by configuration once: a filter per configuration would read all rows for each of them.

    Args:
        rows: Rows of a results folder.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        own = rows[rows.config != ""]
        self._shared = rows[rows.config == ""]
        self._own = dict(iter(own.groupby("config", sort=False)))
        self._judged: dict[tuple[str, int, str], pd.DataFrame] = {}

    def of(self, config: str) -> pd.DataFrame:
        """Return a configuration's rows, and all rows that no configuration owns."""
        found: pd.DataFrame = pd.concat([self._own[config], self._shared], ignore_index=True)
        return found

    def own(self, config: str, seed: int) -> pd.DataFrame:
        """Return the rows of a training seed of a configuration, without shared ones."""
        own = self._own[config]
        return own[own.seed == seed]

    def seeds(self, config: str, split: str) -> list[int]:
        """Return the training seeds of a configuration that have rows on a split."""
        own = self._own[config]
        return sorted(map(int, own.seed[own.split == split].unique()))

    def judged(self, config: str, seed: int, split: str) -> pd.DataFrame:
        """Return `judged_rows` of a training seed, which are kept."""
        key = (config, seed, split)
        if key not in self._judged:
            self._judged[key] = judged_rows(self.of(config), *key)
        return self._judged[key]

    def judged_together(self, config: str, split: str) -> pd.DataFrame:
        """Return the rows of a configuration's training seeds on a split, in which the shared rows stand once."""
        seeds = [self.judged(config, seed, split) for seed in self.seeds(config, split)]
        if len(seeds) == 1 and not seeds[0].duplicated(KEY).any():
            return seeds[0]  # not a copy: many configurations have one seed
        merged: pd.DataFrame = pd.concat(seeds, ignore_index=True).drop_duplicates(KEY, ignore_index=True)
        return merged


def judged_rows(rows: pd.DataFrame, config: str, seed: int, split: str) -> pd.DataFrame:
    """Return the rows of a configuration's last checkpoint on a split, and the shared rows paired with them.

    Raises:
        UserError: there are no rows of it.
    """
    own = rows[(rows.config == config) & (rows.seed == seed) & (rows.split == split)]
    if own.empty:
        raise UserError(f"rows: configuration {config!r}, seed {seed}, split {split}: no rows; check the names")
    own = own[own.step == own.step.max()]
    first = own.iloc[0]
    # Older files share the rows of conditions that belong to each checkpoint today: its own rows come first.
    shared = rows[
        is_shared_with(rows, first.k, first.place)
        & ~rows.condition.isin(own.condition.unique())
        & (rows.receiver == first.receiver)
        & (rows.task == first.task)
        & (rows.split == split)
        & (rows.decoding == first.decoding)
    ]
    paired: pd.DataFrame = pd.concat([own, shared], ignore_index=True)
    return paired


def configuration_rows(rows: pd.DataFrame, config: str, split: str) -> pd.DataFrame:
    """Return a configuration's rows on a split, of the last checkpoint of each training seed, and the shared rows.

    Outcomes of other systems have no checkpoints: all rows of the configuration and all shared rows are returned.
    """
    if "checkpoint" not in rows:
        return rows[(rows.config == config) | (rows.config == "")]
    return RowsByConfiguration(rows[rows.config.isin([config, ""])]).judged_together(config, split)


def outcomes(rows: pd.DataFrame, names: Sequence[str], column: str = "success") -> list[np.ndarray]:
    """Return a column under each named condition, over the same episodes in the same order.

    Args:
        rows: Rows of one checkpoint on one split, as `judged_rows` returns them.
        names: Names of conditions.
        column: success, partial or nll.

    Raises:
        UserError: a condition is missing, or has other episodes than the first.
    """
    columns = {}
    for name in names:
        part = rows[rows.condition == name]
        if part.empty:
            raise UserError(f"rows: condition {name}: missing; evaluate with --conditions {name} as well")
        columns[name] = part[["episode", column]].set_index("episode")[column].sort_index()
    episodes = columns[names[0]].index
    for name, values in columns.items():
        if not values.index.equals(episodes):
            raise UserError(
                f"rows: condition {name}: not on the episodes of {names[0]}; evaluate both on the same ones"
            )
    return [columns[name].to_numpy() for name in names]
