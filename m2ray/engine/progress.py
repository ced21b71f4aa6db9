"""What people see while a sweep runs: a live table on a terminal, plain lines elsewhere; JSON where asked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from m2ray.judging.statistics import wilson

COLUMNS = ("configuration", "state", "epoch", "k", "score", "shuffle gap", "prefix cosine", "normal %")


OutputForm = Literal["people", "quiet", "json"]


# What is said of an epoch in JSON.
EPOCH_FIELDS = ("progress", "epochs_total", "k", "score", "unit", "shuffle_gap", "prefix_cosine", "collapsed")


class ProgressBoard:
    """State of every configuration, the share of the work that is done, and when the rest will be.

    Args:
        name: The sweep's.
        configurations: Their number in the end.
        jobs: Evaluation jobs in the end.
        form: For people; quiet, only what went wrong; or json, an object a line.
    """

    def __init__(self, name: str, configurations: int, jobs: int, form: OutputForm = "people") -> None:
        self._console, self._form = Console(), form
        self._name, self._configurations, self._jobs = name, configurations, jobs
        self._rows: dict[str, dict[str, Any]] = {}
        self._phase, self._trained_before, self._jobs_done, self._share_before = "starting", 0, 0, 0.0
        self._started = time.monotonic()
        # The table is made anew at each refresh, so that time goes on between events.
        self._live = Live(console=self._console, refresh_per_second=2, transient=True, get_renderable=self._table)

    def __enter__(self) -> ProgressBoard:
        if self._console.is_terminal and self._form == "people":
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def recalled(self, trained: int, jobs: int) -> None:
        """What an earlier run had done of the configurations and of the evaluation jobs."""
        self._trained_before, self._jobs_done = trained, jobs
        self._share_before = self._share()

    def phase(self, text: str) -> None:
        """A new part of the sweep begins."""
        self._phase = text
        self._say(text, {"event": "phase", "phase": text})

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """A configuration reported an epoch."""
        state = "COLLAPSED" if metrics.get("collapsed") else "training"
        row = self._rows.setdefault(name, {})
        row.update(metrics, state=state)
        text = f"{name}: epoch {row['progress']}/{row['epochs_total']}  k {row['k']}"
        text += f"  score {row['score']:+.3f} {row.get('unit', 'nats')}"
        text += f"  shuffle gap {row.get('shuffle_gap', math.nan):.3f}"
        text += "  COLLAPSED: ignores its message" if metrics.get("collapsed") else ""
        told = {key: metrics[key] for key in EPOCH_FIELDS if key in metrics}
        self._say(text, {"event": "epoch", "config": name, **told})

    def ended(self, name: str, cause: str) -> None:
        """A configuration's training is over."""
        row = self._rows.setdefault(name, {"progress": 0, "epochs_total": 1})
        early = row["progress"] < row["epochs_total"]
        row["state"] = "failed" if cause else "stopped early" if early else "trained"
        row["ended"] = True
        text = f"{name}: stopped early, clearly behind the best" if early else ""
        event = {"event": "ended", "config": name, "state": row["state"], "cause": cause}
        self._say(f"{name}: FAILED: {cause}" if cause else text, event, alarm=bool(cause))

    def evaluated(self, label: str, cause: str) -> None:
        """An evaluation job ended."""
        self._jobs_done += 1
        text = f"evaluated {label}" + (f": FAILED: {cause}" if cause else "")
        self._say(text, {"event": "evaluated", "job": label, "cause": cause}, alarm=bool(cause))

    def solved(self, name: str, solved: int, played: int) -> None:
        """A configuration's latest count of episodes solved with the right message's prefix."""
        low, high = wilson(solved, played)
        share = f"{100 * solved / played:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
        self._rows.setdefault(name, {"progress": 0, "epochs_total": 1})["normal"] = share

    def _share(self) -> float:
        rows = list(self._rows.values())
        trained = sum(1.0 if row.get("ended") else row["progress"] / row["epochs_total"] for row in rows)
        trained += self._trained_before
        return (trained / self._configurations + min(1.0, self._jobs_done / self._jobs)) / 2

    def _progress(self) -> str:
        share, spent = self._share(), time.monotonic() - self._started
        done = share - self._share_before
        left = f", about {spent * (1 - share) / done:.0f} s left" if done > 0.05 else ""
        return f"{spent:.0f} s, {share:.0%}{left}"

    def _say(self, text: str, event: Mapping[str, Any], alarm: bool = False) -> None:
        """What happened, in words for people, who are spared some of it, and as an event for machines."""
        if self._form == "json":
            seconds = round(time.monotonic() - self._started, 1)
            print(json.dumps({"seconds": seconds, "share": round(self._share(), 4), **event}), flush=True)
        elif self._form == "quiet":
            if alarm:
                print(text, flush=True)
        elif text and not self._console.is_terminal:
            print(f"[{self._progress()}] {text}", flush=True)
        elif alarm:
            self._console.print(text, style="bold red", markup=False, highlight=False)

    def _table(self) -> Table:
        table = Table(title=f"{self._name}: {self._phase}", caption=self._progress())
        for column in COLUMNS:
            table.add_column(column, no_wrap=column == COLUMNS[-1])
        for name, row in sorted(list(self._rows.items()), key=lambda item: -item[1].get("score", -1e9)):
            score, gap, cosine = (
                f"{row[key]:.3f}" if key in row else "" for key in ("score", "shuffle_gap", "prefix_cosine")
            )
            epoch = f"{row['progress']}/{row['epochs_total']}"
            k, normal = str(row.get("k", "")), row.get("normal", "")
            table.add_row(name, row.get("state", ""), epoch, k, score, gap, cosine, normal)
        return table
