"""The rule for what a condition's rows depend on, and so for which evaluations share rows.

Rows of a condition that depends on the checkpoint belong to it alone. Rows that depend on the slots are shared by
all checkpoints with the same k, place and channel, rows that depend on the receiver by all. A row's `place` names
the channel too (`m2ray.config.trial.CodecConfig.slots_at`); `identity` belongs to the receiver in the channel
`embeddings` only, in others to the slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from m2ray.codec.checkpoints import CheckpointId
from m2ray.config.condition_names import IDENTITY, DependsOn


class RowScope(NamedTuple):
    """The columns of a row that name what it depends on; empty where it does not depend on them."""

    config: str = ""
    seed: int = -1
    checkpoint: str = ""
    step: int = 0
    k: int = 0
    place: str = ""


def scope_kind(name: str, depends_on: DependsOn, place: str) -> DependsOn:
    """Return what a condition's rows depend on where the slots are in a place and channel."""
    return "slots" if name == IDENTITY and names_channel(place) else depends_on


def names_channel(place: str) -> bool:
    """Return whether the column `place` names another channel than `embeddings`."""
    return " " in place


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
    if names_channel(place):  # it has an identity of its own
        shared &= (rows.k != 0) | (rows.condition != IDENTITY)
    return shared


def distinct_scopes(evaluations: int, slots: int) -> Mapping[DependsOn, int]:
    """Return how often a condition is run, by what its rows depend on.

    Args:
        evaluations: Evaluations of checkpoints on one split.
        slots: Different pairs of k and place among them.
    """
    return {"checkpoint": evaluations, "slots": min(slots, evaluations), "receiver": min(1, evaluations)}
