"""Processes of one run, found by an environment variable that child processes inherit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def marked_processes(name: str, value: str) -> Iterator[psutil.Process]:
    """Yield the processes that have this environment variable."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile, or belongs to another user
            if process.environ().get(name) == value:
                yield process


def processor_s(process: psutil.Process) -> float:
    """Return the processor time of a process in seconds, without its children."""
    times = process.cpu_times()
    return float(times.user + times.system)


def proportional_set_size(process: psutil.Process) -> int:
    """Return the memory of a process in bytes; a page that several processes map is divided among them."""
    return int(process.memory_full_info().pss)
