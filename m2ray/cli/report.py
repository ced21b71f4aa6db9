# NEWDOC
"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.build import build
from m2ray.reporting.leaderboard import print_leaderboard


def main(argv: Sequence[str]) -> int:
    """Rebuild every table and picture of a results folder."""
    parser = Parser(prog="python -m m2ray.report", description="Rebuild every table and picture from rows.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument("--gate", type=Path, help="gate YAML; default: the one that the sweep was registered with")
    args = parser.parse_args(argv)
    print_leaderboard(build(args.folder, args.gate))
    print(f"\nwritten: {args.folder}/report.html, leaderboard.csv, leaderboard.md, attempts/, figures/")
    return DONE
