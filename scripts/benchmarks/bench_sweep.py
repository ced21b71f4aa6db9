"""Time, memory and start-up of whole sweeps.

Used by scripts/benchmarks/bench.py. Compute is the processor time of the processes that train and evaluate,
counted from when each is first seen training or evaluating. `overhead_ratio` is the sweep's wall time in
core-seconds over that compute: what starting and waiting cost.
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

import psutil
import yaml
from processes import marked_processes, processor_s, proportional_set_size

WORKERS = ("ray::ImplicitFunc", "ray::Evaluator")
PLAIN = Path(__file__).parent / "plain_start.py"
MARK = "M2RAY_BENCH"
FIRST: dict[str, Any] = {  # a sweep with epochs of one step
    "name": "first",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2020"},
        "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 32},
        "evaluation": {"text_bytes": [], "scale_gates": []},
    },
    "points": {"one": {}},
    "judge": {"select": 0, "confirm": 0, "diagnose": 0},
}


class WatchedSweep:
    """A running sweep with all processes that it starts, found by an environment variable."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.peak_bytes = 0
        self.compute = dict[int, tuple[float, float]]()  # processor time of each worker: first and last seen
        self.start = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "m2ray.sweep", *arguments],
            stdout=subprocess.DEVNULL,
            env={**os.environ, MARK: self.mark, "XDG_CACHE_HOME": str(cache)},
        )

    def sample(self) -> None:
        """Measure the memory and the processor time of its processes."""
        memory_bytes = 0
        for process in marked_processes(MARK, self.mark):
            with contextlib.suppress(psutil.Error, IndexError):
                memory_bytes += proportional_set_size(process)
                if process.cmdline()[0].startswith(WORKERS):
                    spent = processor_s(process)
                    first, _ = self.compute.get(process.pid, (spent, spent))
                    self.compute[process.pid] = (first, spent)
        self.peak_bytes = max(self.peak_bytes, memory_bytes)

    def wait_until(self, happened: Callable[[], bool], pause: float) -> float:
        """Return the seconds from its start until something has happened, or it has ended."""
        while self.popen.poll() is None and not happened():
            time.sleep(pause)
        return time.monotonic() - self.start

    def wait(self) -> float:
        """Sample once a second until it ends; return the seconds it ran.

        Raises:
            RuntimeError: It failed.
        """

        def sampled() -> bool:
            self.sample()
            return False

        seconds = self.wait_until(sampled, 1.0)  # a sample takes a few hundredths of a second of a core
        if self.popen.returncode:
            raise RuntimeError(f"the sweep ended with exit code {self.popen.returncode}")
        return seconds


def first_step_s(results: Path, cache: Path) -> float:
    """Return the seconds until the sweep `FIRST` has made its first step, scored the codec and saved it."""
    results.mkdir(parents=True)
    file = results / "first.yaml"
    file.write_text(yaml.dump(FIRST))
    sweep = WatchedSweep([str(file), "--results", str(results)], cache)
    checkpoint = results / "first" / "checkpoints" / "one" / "seed-0" / "epoch-01" / "config.json"
    seconds = sweep.wait_until(checkpoint.is_file, 0.05)
    if sweep.popen.wait() or not checkpoint.is_file():
        raise RuntimeError(f"the sweep in {results} failed")
    return seconds


def bench_start() -> dict[str, Any]:
    """Time two small sweeps, of which the second starts warm, and a plain script on the same libraries."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cold, warm = (first_step_s(root / name, root / "cache") for name in ("cold", "warm"))
        env = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # otherwise Ray writes a token to the user's home
        subprocess.run([sys.executable, str(PLAIN), folder], check=True, capture_output=True, env=env)
        plain = float((root / "first-step").read_text())
    return {"warm_start_s": warm, "cold_start_s": cold, "plain_start_s": plain}


def bench_sweep() -> dict[str, Any]:
    """Time the default sweep."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sweep = WatchedSweep(["--results", str(root / "default")], root / "cache")
        seconds = sweep.wait()
        compute = sum(last - first for first, last in sweep.compute.values())
    return {
        "overhead_ratio": seconds * cores / compute,
        "default_sweep_s": seconds,
        "default_sweep_compute_core_s": compute,
        "peak_memory_gb": sweep.peak_bytes / 1e9,
    }
