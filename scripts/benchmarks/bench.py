"""Benchmark m2ray against a plain batched implementation, and measure what packing, precision and a sweep cost.

    python scripts/benchmarks/bench.py --out FOLDER [--receiver mini] [--seconds 20] [--parts train,eval,...]

`train` and `eval` time m2ray, the peer (`peer.py`: batched PyTorch and Hugging Face) and the reference attempt's
loop (`reference_loop.py`: one sample at a time), with the prefix in each place of B's prompt; see `bench_peer.py`.

Writes bench.json and bench.md. Parts that are not in --parts keep the figures they have there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_pack import bench_pack
from bench_peer import bench_evaluation, bench_training, in_places
from bench_sweep import bench_start, bench_sweep
from bench_variants import bench_variants

from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.ray_internals import MALLOC
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.model.numeric_type import processor_name
from m2ray.receiver.receiver import Receiver
from m2ray.util.tables import markdown

SPACE = Path(__file__).parents[2] / "search_spaces" / "attempt-02.yaml"
PLACES = {"message": "the message's place", "before": "before the prompt", "after": "behind B's text"}


def training(config: TrialConfig, receiver: Receiver, seconds: float) -> dict[str, Any]:
    """Measure training in every place."""
    return {"train": in_places(partial(bench_training, receiver=receiver, seconds=seconds), config)}


def evaluation(config: TrialConfig, receiver: Receiver, seconds: float) -> dict[str, Any]:
    """Measure evaluation in every place."""
    return {"eval": in_places(partial(bench_evaluation, receiver=receiver, seconds=seconds), config)}


PARTS: dict[str, Callable[[TrialConfig, Receiver, float], dict[str, Any]]] = {
    "train": training,
    "eval": evaluation,
    "pack": lambda config, receiver, seconds: bench_pack(config.receiver, steps=int(2 * seconds)),
    "variants": lambda config, receiver, seconds: bench_variants(config.receiver, seconds),
    "start": lambda config, receiver, seconds: bench_start(),
    "sweep": lambda config, receiver, seconds: bench_sweep(),
}


class Goal(NamedTuple):
    """What a figure should reach."""

    value: float
    side: str = ">="

    def met(self, value: float) -> bool:
        """Return whether a figure reaches it."""
        return value >= self.value if self.side == ">=" else value <= self.value


SHARE_MET = 0.7  # of the rate of matrix products: no code can do much better, whatever the ratio
# Figures against the peer: name, label, key of the share, goals by place.
PEER = [
    ("train", "training, best batch", "train_share", {"message": 2.0, "after": 4.0}),
    ("train_small_batch", "training, batch 8", "", {}),
    ("train_first", "training, samples seen for the first time", "", {}),
    ("eval", "evaluation, another checkpoint on a known split", "eval_share", {"message": 4.0, "after": 8.0}),
    ("eval_first", "evaluation, first checkpoint", "eval_first_share", {"message": 2.0, "after": 2.0}),
]
NAIVE = [("train_naive", "training, best batch"), ("eval_naive", "evaluation, another checkpoint")]
# Other figures: name, unit, goal.
OTHERS = [
    ("packed_ratio", "x", Goal(1.2)),
    ("packed_in_turn_ratio", "x", None),
    ("packed_memory_ratio", "x", Goal(0.35, "<=")),
    ("bf16_ratio", "x", None),
    ("compile_ratio", "x", None),
    ("compile_s", "s", None),
    ("overhead_ratio", "x", Goal(1.25, "<=")),
    ("warm_start_s", "s", Goal(8.0, "<=")),
    ("plain_start_s", "s", None),
    ("peak_memory_gb", "GB", Goal(3.0, "<=")),
    ("default_sweep_s", "s", Goal(240.0, "<=")),
]


def peer_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table of speeds over the peer, by place, and over the attempt's loop."""
    table = [["over the peer", "prefix", "times as fast", "share of the matmul rate", "goal", ""]]
    for name, label, share_key, goals in PEER:
        for place, where in PLACES.items():
            measured = figures.get(name.partition("_")[0], {}).get(place, {})
            if name not in measured:
                continue
            value, share, goal = measured[name], measured.get(share_key), goals.get(place)
            met = goal is not None and (value >= goal or (share or 0) >= SHARE_MET)
            shown = ["", ""] if goal is None else [f">= {goal:g} x", "met" if met else "missed"]
            share_text = "" if share is None else f"{share:.0%}"
            table.append([label, where, f"{value:.2f} x", share_text, *shown])
    for name, label in NAIVE:
        for place, where in PLACES.items():
            measured = figures.get(name.partition("_")[0], {}).get(place, {})
            if name in measured:
                table.append([f"over the attempt's loop: {label}", where, f"{measured[name]:.1f} x", "", "", ""])
    return table


def figures_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table of the other figures beside their goals."""
    table = [["figure", "value", "goal", ""]]
    for name, unit, goal in OTHERS:
        if name in figures:
            value = figures[name]
            shown = ["", ""]
            if goal is not None:
                shown = [f"{goal.side} {goal.value:g} {unit}", "met" if goal.met(value) else "missed"]
            table.append([name, f"{value:.2f} {unit}", *shown])
    return table


def page(figures: dict[str, Any]) -> str:
    """Return bench.md."""
    return f"{markdown(peer_table(figures))}\n\n{markdown(figures_table(figures))}\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--receiver", default="mini")
    parser.add_argument("--seconds", type=float, default=20.0, help="least duration of each measurement")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated, some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and bench.md")
    args = parser.parse_args()
    if not MALLOC.keys() <= os.environ.keys():  # allocate memory as a sweep's processes do, for both loops
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    receiver = load_receiver(args.receiver)
    config = load_plan(SPACE).points["attempt-02"].model_copy(update={"receiver": args.receiver})
    file = args.out / "bench.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.parts.split(","):
        figures |= PARTS[name](config, receiver, args.seconds)
        figures.setdefault("runs", {})[name] = {
            "receiver": receiver.digest,
            "device": str(receiver.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "processor": processor_name(),
            "load_average": os.getloadavg()[0],
            "command": f"python scripts/benchmarks/bench.py --parts {name} --seconds {args.seconds:g}",
        }
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")
        (args.out / "bench.md").write_text(page(figures))
    print(page(figures))


if __name__ == "__main__":
    main()
