"""The rule for what a condition's rows depend on, and so for which evaluations share rows.

Rows of a condition that depends on the checkpoint belong to it alone. Rows that depend on the slots are shared by
all checkpoints with the same k and place, rows that depend on the receiver by all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from m2ray.codec.checkpoints import CheckpointId
from m2ray.config.condition_names import DependsOn


class RowScope(NamedTuple):
    """The columns of a row that name what it depends on; empty where it does not depend on them."""

    config: str = ""
    seed: int = -1
    checkpoint: str = ""
    step: int = 0
    k: int = 0
    place: str = ""


def row_scope(depends_on: DependsOn, checkpoint: CheckpointId | None, k: int, place: str) -> RowScope:
    """Return the scope of a condition's rows for one checkpoint."""
    if depends_on == "receiver":
        return RowScope()
    if depends_on == "slots" or checkpoint is None:
        return RowScope(k=k, place=place)
    return RowScope(checkpoint.config, checkpoint.seed, checkpoint.checkpoint, checkpoint.step, k, place)


def is_shared_with(rows: pd.DataFrame, k: int, place: str) -> pd.Series[bool]:
    """Return which rows belong to no checkpoint and are shared by checkpoints with this k and place."""
    shared: pd.Series[bool] = (rows.config == "") & ((rows.k == 0) | ((rows.k == k) & (rows.place == place)))
    return shared


def distinct_scopes(evaluations: int, slots: int) -> Mapping[DependsOn, int]:
    """Return how often a condition is run, by what its rows depend on.

    Args:
        evaluations: Evaluations of checkpoints on one split.
        slots: Different pairs of k and place among them.
    """
    return {"checkpoint": evaluations, "slots": min(slots, evaluations), "receiver": min(1, evaluations)}
