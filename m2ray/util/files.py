"""Atomic file writes, and the cache folder."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m2ray.util.errors import UserError

_BLOCK_BYTES = 1 << 20


def check_writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be created or written, before any work is done.

    The check creates nothing that stays.

    Args:
        option: The command-line option that the error names.
        folder: The folder, which need not exist yet.

    Raises:
        UserError: names the option and the cause.
    """
    existing = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{option}: {existing} is a file; choose another folder")
    try:
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        raise UserError(f"{option}: {existing}: {error.strerror}; choose another folder") from None


def check_file(option: str, path: Path, suffixes: Sequence[str], about: str = "") -> None:
    """Refuse, before any work is done, a place where a file cannot be written.

    Args:
        option: The command-line option that the error names.
        path: The file.
        suffixes: What its name may end in.
        about: Words before the advice how to name it.

    Raises:
        UserError: it is named otherwise, is a folder, or lies inside a file.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{option} {path}: {about}name it {', '.join(f'something{each}' for each in suffixes)}")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    check_writable(f"{option} {path}", path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash, see the old content or the new, never a part."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path` and move it there; on return it survives a power failure.

    Args:
        path: The file to replace. Missing parent folders are created.
        write: Writes the content to the temporary path that it is given.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The temporary file is removed,
            and the old file stays.
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
    _sync(path.parent)  # without this the move itself could be lost


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def keep_json(path: Path, data: Any) -> None:
    """Write a JSON file into the user's cache. A cache that cannot be written costs time, not a result."""
    with contextlib.suppress(OSError):
        write_json(path, data)


def file_digest(path: Path) -> str:
    """Return 16 hexadecimal digits that identify a file's content: the start of its SHA-256.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    return sha256_of(path)[:16]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; empty where there is no file."""
    if not path.is_file():
        return ""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()


def cache_root() -> Path:
    """Return the user's cache folder for m2ray; for a user without a home directory, one in TMPDIR."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "m2ray"
    home = Path(os.path.expanduser("~"))  # stays `~` where the user has none
    if home.is_absolute() and home.is_dir():
        return home / ".cache" / "m2ray"
    return Path(tempfile.gettempdir()) / f"m2ray-cache-{os.getuid()}"


def numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines of a file that are not blank, each with its number in the file, from 1.

    Byte order marks, also those of files that were joined, and CRLF line ends are left out.

    Raises:
        UserError: there is no such file.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a JSON Lines file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    # Bytes are split at \n and \r only; text would also be split at characters that JSON allows inside a string.
    lines = [line.removeprefix(codecs.BOM_UTF8) for line in path.read_bytes().splitlines()]
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def line_of(path: Path, place: int) -> int:
    """Return the number in the file, from 1, of the line that is at this place, from 0, among those not blank."""
    return numbered_lines(path)[place][0]
