"""Too little memory for a batch: what is held at once is halved, and what comes out stays the same."""

from __future__ import annotations

import re
from pathlib import Path

from m2ray.util.errors import UserError
from m2ray.util.files import write_json

ROWS_FILE = "rows-at-once.json"


def read_rows_at_once(folder: Path) -> int | None:
    """The number of `RowsAtOnce` that a training's folder holds, None where memory has sufficed.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / ROWS_FILE
    if not file.is_file():
        return None
    text = file.read_text(errors="replace").strip()
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise UserError(f"{file}: not a number of rows; remove it")
    return int(text)


class MicrobatchSize:
    """How many rows a training's receiver reads at once: all of them, until memory proves too small.

    Objectives compare rows, so a batch cannot be trained on in parts. Instead the receiver reads it in parts,
    keeps of each what comes out, and reads it again for the gradients (Chen et al. 2016, arXiv:1604.06174): the
    batch and its loss stay what they are, for a third more arithmetic.

    Kept in the training's folder, for a resumed run and for the other workers, of which one ran out of memory.

    Args:
        folder: The training's.
        most: Rows of its largest pass.

    Raises:
        UserError: the file that keeps it is damaged.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self.rows = read_rows_at_once(folder)

    def halve(self) -> bool:
        """Half as many from now on; False where it is one already."""
        if self.rows == 1:
            return False
        self.rows = max(1, (self.rows or self._most) // 2)
        write_json(self._folder / ROWS_FILE, self.rows)
        return True
