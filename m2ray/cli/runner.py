"""What every command line shares: exit codes, and user errors printed as one line.

Exit codes: 0 done; 1 judged and not passed; 2 bad input, or a disk that is full; 3 done, but some cells failed;
130 stopped by Ctrl-C, 143 by SIGTERM: the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from m2ray.util.errors import FULL, UserError, describe_os_error, one_line

DONE, NOT_PASSED, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or the notice of a machine that goes away; `code` is what shells make of it."""

    def __init__(self, signal_: int) -> None:
        super().__init__(signal_)
        self.code = 128 + signal_


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it the first SIGINT or SIGTERM raises `Stopped` in the main thread; the second ends the process."""
    signals = (signal.SIGINT, signal.SIGTERM)
    noted: list[int] = []

    def at_once(number: int, frame: object) -> None:
        os._exit(128 + number)

    def orderly(number: int, frame: object) -> None:
        noted.append(number)
        for each in signals:
            signal.signal(each, at_once)
        print("\nstopping: what is being evaluated is finished first; once more leaves at once", file=sys.stderr)
        raise Stopped(number)

    before = {each: signal.signal(each, orderly) for each in signals}
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped) or not noted:
            raise
        raise Stopped(noted[0]) from None  # compiled code makes a plain one of it
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in the one-line form all bad input takes here."""

    def error(self, message: str) -> NoReturn:
        """Exit 2 with one line instead of the usage block."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`")


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command and exit with its code; bad input becomes one line on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        code = BAD_INPUT
    except BrokenPipeError:
        # The reader (`| head`) went away: not an error, and nothing more can be printed.
        sys.stderr.close()
        code = DONE
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise  # of no file: a bug, or a network's
        print(f"error: {one_line(describe_os_error(error))}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)
