"""Command `python -m m2ray.status results/NAME`: print a sweep's progress, while it runs or afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.status import status_of


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
    table = [_cells(line) for line in status["configurations"]]
    print(f"{status['name']}: {status['rows']:,} rows, last change {status['last_change_s']} s ago")
    print(tabulate(table, headers=headers, disable_numparse=True))
    return DONE


def _cells(line: dict[str, Any]) -> list[Any]:
    """Return a configuration's line of the table, as `status_of` describes it."""
    normal, interval = line["normal"], line["normal_ci"]
    return [
        line["config"],
        line["state"],
        " ".join(f"{seed}:{epoch}" for seed, epoch in line["epochs"].items()),
        "" if line["score"] is None else f"{line['score']:+.3f}",
        line["split"] or "",
        line["n"] or "",
        "" if normal is None else f"{100 * normal:.1f}",
        "" if normal is None else "[{:.1f}, {:.1f}]".format(*(100 * bound for bound in interval)),
    ]
