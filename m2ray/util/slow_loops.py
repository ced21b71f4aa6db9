"""Progress of loops that may take long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

SILENT_S = 2.0  # until progress is printed, and between two lines of it

Item = TypeVar("Item")


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
