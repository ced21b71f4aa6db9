"""Training steps in bfloat16 and with torch.compile, the measurements behind the default settings.

Used by scripts/benchmarks/bench.py. The step is that of search_spaces/quickstart.yaml with its own batch size,
forward and backward. `bf16_ratio` is the speed of `training.precision: bfloat16` over float32, `compile_ratio`
that of a compiled receiver over an uncompiled one, `compile_s` what compiling costs each process once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from bench_pack import QUICKSTART
from timing import median_times

from m2ray.codec.codec import Codec
from m2ray.config.plan import load_plan
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads
from m2ray.training.step import CodecLoss

CHOSEN = {"codec.k": 8, "training.lr": 1e-3, "losses.slots.weight": 10.0}


def training_step(receiver: Receiver, precision: str = "float32", compiled: bool = False) -> Callable[[], float]:
    """Return a training step that returns its loss; a compiled receiver stays compiled."""
    config = load_plan(QUICKSTART).config(CHOSEN).model_copy(update={"receiver": receiver.name})
    torch.manual_seed(0)
    codec, heads = Codec(config.codec, receiver), Heads(config, receiver)
    codec_loss = CodecLoss(config, codec.to(receiver.device), heads.to(receiver.device), receiver)
    batch = episodes(level(config.task.level), range(9_000_000, 9_000_000 + config.training.batch_size), "train")
    if compiled:
        decoder = receiver.causal.trunk
        decoder.forward = torch.compile(decoder.forward, dynamic=True)

    def step() -> float:
        bfloat16 = precision == "bfloat16"
        with torch.autocast(receiver.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            loss, _ = codec_loss(batch, config.codec.k, 1, False)
        loss.backward()
        codec_loss.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def bench_variants(receiver: str, seconds: float) -> dict[str, Any]:
    """Time the plain, the bfloat16 and the compiled step.

    Raises:
        RuntimeError: Their losses do not agree.
    """
    load_receiver.cache_clear()
    shared = load_receiver(receiver)
    steps = {"plain": training_step(shared), "bf16": training_step(shared, precision="bfloat16")}
    load_receiver.cache_clear()  # compiling changes a receiver for good
    steps["compiled"] = training_step(load_receiver(receiver), compiled=True)
    start = time.perf_counter()
    losses = {"compiled": steps["compiled"]()}
    compile_s = time.perf_counter() - start
    losses |= {name: steps[name]() for name in ("plain", "bf16")}
    for name, tolerance in (("compiled", 1e-3), ("bf16", 3e-2)):
        if abs(losses[name] - losses["plain"]) > tolerance * abs(losses["plain"]):
            raise RuntimeError(f"the steps compute different losses: {losses}")
    times = median_times(steps, seconds)
    return {
        "bf16_ratio": times["plain"] / times["bf16"],
        "compile_ratio": times["plain"] / times["compiled"],
        "compile_s": compile_s,
        "variant_losses": losses,
    }
