"""Small helpers for text."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

SILENT_S = 2.0  # until the progress of a loop is printed, and between two lines of it

Item = TypeVar("Item")

_SURROGATE = re.compile("[\ud800-\udfff]")


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: `1 seed`, `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def list_columns(names: Sequence[str]) -> str:
    """Return columns as an output names them: `column a`, `columns a, b`."""
    return f"column{'s' * (len(names) > 1)} {', '.join(names)}"


def list_some(names: Sequence[str], most: int = 8) -> str:
    """Return the first names of a list and the number of the others: `a, b and 3 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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


def with_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items; print how many are done where it takes seconds, such as `a.jsonl: 80,000 of 200,000 lines`.

    Args:
        items: The items.
        what: What they are, with `{}` for the count: `a.jsonl: {} lines`.
    """
    shown = time.monotonic()
    for done, item in enumerate(items):
        yield item
        if time.monotonic() - shown > SILENT_S:
            shown = time.monotonic()
            print(what.replace("{}", f"{done + 1:,} of {len(items):,}"), file=sys.stderr, flush=True)
