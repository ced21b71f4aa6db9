"""Too little memory for a batch: what is held at once is halved, and what comes out stays the same."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from m2ray.command import UserError
from m2ray.files import write_json

T = TypeVar("T")
# The second is all that oneDNN says where it finds none.
ON_CPU = ("DefaultCPUAllocator: can't allocate memory", "could not create a primitive")
FILE = "rows-at-once.json"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice; torch has a class for that on accelerators alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ON_CPU)
    )


def free() -> None:
    """Give back what a failed pass left. Outside of the handler, whose traceback holds the tensors that filled the
    memory; frames that refer to each other hold more until they are collected.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_halves(rows: Sequence[int], do: Callable[[Sequence[int]], T]) -> list[T]:
    """What `do` makes of rows; where memory does not suffice, of each half of them, in order.

    Raises:
        RuntimeError: memory does not suffice for a single row.
    """
    try:
        return [do(rows)]
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    free()
    half = len(rows) // 2
    return [*in_halves(rows[:half], do), *in_halves(rows[half:], do)]


def rows_at_once(folder: Path) -> int | None:
    """The number of `RowsAtOnce` that a training's folder holds, None where memory has sufficed.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    text = file.read_text(errors="replace").strip()
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise UserError(f"{file}: not a number of rows; remove it")
    return int(text)


class RowsAtOnce:
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
        self.rows = rows_at_once(folder)

    def halve(self) -> bool:
        """Half as many from now on; False where it is one already."""
        if self.rows == 1:
            return False
        self.rows = max(1, (self.rows or self._most) // 2)
        write_json(self._folder / FILE, self.rows)
        return True
