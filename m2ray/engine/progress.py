"""Progress of a running sweep: a live table on a terminal, plain lines elsewhere, JSON where requested."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from m2ray.engine.cost.forecast import Forecast
from m2ray.judging.statistics import wilson
from m2ray.util.files import write_json
from m2ray.util.tables import fit_columns

COLUMNS = ("configuration", "state", "epoch", "k", "score", "shuffle gap", "prefix cosine", "normal %")
DROPPED_FIRST = ("prefix cosine", "shuffle gap", "k", "epoch", "normal %", "score")  # on a narrow terminal
NOTE_S = 2.0  # between two notes of the state for other shells

OutputForm = Literal["people", "quiet", "json"]

# Metrics of an epoch that its JSON event has.
EPOCH_FIELDS = ("progress", "epochs_total", "k", "score", "unit", "shuffle_gap", "prefix_cosine", "collapsed")


class Progress:
    """The state of every configuration, the share of the work that is done, and the time that is left.

    Args:
        name: The sweep's name.
        forecast: The work, and what is done of it.
        form: For people; quiet, which prints failures only; or json, one object per line.
        file: Where phase, share and time left are kept for `m2ray.status`; None: nowhere.
    """

    def __init__(
        self, name: str, forecast: Forecast, form: OutputForm = "people", file: Path | None = None
    ) -> None:
        self._console, self._form = Console(), form
        self._name, self._forecast = name, forecast
        self._rows: dict[str, dict[str, Any]] = {}
        self._phase = "starting"
        self._started = time.monotonic()
        self._file, self._noted = file, -math.inf
        # The table is built at each refresh, so that its time moves on between events.
        self._live = Live(console=self._console, refresh_per_second=2, transient=True, get_renderable=self._table)

    def __enter__(self) -> Progress:
        if self._console.is_terminal and self._form == "people":
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def restored(self, ended: Collection[str], answers: int) -> None:
        """Record which configurations had ended in an earlier run, and how many answers it had decoded."""
        self._forecast.restored(ended, answers)

    def phase(self, text: str) -> None:
        """Begin a new phase of the sweep."""
        self._phase = text
        self._print(text, {"event": "phase", "phase": text})

    def began(self, name: str) -> None:
        """Record that a configuration begins to train."""
        self._forecast.began(name, time.monotonic() - self._started)

    def reported(self, name: str, metrics: Mapping[str, Any], epoch_samples: int = 1) -> None:
        """Record an epoch's metrics of a configuration, whose epochs have so many samples."""
        state = "COLLAPSED" if metrics.get("collapsed") else "training"
        row = self._rows.setdefault(name, {})
        seconds = metrics.get("seconds", 0.0) - (row.get("seconds", 0.0) if metrics.get("epoch") != 1 else 0.0)
        done, total = metrics["progress"] * epoch_samples, metrics["epochs_total"] * epoch_samples
        spent = time.monotonic() - self._started
        self._forecast.epoch(name, done, total, max(0.0, seconds), spent)
        self._forecast.measured(spent)
        row.update(metrics, state=state)
        text = f"{name}: epoch {row['progress']}/{row['epochs_total']}  k {row['k']}"
        text += f"  score {row['score']:+.3f} {row.get('unit', 'nats')}"
        text += f"  shuffle gap {row.get('shuffle_gap', math.nan):.3f}"
        text += "  COLLAPSED: ignores its message" if metrics.get("collapsed") else ""
        fields = {key: metrics[key] for key in EPOCH_FIELDS if key in metrics}
        self._print(text, {"event": "epoch", "config": name, **fields})

    def ended(self, name: str, cause: str) -> None:
        """Record that a configuration's training is over."""
        row = self._rows.setdefault(name, {"progress": 0, "epochs_total": 1})
        early = row["progress"] < row["epochs_total"]
        row["state"] = "failed" if cause else "stopped early" if early else "trained"
        self._forecast.ended(name)
        text = f"{name}: stopped early, clearly behind the best" if early else ""
        event = {"event": "ended", "config": name, "state": row["state"], "cause": cause}
        self._print(f"{name}: FAILED: {cause}" if cause else text, event, failure=bool(cause))

    def evaluated(
        self, label: str, cause: str, answers: int = 0, seconds: float = 0.0, constant: bool = False
    ) -> None:
        """Record that an evaluation job ended; see `Forecast.answered`."""
        self._forecast.answered(answers, seconds, constant)
        self._forecast.measured(time.monotonic() - self._started)
        text = f"evaluated {label}" + (f": FAILED: {cause}" if cause else "")
        self._print(text, {"event": "evaluated", "job": label, "cause": cause}, failure=bool(cause))

    def solved(self, name: str, solved: int, episodes: int) -> None:
        """Record how many episodes a configuration's latest checkpoint solved with the right message's prefix."""
        low, high = wilson(solved, episodes)
        share = f"{100 * solved / episodes:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
        self._rows.setdefault(name, {"progress": 0, "epochs_total": 1})["normal"] = share

    def _summary(self) -> str:
        spent = time.monotonic() - self._started
        left_s = self._forecast.left_s(spent)
        left = "" if left_s is None else f", about {left_s:.0f} s left"
        return f"{spent:.0f} s, {self._forecast.share:.0%}{left}"

    def _note(self, at_once: bool) -> None:
        """Keep the state for other shells; events that follow soon are left out."""
        now = time.monotonic()
        if self._file is None or (now - self._noted < NOTE_S and not at_once):
            return
        self._noted, left_s = now, self._forecast.left_s(now - self._started)
        state = {
            "phase": self._phase,
            "share": round(self._forecast.share, 4),
            "left_s": None if left_s is None else round(left_s),
            "at": round(time.time()),
        }
        write_json(self._file, state)

    def _print(self, text: str, event: Mapping[str, Any], failure: bool = False) -> None:
        """Print an event as an object for programs, or as text for people, who see only part of them."""
        self._note(at_once=event["event"] == "phase")
        if self._form == "json":
            seconds = round(time.monotonic() - self._started, 1)
            print(json.dumps({"seconds": seconds, "share": round(self._forecast.share, 4), **event}), flush=True)
        elif self._form == "quiet":
            if failure:
                print(text, flush=True)
        elif text and not self._console.is_terminal:
            print(f"[{self._summary()}] {text}", flush=True)
        elif failure:
            self._console.print(text, style="bold red", markup=False, highlight=False)

    def _table(self) -> Table:
        lines = [list(COLUMNS)]
        for name, row in sorted(list(self._rows.items()), key=lambda item: -item[1].get("score", -1e9)):
            score, gap, cosine = (
                f"{row[key]:.3f}" if key in row else "" for key in ("score", "shuffle_gap", "prefix_cosine")
            )
            epoch = f"{row['progress']}/{row['epochs_total']}"
            k, normal = str(row.get("k", "")), row.get("normal", "")
            lines.append([name, row.get("state", ""), epoch, k, score, gap, cosine, normal])
        # Rich draws a line and two blanks between columns, and a line and a blank at either end.
        header, *body = fit_columns(lines, self._console.width - 4, DROPPED_FIRST, between=3)
        table = Table(title=f"{self._name}: {self._phase}", caption=self._summary())
        for column in header:
            table.add_column(column, no_wrap=True)
        for cells in body:
            table.add_row(*map(escape, cells))
        return table
