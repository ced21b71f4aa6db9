"""Recover from OOM by halving the batch; results are unchanged.

This module works with torch's errors and caches but does not import torch: an error of torch's can only reach it
where torch has been loaded.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

# On a CPU torch raises a plain RuntimeError. The second message is oneDNN's.
CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, on any device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def free_memory() -> None:
    """Release what a failed forward pass left behind.

    Call it outside the `except` block, whose traceback still holds the tensors. Frames that refer to each other
    hold more until they are collected.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def halve_on_oom(rows: Sequence[int], run: Callable[[Sequence[int]], T]) -> list[T]:
    """Run a function on rows; where memory runs out, run it on each half of them, in order.

    Raises:
        RuntimeError: memory runs out on a single row.
    """
    try:
        return [run(rows)]
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    free_memory()
    half = len(rows) // 2
    return [*halve_on_oom(rows[:half], run), *halve_on_oom(rows[half:], run)]
