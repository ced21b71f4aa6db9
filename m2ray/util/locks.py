"""A lock between processes: only one of them does a piece of work at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file while the block runs; wait as long as another process holds it.

    A lock is released when its process dies. On a file system without locks the block runs at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Locked(Exception):
    """Raised where another process holds a lock; the message is what that process wrote about itself."""


@contextlib.contextmanager
def try_lock(path: Path, holder: str) -> Iterator[bool]:
    """Hold the lock of a file while the block runs, or refuse at once where another process holds it.

    `flock` is freed by the kernel however its process ends, and Linux turns it into a lock on the server where the
    file is on NFS, so that other machines see it. (A lock file that only has to exist would outlive a kill, and
    `lockf` would be lost when any part of the process closes the file.)

    Args:
        path: The lock file. Its missing parents are created; the file is removed at the end.
        holder: A text about this process, for others that find the lock held.

    Yields:
        False on a file system without locks, where the block runs without one.

    Raises:
        Locked: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _open_locked(path)
    if file is None:
        yield False
        return
    with file:
        file.seek(0)
        file.truncate()
        file.write(holder.encode())
        file.flush()
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def lock_holder(path: Path) -> str | None:
    """Return what the process that holds a lock wrote about itself; None where nobody holds it.

    Nothing is written. Where the file cannot be read, or there are no locks, nobody is taken to hold it.
    """
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().decode(errors="replace")
    except OSError:
        pass
    return None


def _open_locked(path: Path) -> BinaryIO | None:
    """Return the file at this path, locked; None where the file system has no locks."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
            file.close()  # its holder has just removed it: this lock would exclude nobody
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace")
            file.close()
            raise Locked(holder) from None
        except OSError:
            file.close()
            return None
