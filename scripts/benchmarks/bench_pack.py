"""Samples per second and memory of eight codecs trained in one process, in eight, and one after another.

Used by scripts/benchmarks/bench.py. All train the same eight codecs (the configuration of
search_spaces/quickstart.yaml with eight learning rates, batches of 8) for the same steps, in turns, in processes
of their own:

- packed: all eight in one process, their rows in common forward passes;
- separate: eight processes at a time;
- in turn: each process trains its share of the codecs one after another; there are as many processes as CPU cores,
  or one on a GPU. This is what a sweep without packs does.

Memory is the sum of the processes' proportional set sizes while all are training.
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from processes import proportional_set_size

from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import Trainer, joint_backward

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
MEMBERS, BATCH = 8, 8


class Measurement(NamedTuple):
    """Speed and memory of all eight codecs."""

    samples_per_s: float
    memory_bytes: int


def member_config(receiver: str, number: int) -> TrialConfig:
    """Return the configuration of one of the eight codecs."""
    plan = load_plan(QUICKSTART)
    config = plan.config({"codec.k": 8, "training.lr": 5e-4 * 1.2**number, "losses.slots.weight": 10.0})
    training = config.training.model_copy(update={"batch_size": BATCH, "epochs": 1, "epoch_samples": 1 << 20})
    splits = config.splits.model_copy(update={"search": "1000:1008"})
    return config.model_copy(update={"training": training, "splits": splits, "receiver": receiver})


def train_members(
    receiver: str, numbers: range, together: bool, threads: int, steps: int, barrier: Any, results: Any
) -> None:
    """Train some of the eight codecs in this process, as a pack or one after another.

    Puts the seconds and the bytes it took into the queue.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_receiver(receiver)
        pack = [
            Trainer(
                member_config(receiver, n), 0, loaded, Path(folder) / str(n), lambda *_: None, {"config": str(n)}
            )
            for n in numbers
        ]

        def step(some: list[Trainer]) -> None:
            for trainer, result in zip(some, joint_backward(some), strict=True):
                trainer.apply_step(*result)

        packs = [pack] if together else [[trainer] for trainer in pack]
        for some in packs * 3:
            step(some)
        barrier.wait()
        start = time.perf_counter()
        for some in packs:
            for _ in range(steps):
                step(some)
        seconds = time.perf_counter() - start
        barrier.wait()
        results.put((seconds, proportional_set_size(psutil.Process())))
        barrier.wait()  # no process ends, and so frees memory, before all have measured theirs


def measure(receiver: str, processes: int, together: bool, steps: int, cores: int) -> Measurement:
    """Train the eight codecs, divided among some processes, each with its share together or one after another."""
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    share = MEMBERS // processes
    # One process uses all cores. Several use one thread each, since more would compete for the cores.
    threads = cores if processes == 1 else 1
    workers = [
        context.Process(
            target=train_members,
            args=(receiver, range(i * share, (i + 1) * share), together, threads, steps, barrier, results),
        )
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    measured = [results.get(timeout=900) for _ in workers]
    for worker in workers:
        worker.join()
    slowest = max(seconds for seconds, _ in measured)
    return Measurement(MEMBERS * BATCH * steps / slowest, sum(memory for _, memory in measured))


def bench_pack(receiver: str, steps: int, rounds: int = 7) -> dict[str, Any]:
    """Compare packed with separate training by medians over rounds, in which they take turns."""
    cores = torch.get_num_threads()
    at_once = 1 if torch.cuda.is_available() else max(n for n in (1, 2, 4, MEMBERS) if n <= cores)
    sides = {"packed": (1, True), "separate": (MEMBERS, True), "in turn": (at_once, False)}
    found: dict[str, list[Measurement]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, (processes, together) in sides.items():
            found[side].append(measure(receiver, processes, together, steps, cores))
    speed = {side: statistics.median(each.samples_per_s for each in found[side]) for side in sides}
    memory = {side: statistics.median(each.memory_bytes for each in found[side]) for side in sides}
    return {
        "packed_ratio": speed["packed"] / speed["separate"],
        "packed_in_turn_ratio": speed["packed"] / speed["in turn"],
        "packed_memory_ratio": memory["packed"] / memory["separate"],
        "packed_samples_per_s": speed,
        "packed_rounds": {side: [round(each.samples_per_s, 1) for each in found[side]] for side in sides},
        "packed_memory_gb": {side: value / 1e9 for side, value in memory.items()},
    }
