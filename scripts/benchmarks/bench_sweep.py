"""The default sweep as a whole: its time over its trials' compute, its memory, and how soon a second one trains.

Used by scripts/benchmarks/bench.py. Compute is the processor time of the processes that train and evaluate, from when each is
first seen at work; the sweep's wall time in core-seconds over it says what starting and waiting cost.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from marked import marked

WORKERS = ("ray::ImplicitFunc", "ray::Evaluator")
PLAIN = Path(__file__).parent / "plain_start.py"
TICKS = os.sysconf("SC_CLK_TCK")
FIRST: dict[str, Any] = {  # a sweep whose epochs are of one step
    "name": "first",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2020"},
        "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 32},
        "evaluation": {"text_bytes": [], "scale_gates": []},
    },
    "points": {"one": {}},
    "judge": {"select": 0, "confirm": 0, "diagnose": 0},
}


def processor_s(folder: Path) -> float:
    """Processor time of a process, by its folder below /proc, in seconds."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Watched:
    """A command with everything that it starts, told apart by its environment."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        mark = uuid.uuid4().hex
        self._mark = f"M2RAY_BENCH={mark}"
        self.peak, self.compute = 0, dict[int, tuple[float, float]]()
        self.begun = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "m2ray.sweep", *arguments],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "M2RAY_BENCH": mark, "XDG_CACHE_HOME": str(cache)},
        )

    def look(self) -> None:
        """Take in what its processes hold and have done."""
        held = 0
        for folder in marked(self._mark):
            with contextlib.suppress(OSError, IndexError, ValueError):
                rollup = (folder / "smaps_rollup").read_text()
                held += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
                title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
                if title.startswith(WORKERS):
                    spent = processor_s(folder)
                    first, _ = self.compute.get(int(folder.name), (spent, spent))
                    self.compute[int(folder.name)] = (first, spent)
        self.peak = max(self.peak, held)

    def until(self, happened: Callable[[], bool], pause: float) -> float:
        """Seconds since its start until something has happened, or it has ended."""
        while self.popen.poll() is None and not happened():
            time.sleep(pause)
        return time.monotonic() - self.begun

    def through(self) -> float:
        """Seconds until its end, looked at all the while.

        Raises:
            RuntimeError: it did not end well.
        """

        def looked() -> bool:
            self.look()
            return False

        wall = self.until(looked, 1.0)  # a look takes a few hundredths of a second of a core
        if self.popen.returncode:
            raise RuntimeError(f"the sweep left with {self.popen.returncode}")
        return wall


def first_step_s(results: Path, cache: Path) -> float:
    """Seconds until the sweep `FIRST` has made its first step, scored the codec and saved it."""
    results.mkdir(parents=True)
    file = results / "first.yaml"
    file.write_text(yaml.dump(FIRST))
    watched = Watched([str(file), "--results", str(results)], cache)
    done = results / "first" / "checkpoints" / "one" / "seed-0" / "epoch-01" / "config.json"
    seconds = watched.until(done.is_file, 0.05)
    if watched.popen.wait() or not done.is_file():
        raise RuntimeError(f"the sweep in {results} failed")
    return seconds


def bench_start() -> dict[str, Any]:
    """Two small sweeps, of which the second starts warm, and what a plain script on the same libraries takes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cold, warm = (first_step_s(root / name, root / "cache") for name in ("cold", "warm"))
        plain = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # else Ray leaves a token in the user's home
        subprocess.run([sys.executable, str(PLAIN), folder], check=True, capture_output=True, env=plain)
        first = float((root / "first-step").read_text())
    return {"warm_start_s": warm, "cold_start_s": cold, "plain_start_s": first}


def bench_sweep() -> dict[str, Any]:
    """Run the default sweep."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        watched = Watched(["--results", str(root / "default")], root / "cache")
        wall = watched.through()
        compute = sum(last - first for first, last in watched.compute.values())
    return {
        "overhead_ratio": wall * cores / compute,
        "default_sweep_s": wall,
        "default_sweep_compute_core_s": compute,
        "peak_memory_gb": watched.peak / 1e9,
    }
