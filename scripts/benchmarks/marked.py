"""The processes of one run, told apart from all others by a mark in their environment, which children inherit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def marked(mark: str) -> Iterator[Path]:
    """The folders below /proc of the processes whose environment holds a mark."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                yield folder
