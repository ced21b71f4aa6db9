"""Run a command: exit codes, user errors in one line, and standard streams that survive their readers.

Exit codes: 0 done; 1 judged and not passed; 2 bad input, or a full disk; 3 done, but some configurations failed;
130 stopped by Ctrl-C, 143 by SIGTERM: the same command with --resume continues.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, BinaryIO, NoReturn, cast

from m2ray.util.errors import DISK_FULL, UserError, describe_os_error, one_line

# Seeds of episodes; the second is the older name, which is that of training seeds in other commands.
EPISODES = ("--episodes", "--seeds")
OTHER_RECEIVER = (
    "--receiver names another receiver than the codec was trained with: see whether the codec carries over"
)
DONE, NOT_PASSED, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, as all bad input is reported."""

    def error(self, message: str) -> NoReturn:
        """Raise a one-line error instead of printing the usage block."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`")


class _CallableModule(ModuleType):
    """A command's module that stands for the function of the same name too, which importing it would hide."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        api = importlib.import_module("m2ray.api")  # loads torch, which the command's --help need not wait for
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


def call_the_function(module: str) -> None:
    """Let a command's module, such as `m2ray.sweep`, be called like the function `m2ray.api.sweep`."""
    sys.modules[module].__class__ = _CallableModule


def _check_current_folder() -> None:
    """Refuse a current folder that was deleted: oneMKL and Ray fail there without naming the cause.

    Raises:
        UserError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "current folder: it was deleted; cd to one that exists and run the command again"
        ) from None


class _Pipe(io.FileIO):
    """A standard stream that swallows what is written after its reader (`| head`) has closed it.

    The command goes on without output: a sweep ends with its results, and a gate with its exit code.
    """

    def write(self, data: Any, /) -> int:
        """Write to the stream, or to nothing once it is closed."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return memoryview(data).nbytes


def _survive_closed_pipes() -> None:
    """Replace standard output and error by streams that survive the end of their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:  # closed, or a test's
            continue
        stream.flush()
        pipe = _Pipe(stream.fileno(), "w", closefd=False)
        unbuffered = isinstance(stream.buffer, io.RawIOBase)  # PYTHONUNBUFFERED
        survivor = io.TextIOWrapper(
            cast(BinaryIO, pipe) if unbuffered else io.BufferedWriter(pipe),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, survivor)


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command and exit with its code; bad input becomes one line on stderr and exit code 2."""
    _survive_closed_pipes()
    try:
        _check_current_folder()
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        code = BAD_INPUT
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise  # not about a file: a bug, or the network
        print(f"error: {one_line(describe_os_error(error))}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)
