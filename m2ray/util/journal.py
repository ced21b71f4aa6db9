# NEWDOC
"""Which configuration is trained next: first the points, then what Optuna suggests. Journalled, so that a sweep
that was killed goes on where it was: what ended is told to Optuna again, what had begun is trained on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """One JSON object a line, appended and synced: what began and what ended."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line, with the time in seconds since 1970; it is on disk when this returns."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")  # the last line is torn: do not let it swallow this one
            out.write(json.dumps({**entry, "at": round(time.time(), 1)}).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """All lines; one torn by a crash in mid-write is left out: what it said had not happened yet."""
        if not self._file.is_file():
            return []
        found = []
        for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found
