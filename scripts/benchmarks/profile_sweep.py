"""Profile the default sweep: processor time by kind of process, and by operation in training and evaluation.

`python scripts/benchmarks/profile_sweep.py --out results/bench` runs the default sweep once and adds up the
processor time of its processes by kind. Then it trains and evaluates one codec of that space in this process under
PyTorch's profiler, on one thread as in a trial. Writes profile.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import psutil
import torch
from bench_pack import QUICKSTART
from bench_sweep import MARK, WatchedSweep
from bench_variants import CHOSEN
from processes import marked_processes, processor_s
from torch.profiler import ProfilerActivity, profile, record_function

from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import Trainer, joint_backward
from m2ray.util.tables import markdown

KINDS = {  # by the beginning of a process's command line
    "ray::ImplicitFunc": "training",
    "ray::Evaluator": "evaluation, diagnosis",
    "ray::IDLE": "training",  # between two trials
}
DRIVER, OTHER = "driver: start, search, leaderboard, reports", "Ray's own"
STEPS = 12


class ProfiledSweep(WatchedSweep):
    """A sweep with the processor time of each of its processes, by process ID."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        super().__init__(arguments, cache)
        self.processor_s: dict[int, tuple[str, float]] = {}

    def sample(self) -> None:
        """Measure the processor time of its processes."""
        for process in marked_processes(MARK, self.mark):
            with contextlib.suppress(psutil.Error):
                self.processor_s[process.pid] = (kind_of(process), processor_s(process))


def kind_of(process: psutil.Process) -> str:
    """Return the kind of a process of a sweep, by its command line."""
    command = " ".join(process.cmdline()[:3])
    if "m2ray.sweep" in command:
        return DRIVER
    return next((kind for beginning, kind in KINDS.items() if command.startswith(beginning)), OTHER)


def profile_processes() -> tuple[float, dict[str, float]]:
    """Return the wall time of the default sweep and the processor time by kind of process, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = ProfiledSweep(["--results", str(Path(folder) / "results")], Path(folder) / "cache")
        seconds = sweep.wait()
    kinds: dict[str, float] = {}
    for kind, spent in sweep.processor_s.values():
        kinds[kind] = kinds.get(kind, 0.0) + spent
    return seconds, kinds


def profile_operations(config: TrialConfig) -> dict[str, list[list[str]]]:
    """Return tables of the costliest operations of training steps and of evaluating the search split."""
    torch.set_num_threads(1)
    receiver, tables = load_receiver(config.receiver), {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, 0, receiver, Path(folder), lambda *_: None, {"config": "profiled"})
        trainer.apply_step(*joint_backward([trainer])[0])
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(STEPS):
                trainer.apply_step(*joint_backward([trainer])[0])
        tables[f"training, {STEPS} steps of {config.training.batch_size}"] = operations_table(profiled)
        names = ["normal", "null", "random", "shuffle", "P0", "P1"]
        episodes, codec = trainer.search_episodes, trainer.loss_module.codec
        with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("evaluate"):
            evaluate(receiver, episodes, "search", names, config.evaluation, codec=codec)
        tables[f"evaluation, {len(episodes)} episodes under {len(names)} conditions"] = operations_table(profiled)
        trainer.close()
    return tables


def operations_table(profiled: profile, rows: int = 6) -> list[list[str]]:
    """Return the operations with the most self time; Python's own time counts as `evaluate`."""
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [
        [event.key.removeprefix("aten::"), f"{100 * event.self_cpu_time_total / total:.0f} %", str(event.count)]
        for event in events[:rows]
    ]
    return [["operation", "share", "calls"], *lines]


def report(seconds: float, kinds: dict[str, float], operations: dict[str, list[list[str]]]) -> str:
    """Return the measurements as a Markdown page."""
    total, cores = sum(kinds.values()), len(os.sched_getaffinity(0))
    summary = (
        f"`python scripts/benchmarks/profile_sweep.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}. The default sweep took {seconds:.0f} s on {cores} cores, of which its "
        f"processes computed {100 * total / seconds / cores:.0f} %."
    )
    by_kind = [["processes", "processor time, s", "share"]]
    by_kind += [
        [kind, f"{spent:.0f}", f"{100 * spent / total:.0f} %"]
        for kind, spent in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    parts = ["# Where the default sweep's time goes", summary, markdown(by_kind)]
    for name, table in operations.items():
        parts += [f"## {name[0].upper()}{name[1:]}, on one thread", markdown(table)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for profile.md")
    args = parser.parse_args()
    seconds, kinds = profile_processes()
    text = report(seconds, kinds, profile_operations(load_plan(QUICKSTART).config(CHOSEN)))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "profile.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
