"""Append-only log of events in a JSON Lines file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Log of events, one JSON object per line, each synced to disk."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, with the time in seconds since 1970 under `at`; it is on disk on return."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")  # keeps the new entry apart from a line that a crash left incomplete
            out.write(json.dumps({**entry, "at": round(time.time(), 1)}).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, in order.

        A line that a crash left incomplete is skipped: its event was not recorded, so it counts as not having
        happened.
        """
        if not self._file.is_file():
            return []
        entries = []
        for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries
