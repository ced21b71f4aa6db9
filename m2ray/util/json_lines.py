"""Lines of JSON Lines files."""

from __future__ import annotations

import codecs
from pathlib import Path

from m2ray.util.errors import UserError


def numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines of a file that are not blank, each with its number in the file, from 1.

    A byte order mark and CRLF line ends are left out.

    Raises:
        UserError: there is no such file.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a JSON Lines file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    # Bytes are split at \n and \r only; text would also be split at characters that JSON allows inside a string.
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def line_of(path: Path, place: int) -> int:
    """Return the number in the file, from 1, of the line that is at this place, from 0, among those not blank."""
    return numbered_lines(path)[place][0]
