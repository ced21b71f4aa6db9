"""Command `python -m m2ray.publish results/NAME CONFIG`: copy a trained codec into a self-contained folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.publish import publish
from m2ray.util.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Publish one codec of a sweep and print its folder."""
    parser = Parser(
        prog="python -m m2ray.publish", description="Copy a trained codec into a self-contained folder."
    )
    parser.add_argument("sweep", type=Path, help="results/NAME of a finished sweep")
    parser.add_argument("config", help="configuration on its leaderboard")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument(
        "--as", dest="name", help="name of the new folder in results/NAME, such as best-k8", required=True
    )
    args = parser.parse_args(argv)
    if not (args.sweep / "leaderboard.csv").is_file():
        raise UserError(f"{args.sweep}: no leaderboard.csv; give results/NAME of a finished sweep")
    print(publish(args.sweep, args.config, args.seed, args.name))
    return DONE
