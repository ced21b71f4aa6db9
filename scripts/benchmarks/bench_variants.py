"""What would make a training step faster, measured so that defaults stand on figures: bfloat16 and torch.compile.

Used by scripts/benchmarks/bench.py. The recipe of search_spaces/quickstart.yaml, a step of its own batch, forward and
backward; `bf16_ratio` is that of `training.precision: bfloat16` over float32, `compile_ratio` that of a
compiled receiver over one as it is, `compile_s` what compiling costs each process once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from bench_pack import QUICKSTART

from m2ray.codec.codec import Codec
from m2ray.config.plan import load_plan
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads
from m2ray.training.step import CodecLoss

CHOSEN = {"codec.k": 8, "training.lr": 1e-3, "losses.slots.weight": 10.0}


def step_of(receiver: str, precision: str = "float32", compiled: bool = False) -> Callable[[], float]:
    """A training step, which gives its loss; receivers are not shared, since compiling changes one for good."""
    loaded = load_receiver(receiver)
    config = load_plan(QUICKSTART).config(CHOSEN).model_copy(update={"receiver": receiver})
    torch.manual_seed(0)
    codec, heads = Codec(config.codec, loaded), Heads(config, loaded)
    trainee = CodecLoss(config, codec.to(loaded.device), heads.to(loaded.device), loaded)
    batch = episodes(level(config.task.level), range(9_000_000, 9_000_000 + config.training.batch_size), "train")
    if compiled:
        decoder = loaded.model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, dynamic=True)

    def step() -> float:
        casts = precision == "bfloat16"
        with torch.autocast(loaded.device.type, torch.bfloat16) if casts else nullcontext():
            loss, _ = trainee(batch, config.codec.k, 1, False)
        loss.backward()
        trainee.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def bench_variants(
    receiver: str, in_turns: Callable[[dict[str, Callable[[], Any]], float], dict[str, float]], seconds: float
) -> dict[str, Any]:
    """Time the step as it is, in bfloat16 and compiled, in turns, and check that their losses agree."""
    load_receiver.cache_clear()
    sides = {"plain": step_of(receiver), "bf16": step_of(receiver, precision="bfloat16")}
    load_receiver.cache_clear()
    sides["compiled"] = step_of(receiver, compiled=True)
    begun = time.perf_counter()
    losses = {"compiled": sides["compiled"]()}
    compile_s = time.perf_counter() - begun
    losses |= {name: sides[name]() for name in ("plain", "bf16")}
    for name, bound in (("compiled", 1e-3), ("bf16", 3e-2)):
        if abs(losses[name] - losses["plain"]) > bound * abs(losses["plain"]):
            raise RuntimeError(f"the sides compute different losses: {losses}")
    times = in_turns(dict(sides), seconds)
    return {
        "bf16_ratio": times["plain"] / times["bf16"],
        "compile_ratio": times["plain"] / times["compiled"],
        "compile_s": compile_s,
        "variant_losses": losses,
    }
