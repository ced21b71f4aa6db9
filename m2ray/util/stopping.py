"""Orderly stop at Ctrl-C or SIGTERM: the handler sets a flag, and the work looks at it where it can stop.

An exception raised by a handler comes out wherever the main thread happens to be: inside a lock, a hook of a fork
or a destructor, where it is swallowed or leaves a process that hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []  # signals since the innermost `stoppable` began


class Stopped(KeyboardInterrupt):
    """Raised after Ctrl-C, or after the SIGTERM of a machine that goes away; `code` is the exit code."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.code = 128 + signal_number


def end_on_signals() -> None:
    """End the process at once at SIGINT or SIGTERM: for the time before it has begun anything."""
    for number in SIGNALS:
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: object) -> None:
    os._exit(128 + number)


def check_stopped() -> None:
    """Return unless a signal was received.

    Raises:
        Stopped: one was, since the innermost `stoppable` began.
    """
    if _received:
        raise Stopped(_received[0])


@contextlib.contextmanager
def stoppable(raises: bool = False) -> Iterator[None]:
    """Take note of the first SIGINT or SIGTERM for `check_stopped`; end the process at the second.

    Args:
        raises: Raise `Stopped` in the main thread at once, for work that does not call `check_stopped`.
    """
    outer, _received[:] = list(_received), []

    def stop(number: int, frame: object) -> None:
        _received.append(number)
        end_on_signals()
        # Not by print, which the signal may have interrupted.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after the running evaluations; a second signal stops at once\n")
        if raises:
            raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped) or not _received:
            raise
        raise Stopped(_received[0]) from None  # compiled code turns it into a plain KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received[:] = outer
