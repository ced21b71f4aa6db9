# NEWDOC
"""`python -m m2ray.status results/NAME`: how far a sweep is, from another shell, while it runs or after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.status import status_of


def main(argv: Sequence[str]) -> int:
    """Print how far a sweep is."""
    parser = Parser(prog="python -m m2ray.status", description="How far a sweep is; it may be running.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    args = parser.parse_args(argv)
    found = status_of(args.folder)
    if args.json:
        print(json.dumps(found))
        return DONE
    table = [
        [
            line["config"],
            line["state"],
            " ".join(f"{seed}:{epoch}" for seed, epoch in line["epochs"].items()),
            "" if line["score"] is None else f"{line['score']:+.3f}",
            line["split"] or "",
            line["n"] or "",
            "" if line["normal"] is None else f"{100 * line['normal']:.1f}",
            "" if line["normal"] is None else "[{:.1f}, {:.1f}]".format(*(100 * end for end in line["normal_ci"])),
        ]
        for line in found["configurations"]
    ]
    head = ["configuration", "state", "seed:epoch", "score", "split", "n", "normal %", "95 % CI"]
    print(f"{found['name']}: {found['rows']:,} rows, last change {found['last_change_s']} s ago")
    print(tabulate(table, headers=head, disable_numparse=True))
    return DONE
