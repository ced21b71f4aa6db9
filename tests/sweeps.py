"""A sweep that is small enough for a test, and its processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import yaml

SPACE = {
    "name": "small",
    "about": "Trains for seconds; no codec is meant to pass.",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2030"},
        "codec": {"encoder": "segments", "k": 8, "width": 32, "layers": 1},
        "training": {"epochs": 2, "epoch_samples": 32, "batch_size": 16, "warmup": 0},
        "evaluation": {
            "confirm_conditions": ["identity", "constant", "near", "facts", "tokens"],
            "text_bytes": [16],
            "scale_gates": [1.0],
            "constant_samples": 64,
        },
    },
    "points": {"control": {"set": {"codec.encoder": "last_token", "codec.place": "before", "training.epochs": 1}}},
    "axes": {"codec.k": {"choice": [8, 12]}, "training.lr": {"loguniform": [1e-4, 1e-3]}},
    "search": {"trials": 2},
    "judge": {"select": 2, "confirm": 1},
}
CONFIRM, SEARCH = range(2000, 2030), range(1000, 1020)
CONDITIONS = {"normal", "null", "random", "shuffle", "P0", "P1", "text-16", "scale_gate=1"}
ON_CONFIRM = {"identity", "constant", "near", "facts-1", "facts-2", "facts-3"}  # besides; and tokens-k


def write_space(folder: Path, **changes) -> Path:
    """Write the space with other sections; codecs are diagnosed only if `judge` sets it."""
    file = folder / "space.yaml"
    space = {**SPACE, **changes}
    space["judge"] = {"diagnose": 0, **space["judge"]}
    file.write_text(yaml.safe_dump(space))
    return file


class Process:
    """`python -m m2ray.sweep` with all processes that it starts, found by an environment variable."""

    MARK = "M2RAY_TEST"

    def __init__(self, *argv, env: dict[str, str] | None = None, **options) -> None:
        self.mark = uuid.uuid4().hex
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "m2ray.sweep", *map(str, argv)],
            text=True,
            env={**os.environ, self.MARK: self.mark, "OMP_NUM_THREADS": "1", **(env or {})},
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def wait(self) -> subprocess.CompletedProcess:
        """Wait until it ends; then, or when the wait fails, kill what is left of it."""
        try:
            out, err = self.popen.communicate(timeout=900)
            return subprocess.CompletedProcess(self.popen.args, self.popen.returncode, out, err)
        finally:
            self.kill()

    def processes(self, command: str = "") -> list[psutil.Process]:
        """Return its running processes by process ID; only those with `command` in their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it ended meanwhile, or belongs to another user
                # Later words of a command line contain paths of other processes' sockets.
                if process.environ().get(self.MARK) == self.mark and command in " ".join(process.cmdline()[:3]):
                    found.append(process)
        return found

    def until(self, happened, what: str) -> None:
        """Wait for something that the running sweep brings about."""
        deadline = time.monotonic() + 600
        while not happened():
            assert self.popen.poll() is None, f"ended before {what}: {self.popen.stderr.read()}"
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def until_gone(self) -> None:
        """Wait for its last process to end by itself."""
        deadline = time.monotonic() + 120
        while running := self.processes():
            assert time.monotonic() < deadline, running
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill the driver, trials, evaluators and Ray with SIGKILL."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        while running := self.processes():
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)


def sweep(*argv, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a sweep to its end."""
    return Process(*argv, cwd=cwd).wait()
