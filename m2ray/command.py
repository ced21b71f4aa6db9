"""What every command line shares: exit codes, and user errors printed as one line.

Exit codes: 0 done; 1 judged and not passed; 2 bad input; 3 done, but some cells failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DONE, NOT_PASSED, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3


class UserError(ValueError):
    """Bad input. The message names the file, the key and the mend, in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in the one-line form all bad input takes here."""

    def error(self, message: str) -> NoReturn:
        """Exit 2 with one line instead of the usage block."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command and exit with its code; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = BAD_INPUT
    except BrokenPipeError:
        # The reader (`| head`) went away: not an error, and nothing more can be printed.
        sys.stderr.close()
        code = DONE
    sys.exit(code)
