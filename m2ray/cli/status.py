"""Command `python -m m2ray.status results/NAME`: print a sweep's progress, while it runs or afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.status import status_of
from m2ray.util.tables import terminal_text
from m2ray.util.text import duration

DROPPED_FIRST = ("split", "n", "seed:epoch", "95 % CI", "score")  # on a narrow terminal


def main(argv: Sequence[str]) -> int:
    """Print a sweep's progress as a table or as JSON."""
    parser = Parser(prog="python -m m2ray.status", description="Print a sweep's progress; it may be running.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    status = status_of(args.folder)
    if args.json:
        print(json.dumps(status))
        return DONE
    headers = ["configuration", "state", "seed:epoch", "score", "split", "n", "normal %", "95 % CI"]
    table = [headers, *(_cells(line) for line in status["configurations"])]
    print(_headline(status))
    print(f"{status['rows']:,} rows, last change {status['last_change_s']} s ago\n")
    print(terminal_text(table, DROPPED_FIRST))
    return DONE


def _headline(status: dict[str, Any]) -> str:
    """Return whether the sweep runs, is done or was stopped, and how far it is."""
    name, phase, share = status["name"], status["phase"], status["share"]
    if status["state"] == "done":
        return f"{name}: done; python -m m2ray.report shows the leaderboard"
    at = f"{share:.0%}, {phase}" if phase is not None else "starting"
    if status["state"] == "stopped":
        return f"{name}: not running; stopped, killed or died at {at}; the same command with --resume continues it"
    left = "" if status["left_s"] is None else f"; about {duration(status['left_s'])} left"
    return f"{name}: running ({status['holder'] or 'just started'}): {at}{left}"


def _cells(line: dict[str, Any]) -> list[str]:
    """Return a configuration's line of the table, as `status_of` describes it."""
    normal, interval = line["normal"], line["normal_ci"]
    return [
        line["config"],
        line["state"],
        " ".join(f"{seed}:{epoch}" for seed, epoch in line["epochs"].items()),
        "" if line["score"] is None else f"{line['score']:+.3f}",
        line["split"] or "",
        str(line["n"] or ""),
        "" if normal is None else f"{100 * normal:.1f}",
        "" if normal is None else "[{:.1f}, {:.1f}]".format(*(100 * bound for bound in interval)),
    ]
