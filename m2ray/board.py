"""What people see while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table


class Board:
    """State of every configuration, the share of the work that is done, and when the rest will be."""

    def __init__(self, name: str, configurations: int, epochs: int) -> None:
        self._console = Console()
        self._name, self._configurations, self._epochs = name, configurations, epochs
        self._rows: dict[str, dict[str, Any]] = {}
        self._phase, self._cells, self._cells_done = "starting Ray", 0, 0
        self._started = time.monotonic()
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        """A new part of the sweep begins."""
        self._phase = text
        self._say(text)

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """A configuration reported an epoch."""
        row = self._rows.setdefault(name, {"epochs": 0})
        row.update(metrics, epochs=int(metrics.get("progress", metrics.get("epoch", 0))), state="training")
        collapsed = "  COLLAPSED: ignores its message" if metrics.get("collapsed") else ""
        gap = metrics.get("shuffle_gap", float("nan"))
        self._say(
            f"{name}: epoch {row['epochs']}/{self._epochs_of(row)}  k {metrics.get('k')}  "
            f"score {metrics['score']:+.3f} nats  shuffle gap {gap:.3f}{collapsed}"
        )

    def ended(self, name: str, cause: str) -> None:
        """A configuration's training is over."""
        row = self._rows.setdefault(name, {"epochs": 0})
        row["state"] = "failed" if cause else "trained"
        if cause:
            self._say(f"{name}: FAILED: {cause}")

    def expect(self, cells: int) -> None:
        """More evaluation jobs to come."""
        self._cells += cells

    def evaluated(self, label: str, cause: str) -> None:
        """An evaluation job ended."""
        self._cells_done += 1
        self._say(f"evaluated {label}" + (f": FAILED: {cause}" if cause else ""))

    def _epochs_of(self, row: Mapping[str, Any]) -> int:
        return int(row.get("epochs_total", self._epochs))

    def _share(self) -> float:
        trained = sum(min(1.0, row["epochs"] / max(1, self._epochs_of(row))) for row in self._rows.values())
        parts = [trained / max(1, self._configurations)]
        if self._cells:
            parts.append(self._cells_done / self._cells)
        return sum(parts) / len(parts)

    def _say(self, text: str) -> None:
        spent = time.monotonic() - self._started
        if not self._console.is_terminal:
            print(f"[{spent:5.0f} s] {text}", flush=True)
            return
        share = self._share()
        left = f", about {spent * (1 - share) / share:.0f} s left" if share > 0.05 else ""
        table = Table(title=f"{self._name}: {self._phase}", caption=f"{share:.0%} done in {spent:.0f} s{left}")
        for column in ("configuration", "state", "epoch", "k", "score (nats)", "shuffle gap", "prefix cosine"):
            table.add_column(column)
        for name, row in sorted(self._rows.items(), key=lambda item: -item[1].get("score", -1e9)):
            numbers = (
                f"{row[key]:.3f}" if key in row else "" for key in ("score", "shuffle_gap", "prefix_cosine")
            )
            table.add_row(name, row.get("state", ""), str(row["epochs"]), str(row.get("k", "")), *numbers)
        self._live.update(table)
