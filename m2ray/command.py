"""What every command line shares: exit codes, and user errors printed as one line.

Exit codes: 0 done; 1 judged and not passed; 2 bad input, or a disk that is full; 3 done, but some cells failed;
130 stopped by Ctrl-C, 143 by SIGTERM: the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

DONE, NOT_PASSED, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3


class UserError(ValueError):
    """Bad input. The message names the file, the key and the mend, in one line."""


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


def check_place(option: str, folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written; nothing is left in it.

    Raises:
        UserError: names the option and the cause.
    """
    there = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    if not there.is_dir():
        raise UserError(f"{option}: {there} is a file; choose another folder")
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise UserError(f"{option}: {there}: {error.strerror}; choose another folder") from None


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder can be one on the model hub, OWNER/NAME: a path is none."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def why(error: BaseException) -> str:
    """What an exception says, in a part of a line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return textwrap.shorten(str(said), 300, placeholder=" ...")


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown cause"


LONGEST = 600  # characters of a line for people
FULL = (errno.ENOSPC, errno.EDQUOT)


def one_line(text: str) -> str:
    """A message as one line that a terminal can show: no control characters, and nothing endless in its middle."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def fault_of(error: OSError) -> str:
    """A file that cannot be read or written, or a full disk, as a user error."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in FULL:
        return f"{where}{error.strerror}; free some and run the same command again, a sweep with --resume"
    return f"{where}{error.strerror}; check the path, and who may read and write there"


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
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
        print(f"error: {one_line(fault_of(error))}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)
