"""Command `python -m m2ray.report results/NAME`: rebuild a sweep's leaderboard, reports, figures and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.build import judge_folder, write_reports
from m2ray.reporting.leaderboard_text import print_leaderboard


def main(argv: Sequence[str]) -> int:
    """Rebuild every table and figure of a results folder, and print the leaderboard."""
    parser = Parser(prog="python -m m2ray.report", description="Rebuild every table and figure from rows.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument(
        "--gate", help="content, reference, or a gate file; default: the gate that the sweep was registered with"
    )
    args = parser.parse_args(argv)
    judged = judge_folder(args.folder, args.gate)
    print_leaderboard(judged.leaderboard)
    if judged.note:
        print(f"\n{judged.note}")
    write_reports(judged)
    mark = judged.mark
    others = "" if mark else ", attempts/, figures/"
    print(f"\nwritten: {args.folder}/report{mark}.html, leaderboard{mark}.csv, leaderboard{mark}.md{others}")
    return DONE
