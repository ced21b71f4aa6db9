"""User errors, and error texts that fit on one line."""

from __future__ import annotations

import errno
import textwrap

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_LINE = 600  # characters of an error message on a terminal


class UserError(ValueError):
    """Bad input. The message names the file, the key and the fix, in one line."""


def describe_error(error: BaseException) -> str:
    """Return an exception's message, at most 300 characters, for another message; its class if it has none."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else error
    return textwrap.shorten(str(message), 300, placeholder=" ...") or type(error).__name__


def last_line(text: str) -> str:
    """Return the last non-empty line of a traceback, which names the error; at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown cause"


def one_line(text: str) -> str:
    """Return a message as one line for a terminal: control characters escaped, the middle of a long one cut."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"


def describe_os_error(error: OSError) -> str:
    """Return the user error for a full disk, or for a file that cannot be read or written."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in DISK_FULL:
        return f"{where}{error.strerror}; free some and run the same command again, a sweep with --resume"
    return f"{where}{error.strerror}; check the path and its permissions"
