# NEWDOC
"""sweep.yaml: everything that decides a sweep's outcome, and where it was made."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_digest() -> str:
    """First 16 hex digits of the SHA-256 of this package's source: its version, committed or not."""
    sha, package = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        sha.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()[:16]
