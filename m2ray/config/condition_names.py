"""Names of the ablation conditions: the built-in ones, and those that carry a parameter in their name.

`m2ray.evaluation.conditions` says what each puts into B's slots. `DependsOn` is what a condition's rows depend
on, and so which evaluations share them (`m2ray.evaluation.row_scope`): the checkpoint; only its k and place
("slots"); or neither ("receiver").
"""

from __future__ import annotations

import math
import re
from typing import Literal

DependsOn = Literal["checkpoint", "slots", "receiver"]

BUILT_IN: dict[str, DependsOn] = {
    "normal": "checkpoint",
    "null": "slots",
    "random": "checkpoint",
    "shuffle": "checkpoint",
    "P0": "receiver",
    "P1": "receiver",
    "identity": "receiver",
    "constant": "slots",
    "mean": "checkpoint",
    "matched": "checkpoint",
}
NAMES = tuple(BUILT_IN)
TABLE_ORDER = tuple(sorted(NAMES, key="identity".__eq__))  # identity last: it checks the setting, not a codec

_TEXT = re.compile(r"text-([1-9][0-9]{0,17})")
_SCALE_GATE = re.compile(r"scale_gate=([0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?)")


def text_name(limit: int) -> str:
    """Return the name of the condition that cuts the text to `limit` bytes: `text-16`."""
    return f"text-{limit}"


def text_limit(name: str) -> int | None:
    """Return the bytes in such a name, None for another name."""
    match = _TEXT.fullmatch(name)
    return int(match[1]) if match else None


def scale_gate_name(gate: float) -> str:
    """Return the name of the condition that rescales the prefix: `scale_gate=0.5`."""
    return f"scale_gate={gate:g}"


def scale_gate_of(name: str) -> float | None:
    """Return the scale in such a name, None for another name."""
    match = _SCALE_GATE.fullmatch(name)
    gate = float(match[1]) if match else math.inf
    return gate if math.isfinite(gate) else None
