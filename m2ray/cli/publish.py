"""`python -m m2ray.publish results/NAME CONFIG`: a trained codec as a folder of its own, for anybody to play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.publish import publish
from m2ray.util.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Publish one codec of a sweep."""
    parser = Parser(prog="python -m m2ray.publish", description="Give a trained codec a folder of its own.")
    parser.add_argument("sweep", type=Path, help="results/NAME of a finished sweep")
    parser.add_argument("config", help="configuration on its leaderboard")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--as", dest="name", help="folder inside the sweep's, such as best-k8", required=True)
    args = parser.parse_args(argv)
    if not (args.sweep / "leaderboard.csv").is_file():
        raise UserError(f"{args.sweep}: no leaderboard.csv; give results/NAME of a finished sweep")
    print(publish(args.sweep, args.config, args.seed, args.name))
    return DONE
