"""Names of the ablation conditions: the built-in ones, and those that carry a parameter in their name.

`m2ray.evaluation.conditions` defines what each puts into B's slots. `DependsOn` is what a condition's rows depend
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
    "constant": "checkpoint",
    "mean": "checkpoint",
    "matched": "checkpoint",
    "rotate": "checkpoint",
    "init": "checkpoint",
    "near": "checkpoint",
}
NAMES = tuple(BUILT_IN)
IDENTITY = "identity"
TABLE_ORDER = tuple(sorted(NAMES, key=IDENTITY.__eq__))  # identity last: it checks the setting, not a codec
# Words in a configuration for conditions whose parameter follows from it: see `TrialConfig.conditions_on`.
WORDS = ("facts", "tokens", "drop")
EXAMPLES = (
    "facts-1",
    "tokens-8",
    "text-16",
    "noise-1",
    "drop-1",
    "bits-8",
    "scale_gate=0.5",
)  # names with a parameter

_COUNT = r"([1-9][0-9]{0,17})"
_NUMBER = r"([0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?)"
_TEXT = re.compile(f"text-{_COUNT}")
_FACTS = re.compile(f"facts-{_COUNT}")
_TOKENS = re.compile(f"tokens-{_COUNT}")
_DROP = re.compile(f"drop-{_COUNT}")
_BITS = re.compile("bits-([1-9]|1[0-6])")
_NOISE = re.compile(f"noise-{_NUMBER}")
_SCALE_GATE = re.compile(f"scale_gate={_NUMBER}")


def _count(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.fullmatch(name)
    return int(match[1]) if match else None


def _number(pattern: re.Pattern[str], name: str) -> float | None:
    match = pattern.fullmatch(name)
    number = float(match[1]) if match else math.inf
    return number if math.isfinite(number) else None


def text_name(limit: int) -> str:
    """Return the name of the condition that cuts the text to `limit` bytes: `text-16`."""
    return f"text-{limit}"


def text_limit(name: str) -> int | None:
    """Return the bytes in such a name, None for another name."""
    return _count(_TEXT, name)


def facts_name(count: int) -> str:
    """Return the name of the condition that gives the text of the first `count` facts: `facts-2`."""
    return f"facts-{count}"


def facts_count(name: str) -> int | None:
    """Return the number of facts in such a name, None for another name."""
    return _count(_FACTS, name)


def tokens_name(count: int) -> str:
    """Return the name of the condition that injects the message's first `count` token embeddings: `tokens-8`."""
    return f"tokens-{count}"


def tokens_count(name: str) -> int | None:
    """Return the number of tokens in such a name, None for another name."""
    return _count(_TOKENS, name)


def drop_name(slot: int) -> str:
    """Return the name of the condition that blanks one slot, counted from 1: `drop-3`."""
    return f"drop-{slot}"


def dropped_slot(name: str) -> int | None:
    """Return the slot in such a name, counted from 1; None for another name."""
    return _count(_DROP, name)


def bits_count(name: str) -> int | None:
    """Return the bits of a number in a name such as `bits-8`, at most 16; None for another name."""
    return _count(_BITS, name)


def noise_name(scale: float) -> str:
    """Return the name of the condition that injects noise of a norm: `noise-1`, the mean token-embedding norm."""
    return f"noise-{scale:g}"


def noise_scale(name: str) -> float | None:
    """Return the norm in such a name, over the mean token-embedding norm; None for another name, or for 0."""
    return _number(_NOISE, name) or None


def scale_gate_name(gate: float) -> str:
    """Return the name of the condition that rescales the prefix: `scale_gate=0.5`."""
    return f"scale_gate={gate:g}"


def scale_gate_of(name: str) -> float | None:
    """Return the scale in such a name, None for another name."""
    return _number(_SCALE_GATE, name)


def has_parameter(name: str) -> bool:
    """Return True for a name that carries a parameter, such as `drop-3`."""
    read = (text_limit, facts_count, tokens_count, dropped_slot, bits_count, noise_scale, scale_gate_of)
    return any(parameter(name) is not None for parameter in read)
