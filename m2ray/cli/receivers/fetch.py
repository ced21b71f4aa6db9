"""Command `python -m m2ray.fetch NAME`: fetch a small pretrained receiver into the user's cache."""

from __future__ import annotations

from collections.abc import Sequence

from m2ray.cli.runner import DONE, Parser
from m2ray.receiver.fetch import fetching


def main(argv: Sequence[str]) -> int:
    """Fetch one receiver by its short name."""
    parser = Parser(
        prog="python -m m2ray.fetch",
        description="Fetch a small pretrained receiver into the user's cache, where --receiver NAME finds it.",
    )
    parser.add_argument("name", choices=sorted(fetching.SOURCES), help="the receiver to fetch")
    fetching.fetch(parser.parse_args(argv).name)
    return DONE
