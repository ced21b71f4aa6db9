"""Files that a reader, or a crash, finds whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2ray.util.errors import UserError


def check_writable(option: str, folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written; nothing is left in it.

    Raises:
        UserError: names the option and the cause.
    """
    there = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    if not there.is_dir():
        raise UserError(f"{option}: {there} is a file; choose another folder")
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise UserError(f"{option}: {there}: {error.strerror}; choose another folder") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half of it."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and move it there; when this returns it outlasts a loss of power.

    Raises:
        OSError: it cannot be written, on a full disk say; what there was of it is gone, and the old file is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # else the move itself might be lost


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def cache_root() -> Path:
    """The user's cache folder of this program."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m2ray"
