"""Where the default sweep's time goes: processor time of each kind of process, and within training and evaluation.

`python scripts/benchmarks/profile_sweep.py --out results/bench` runs the default sweep once and adds up the processor time
of its processes by kind; then it trains and plays one codec of that space in this process, on one thread as in
a trial, under PyTorch's profiler. Writes profile.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import torch
from bench_pack import QUICKSTART
from bench_sweep import Watched, processor_s
from bench_variants import CHOSEN
from marked import marked
from torch.profiler import ProfilerActivity, profile, record_function

from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import Trainer, joint_backward
from m2ray.util.tables import markdown

KINDS = {  # by how a process's command line begins
    "ray::ImplicitFunc": "training",
    "ray::Evaluator": "evaluation, diagnosis",
    "ray::IDLE": "training",  # between two trials
}
STEPS = 12


class Profiled(Watched):
    """A sweep whose processes' processor time is kept by process."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        super().__init__(arguments, cache)
        self.spent: dict[int, tuple[str, float]] = {}

    def look(self) -> None:
        """Take in what its processes have done."""
        for folder in marked(self._mark):
            with contextlib.suppress(OSError, IndexError, ValueError):
                title = (folder / "cmdline").read_bytes().split(b"\0")[:3]
                words = b" ".join(title).decode(errors="replace")
                kind = next((kind for begins, kind in KINDS.items() if words.startswith(begins)), "Ray's own")
                if "m2ray.sweep" in words:
                    kind = "driver: start, search, board, reports"
                self.spent[int(folder.name)] = (kind, processor_s(folder))


def processes() -> tuple[float, dict[str, float]]:
    """Wall time of the default sweep, and processor time by kind of process."""
    with tempfile.TemporaryDirectory() as folder:
        run = Profiled(["--results", str(Path(folder) / "results")], Path(folder) / "cache")
        wall = run.through()
    kinds: dict[str, float] = {}
    for kind, spent in run.spent.values():
        kinds[kind] = kinds.get(kind, 0.0) + spent
    return wall, kinds


def operations(config: TrialConfig) -> dict[str, list[list[str]]]:
    """The costliest operations of training steps, and of playing the search split."""
    torch.set_num_threads(1)
    receiver, tables = load_receiver(config.receiver), {}
    with tempfile.TemporaryDirectory() as folder:
        training = Trainer(config, 0, receiver, Path(folder), lambda *_: None, {"config": "profiled"})
        training.apply_step(*joint_backward([training])[0])
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(STEPS):
                training.apply_step(*joint_backward([training])[0])
        tables[f"training, {STEPS} steps of {config.training.batch_size}"] = table_of(seen)
        names = ["normal", "null", "random", "shuffle", "P0", "P1"]
        with profile(activities=[ProfilerActivity.CPU]) as seen, record_function("evaluate"):
            evaluate(
                receiver, training.search, "search", names, config.evaluation, codec=training.loss_module.codec
            )
        tables[f"evaluation, {len(training.search)} episodes under {len(names)} conditions"] = table_of(seen)
        training.close()
    return tables


def table_of(seen: profile, rows: int = 6) -> list[list[str]]:
    """The operations with the most time of their own; what Python spends between them is `evaluate`'s own."""
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    lines = [
        [event.key.removeprefix("aten::"), f"{100 * event.self_cpu_time_total / whole:.0f} %", str(event.count)]
        for event in events[:rows]
    ]
    return [["operation", "share", "calls"], *lines]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for profile.md")
    args = parser.parse_args()
    wall, kinds = processes()
    whole, cores = sum(kinds.values()), len(os.sched_getaffinity(0))
    about = (
        f"`python scripts/benchmarks/profile_sweep.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, load "
        f"{os.getloadavg()[0]:.1f}. The default sweep took {wall:.0f} s on {cores} cores, of which its processes "
        f"computed {100 * whole / wall / cores:.0f} %."
    )
    by_kind = [["processes", "processor time, s", "share"]]
    by_kind += [
        [kind, f"{spent:.0f}", f"{100 * spent / whole:.0f} %"]
        for kind, spent in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    parts = ["# Where the default sweep's time goes", about, markdown(by_kind)]
    config = load_plan(QUICKSTART).config(CHOSEN)
    for name, table in operations(config).items():
        parts += [f"## {name[0].upper()}{name[1:]}, on one thread", markdown(table)]
    text = "\n\n".join(parts) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "profile.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
