"""The budget of a search: hours, and core hours, after which no new trial starts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from m2ray.config.space import Search
from m2ray.util.files import write_json

FILE = "search-time.json"
SAVE_S = 10.0  # between two writes: what a kill loses


class Budget:
    """Counts the time that the trials of a sweep have taken, in all its runs together.

    Time counts while the search runs. Time that the sweep was stopped does not count, nor do evaluation, judging
    and diagnosis after the search.

    Args:
        root: The results folder, which keeps the count.
        search: Its limits.
        clock: Returns the time in seconds.
    """

    def __init__(self, root: Path, search: Search, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._search, self._clock = root / FILE, search, clock
        self.hours, self.core_hours = self._restore()
        self._last = self._saved = clock()

    def _restore(self) -> tuple[float, float]:
        try:
            spent = json.loads(self._file.read_text())
            return float(spent["hours"]), float(spent["core_hours"])
        except (OSError, ValueError, TypeError, KeyError):  # the first run, or damaged: counted from here
            return 0.0, 0.0

    def tick(self, cores: float) -> None:
        """Count the time since the last call, in which trials held so many cores."""
        now = self._clock()
        hours, self._last = (now - self._last) / 3600, now
        self.hours += hours
        self.core_hours += cores * hours
        if now - self._saved >= SAVE_S:
            self.save()

    def save(self) -> None:
        """Write the count."""
        self._saved = self._clock()
        write_json(self._file, {"hours": round(self.hours, 4), "core_hours": round(self.core_hours, 4)})

    @property
    def spent(self) -> str:
        """The limit that is reached, such as `search.max_hours 2`; empty if none is."""
        for name, count in (("max_hours", self.hours), ("max_core_hours", self.core_hours)):
            limit = getattr(self._search, name)
            if limit is not None and count >= limit:
                return f"search.{name} {limit:g}"
        return ""
