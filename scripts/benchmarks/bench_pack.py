"""Eight codecs trained in one process on one receiver, against eight processes: samples a second, and memory.

Used by scripts/benchmarks/bench.py. Both sides train the same eight codecs (the recipe of search_spaces/quickstart.yaml with
eight learning rates, batches of 8) for the same steps, the sides taking turns, in processes of their own. A side's
memory is the sum of its processes' proportional set sizes while all are training.
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import Trainer, joint_backward

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
MEMBERS, BATCH = 8, 8


def member_config(receiver: str, number: int) -> TrialConfig:
    """The configuration of one of the eight."""
    plan = load_plan(QUICKSTART)
    config = plan.config({"codec.k": 8, "training.lr": 5e-4 * 1.2**number, "losses.slots.weight": 10.0})
    training = config.training.model_copy(update={"batch_size": BATCH, "epochs": 1, "epoch_samples": 1 << 20})
    splits = config.splits.model_copy(update={"search": "1000:1008"})
    return config.model_copy(update={"training": training, "splits": splits, "receiver": receiver})


def proportional_set_size() -> int:
    """The share of memory of a process, in bytes; what several processes map is divided among them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no line Pss")


def side(receiver: str, numbers: range, threads: int, steps: int, ready: Any, out: Any) -> None:
    """Train some of the eight in this process; tell how long it took and what memory it held."""
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
            for training, result in zip(pack, joint_backward(pack), strict=True):
                training.apply_step(*result)

        for _ in range(3):
            step()
        ready.wait()
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        took = time.perf_counter() - begun
        ready.wait()
        out.put((took, proportional_set_size()))
        ready.wait()  # nobody leaves, and so gives memory back, before all have told theirs


def measure(receiver: str, processes: int, steps: int, cores: int) -> tuple[float, int]:
    """Samples a second and bytes of the eight, spread over so many processes."""
    context = mp.get_context("spawn")
    ready, out = context.Barrier(processes), context.Queue()
    each = MEMBERS // processes
    # A process alone has all cores; of many, each has one thread, or they would only hinder each other.
    threads = cores if processes == 1 else 1
    workers = [
        context.Process(target=side, args=(receiver, range(i * each, (i + 1) * each), threads, steps, ready, out))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    told = [out.get(timeout=900) for _ in workers]
    for worker in workers:
        worker.join()
    slowest = max(took for took, _ in told)
    return MEMBERS * BATCH * steps / slowest, sum(held for _, held in told)


def bench_pack(receiver: str, steps: int, rounds: int = 7) -> dict[str, Any]:
    """Packed over separate, medians of rounds in which the sides take turns."""
    cores = torch.get_num_threads()
    told = [(measure(receiver, 1, steps, cores), measure(receiver, MEMBERS, steps, cores)) for _ in range(rounds)]
    rate = [statistics.median(pair[i][0] for pair in told) for i in range(2)]
    held = [statistics.median(pair[i][1] for pair in told) for i in range(2)]
    return {
        "packed_ratio": rate[0] / rate[1],
        "packed_memory_ratio": held[0] / held[1],
        "packed_samples_per_s": {"packed": rate[0], "separate": rate[1]},
        "packed_rounds": [[round(pair[i][0], 1) for pair in told] for i in range(2)],
        "packed_memory_gb": {"packed": held[0] / 1e9, "separate": held[1] / 1e9},
    }
