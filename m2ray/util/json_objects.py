"""JSON objects in which no key stands twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class LineFault(ValueError):
    """What is wrong with one line of a file and how to fix it, without the file and the line's number."""


class _RepeatedKey(ValueError):
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
        raise _RepeatedKey(key)
    return dict(pairs)


# Its `decode` raises `_RepeatedKey` where a key is given twice, at any depth.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def read_object(line: str | bytes) -> dict[str, Any]:
    """Return the object of a line of JSON Lines.

    Raises:
        LineFault: not one object, or a key stands twice.
    """
    try:
        record = _DECODER.decode(line if isinstance(line, str) else line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineFault(f"not UTF-8 (byte {error.start + 1}: {error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise LineFault(f"not JSON ({error.msg} at column {error.colno}); write one object per line") from None
    except _RepeatedKey as error:
        raise LineFault(f"{error.key[:60]}: given twice; keep one") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or deep nesting
        raise LineFault(f"not JSON that can be read ({error}); write one plain object per line") from None
    if not isinstance(record, dict):
        raise LineFault(f"expected an object, found {type(record).__name__}; write one object per line")
    return record
