# NEWDOC
"""What every command line shares: exit codes, and user errors printed as one line.

Exit codes: 0 done; 1 judged and not passed; 2 bad input, or a disk that is full; 3 done, but some cells failed;
130 stopped by Ctrl-C, 143 by SIGTERM: the same command with --resume goes on.
"""

from __future__ import annotations

import errno
import textwrap


class UserError(ValueError):
    """Bad input. The message names the file, the key and the fix, in one line."""


def describe_error(error: BaseException) -> str:
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


def describe_os_error(error: OSError) -> str:
    """A file that cannot be read or written, or a full disk, as a user error."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in FULL:
        return f"{where}{error.strerror}; free some and run the same command again, a sweep with --resume"
    return f"{where}{error.strerror}; check the path, and who may read and write there"
