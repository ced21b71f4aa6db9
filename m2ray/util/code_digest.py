"""Digest of this package's source code."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_digest() -> str:
    """Return the first 16 hex digits of the SHA-256 of this package's Python files, at any depth.

    It identifies the version of the code, committed or not. Sweeps record it, and the row cache is keyed by it.
    """
    sha, package = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        sha.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()[:16]
