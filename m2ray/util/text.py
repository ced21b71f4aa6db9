"""Small helpers for text."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: `1 seed`, `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """Return a share in percent, with one decimal: `12.8%`."""
    return f"{100 * share:.1f}%"


def is_text(value: object) -> bool:
    """Return True for text that is not blank and that a tokenizer can read.

    JSON can spell lone surrogates, which are not characters.
    """
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)
