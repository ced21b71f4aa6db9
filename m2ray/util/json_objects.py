"""JSON objects in which no key stands twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class RepeatedKey(ValueError):
    """An object has a key twice, of which JSON would keep the last.

    Args:
        key: The key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def first_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that occurs again, or None."""
    return None if len(set(names)) == len(names) else next(name for name in names if names.count(name) > 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    key = first_repeated([key for key, _ in pairs])
    if key is not None:
        raise RepeatedKey(key)
    return dict(pairs)


# Its `decode` raises `RepeatedKey` where a key is given twice, at any depth.
STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
