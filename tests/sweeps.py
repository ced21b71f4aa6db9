"""A sweep small enough to run for real in a test, and the processes around it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import yaml

SPACE = {
    "name": "small",
    "about": "Seconds of training; nothing is meant to pass.",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2030"},
        "codec": {"encoder": "segments", "k": 8, "width": 32, "layers": 1},
        "training": {"epochs": 2, "epoch_samples": 32, "batch_size": 16, "warmup": 0},
        "evaluation": {
            "conditions": ["normal", "null", "random", "shuffle", "P0", "P1", "identity", "constant"],
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
CONDITIONS = {*SPACE["trial"]["evaluation"]["conditions"], "text-16", "scale_gate=1"}


def write_space(folder: Path, **changes) -> Path:
    """The space with other sections, as a file; codecs are diagnosed only where a test says so."""
    file, space = folder / "space.yaml", {**SPACE, **changes}
    space["judge"] = {"diagnose": 0, **space["judge"]}
    file.write_text(yaml.safe_dump(space))
    return file


class Process:
    """`python -m m2ray.sweep` with everything that it starts."""

    def __init__(self, *argv, cwd: Path | None = None) -> None:
        self.mark = f"M2RAY_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "m2ray.sweep", *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            cwd=cwd,
        )

    def wait(self) -> subprocess.CompletedProcess:
        """Until it ends; nothing of it is left then, whatever happens here."""
        try:
            out, err = self.popen.communicate(timeout=900)
            return subprocess.CompletedProcess(self.popen.args, self.popen.returncode, out, err)
        finally:
            self.kill()

    def alive(self) -> list[int]:
        """Its processes: the mark in their environment tells them from those of other sweeps."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
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
        while left := self.alive():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9: driver, trials, evaluators, Ray."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        while left := self.alive():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def sweep(*argv, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run one to its end."""
    return Process(*argv, cwd=cwd).wait()
