"""Train on a batch that does not fit into memory: the receiver runs fewer rows at once, with the same result."""

from __future__ import annotations

import re
from pathlib import Path

from m2ray.util.errors import UserError
from m2ray.util.files import write_json

ROWS_FILE = "rows-at-once.json"


def read_rows_at_once(folder: Path) -> int | None:
    """Return the size that a training's folder holds, None where memory has sufficed.

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
    """The number of rows that the receiver runs at once: the whole batch, until memory runs out.

    Objectives compare rows, so a batch cannot be split into smaller ones. Instead the receiver runs it in parts,
    keeps only their outputs, and runs them again for the gradients (Chen et al. 2016, arXiv:1604.06174): batch and
    loss stay the same, for a third more arithmetic.

    The size is kept in the training's folder, for a resumed run and for the other workers, since only one of them
    ran out of memory.

    Args:
        folder: The training's folder.
        most: Rows of its largest forward pass.

    Raises:
        UserError: the file that keeps the size is damaged.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self.rows = read_rows_at_once(folder)

    def halve(self) -> bool:
        """Halve the size from now on; return False where it is 1 already."""
        if self.rows == 1:
            return False
        self.rows = max(1, (self.rows or self._most) // 2)
        write_json(self._folder / ROWS_FILE, self.rows)
        return True
