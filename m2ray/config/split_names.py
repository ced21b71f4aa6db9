"""Names of the splits that a codec is evaluated on, as rows have them.

A sweep looks at the split `confirm` once. When it has grown since, what is judged then is evaluated on fresh
messages of the confirm part: the splits `confirm-2`, `confirm-3`, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CONFIRM = "confirm"
_LATER = re.compile(rf"{CONFIRM}-([1-9][0-9]*)")


def confirm_split(look: int) -> str:
    """Return the name of the split of a sweep's n-th look at confirm, counted from 1."""
    return CONFIRM if look == 1 else f"{CONFIRM}-{look}"


def look_number(split: str) -> int:
    """Return which look at confirm a split is of, counted from 1; 0 for another split."""
    later = _LATER.fullmatch(split)
    return int(later[1]) if later else int(split == CONFIRM)


def is_confirm(split: str) -> bool:
    """Return whether verdicts are given on a split."""
    return look_number(split) > 0


def most_conclusive(splits: Iterable[str]) -> str | None:
    """Return the latest look at confirm, else select, else search, else the first of other names."""
    found = list(splits)
    looks = sorted((split for split in found if is_confirm(split)), key=look_number)
    known = [split for split in ("select", "search") if split in found]
    return next(iter([*reversed(looks), *known, *found]), None)


def family(split: str) -> str:
    """Return the name that splits share whose verdicts are Holm-corrected together."""
    return CONFIRM if is_confirm(split) else split
