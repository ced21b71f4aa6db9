"""Samples per second and memory of eight codecs trained in one process, against eight processes.

Used by scripts/benchmarks/bench.py. Packed and separate training train the same eight codecs (the configuration of
search_spaces/quickstart.yaml with eight learning rates, batches of 8) for the same steps, in turns, in processes
of their own. Memory is the sum of the processes' proportional set sizes while all are training.
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


def train_members(receiver: str, numbers: range, threads: int, steps: int, barrier: Any, results: Any) -> None:
    """Train some of the eight codecs in this process; put the seconds and the bytes it took into the queue."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_receiver(receiver)
        pack = [
            Trainer(
                member_config(receiver, n), 0, loaded, Path(folder) / str(n), lambda *_: None, {"config": str(n)}
            )
            for n in numbers
        ]

        def step() -> None:
            for trainer, result in zip(pack, joint_backward(pack), strict=True):
                trainer.apply_step(*result)

        for _ in range(3):
            step()
        barrier.wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - start
        barrier.wait()
        results.put((seconds, proportional_set_size(psutil.Process())))
        barrier.wait()  # no process ends, and so frees memory, before all have measured theirs


def measure(receiver: str, processes: int, steps: int, cores: int) -> Measurement:
    """Train the eight codecs, divided among some processes."""
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    share = MEMBERS // processes
    # One process uses all cores. Several use one thread each, since more would compete for the cores.
    threads = cores if processes == 1 else 1
    workers = [
        context.Process(
            target=train_members,
            args=(receiver, range(i * share, (i + 1) * share), threads, steps, barrier, results),
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
    """Compare packed with separate training by medians over rounds, in which the two take turns."""
    cores = torch.get_num_threads()
    packed, separate = [], []
    for _ in range(rounds):
        packed.append(measure(receiver, 1, steps, cores))
        separate.append(measure(receiver, MEMBERS, steps, cores))
    speed = [statistics.median(each.samples_per_s for each in sort) for sort in (packed, separate)]
    memory = [statistics.median(each.memory_bytes for each in sort) for sort in (packed, separate)]
    return {
        "packed_ratio": speed[0] / speed[1],
        "packed_memory_ratio": memory[0] / memory[1],
        "packed_samples_per_s": {"packed": speed[0], "separate": speed[1]},
        "packed_rounds": [[round(each.samples_per_s, 1) for each in sort] for sort in (packed, separate)],
        "packed_memory_gb": {"packed": memory[0] / 1e9, "separate": memory[1] / 1e9},
    }
