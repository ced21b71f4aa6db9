"""Benchmark m2ray against the reference attempt's loop, and measure what packing, precision and a sweep cost.

    python scripts/benchmarks/bench.py --out FOLDER [--receiver mini] [--seconds 20] [--parts train,eval,...]

`train` and `eval` time the reference loop (`reference_loop.py`) and m2ray on the same receiver, episodes, codec,
objectives and decoding. Losses and answers of the two are compared before anything is timed. The two take turns
within one run; figures are ratios of medians. Each is measured with the prefix in every place. Figures without a
place are those of `after`, behind B's text: what precedes the prefix need not be computed again there.

Writes bench.json and bench.md. Parts that are not in --parts keep the figures they have there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_pack import bench_pack
from bench_sweep import bench_start, bench_sweep
from bench_variants import bench_variants
from reference_loop import answer_condition, batch_loss
from timing import median_times
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.ray_internals import MALLOC
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads
from m2ray.training.step import CodecLoss
from m2ray.util.tables import markdown

SPACE = Path(__file__).parents[2] / "search_spaces" / "attempt-02.yaml"
CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1")
BATCHES = (8, 32, 64, 128)
NAIVE_BATCH = 8  # samples and episodes that the reference loop is timed on


def training_calls(
    config: TrialConfig, receiver: Receiver
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return the training steps to time, by name, and both losses of the first batch.

    Raises:
        RuntimeError: The two losses differ by more than 0.1 %.
    """
    torch.manual_seed(0)
    codec, heads = Codec(config.codec, receiver), Heads(config, receiver)
    codec_loss = CodecLoss(config, codec, heads, receiver)
    optimizer = torch.optim.AdamW(codec_loss.parameters(), lr=1e-4, fused=True)  # the same for both
    samples = episodes(level(config.task.level), range(9_000_000, 9_000_000 + max(BATCHES)), "train")

    def step(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def fast_step(size: int) -> None:
        step(codec_loss(samples[:size], config.codec.k, 1, False)[0])

    def first_step(size: int) -> None:
        receiver.clear_caches()
        fast_step(size)

    def naive_loss() -> Tensor:
        return batch_loss(config, codec, heads, receiver, samples[:NAIVE_BATCH])

    with torch.no_grad():
        losses = {
            "fast": float(codec_loss(samples[:NAIVE_BATCH], config.codec.k, 1, False)[0]),
            "naive": float(naive_loss()),
        }
    if abs(losses["fast"] - losses["naive"]) > 1e-3 * abs(losses["naive"]):
        raise RuntimeError(f"m2ray and the reference loop compute different losses: {losses}")
    calls: dict[str, Callable[[], Any]] = {f"batch {size}": partial(fast_step, size) for size in BATCHES}
    calls |= {f"first, batch {size}": partial(first_step, size) for size in BATCHES}
    return {**calls, "naive": lambda: step(naive_loss())}, losses


def bench_training(config: TrialConfig, receiver: Receiver, seconds: float) -> dict[str, Any]:
    """Measure training samples per second with the attempt's objectives.

    The receiver's states of messages and prompts are cached. `train_ratio` is of samples that were seen before,
    by another trial on the same receiver or in another epoch; `train_ratio_first` is of samples seen for the
    first time.
    """
    calls, losses = training_calls(config, receiver)
    times = median_times(calls, seconds)
    rates = {
        name: (NAIVE_BATCH if name == "naive" else int(name.rpartition(" ")[2])) / took
        for name, took in times.items()
    }

    def best(kind: str) -> str:
        return max((name for name in rates if name.startswith(kind)), key=lambda name: rates[name])

    return {
        "train_ratio": rates[best("batch")] / rates["naive"],
        "train_ratio_batch8": rates["batch 8"] / rates["naive"],
        "train_ratio_first": rates[best("first")] / rates["naive"],
        "train_best": best("batch"),
        "train_samples_per_s": rates,
        "loss": losses,
    }


def bench_evaluation(config: TrialConfig, receiver: Receiver, seconds: float, count: int = 250) -> dict[str, Any]:
    """Measure episodes per second under all conditions: `count` with m2ray, 8 with the reference loop.

    As in a sweep, P0, P1 and null are evaluated for the first checkpoint and reused for every other one:
    `eval_ratio` is of another checkpoint, `eval_ratio_first` of the first.

    Raises:
        RuntimeError: The two give different answers.
    """
    torch.manual_seed(0)
    codec = Codec(config.codec, receiver).eval()
    many = episodes(level(config.task.level), range(9_500_000, 9_500_000 + count), "search")
    few = many[:NAIVE_BATCH]
    settings = config.evaluation.model_copy(update={"temperature": 0.0, "max_new_tokens": 32})

    def inject(batch: Sequence[Episode], conditions: Sequence[str]) -> dict[str, Injection]:
        inputs = ConditionInputs(receiver, batch, codec, None, settings.batch_size)
        return {name: get_condition(name).inject(inputs) for name in conditions}

    def fast(batch: Sequence[Episode], conditions: Sequence[str] = CONDITIONS) -> dict[str, list[str]]:
        injections = inject(batch, conditions)
        return {name: answer_episodes(receiver, batch, injections[name], settings).texts for name in conditions}

    noise = inject(few, ["random"])["random"].prefixes
    assert noise is not None

    @torch.no_grad()
    def naive() -> dict[str, list[str]]:
        return {name: answer_condition(receiver, codec, few, name, noise) for name in CONDITIONS}

    if (fast_answers := fast(few)) != (naive_answers := naive()):
        raise RuntimeError(f"m2ray and the reference loop answer differently: {fast_answers} and {naive_answers}")
    per_checkpoint = [name for name in CONDITIONS if get_condition(name).depends_on == "checkpoint"]
    calls = {"first": lambda: fast(many), "other": lambda: fast(many, per_checkpoint), "naive": naive}
    times = median_times(calls, seconds)
    rates = {name: (len(few) if name == "naive" else count) / took for name, took in times.items()}
    return {
        "eval_ratio": rates["other"] / rates["naive"],
        "eval_ratio_first": rates["first"] / rates["naive"],
        "eval_episodes_per_s": rates,
    }


def by_place(
    part: Callable[[TrialConfig, Receiver, float], dict[str, Any]],
    name: str,
    config: TrialConfig,
    receiver: Receiver,
    seconds: float,
) -> dict[str, Any]:
    """Measure a part with the prefix behind B's text, and under `NAME_places` in the other places."""
    figures = {}
    for place in ("after", "message", "before"):
        codec = config.codec.model_copy(update={"place": place})
        figures[place] = part(config.model_copy(update={"codec": codec}), receiver, seconds)
    return {**figures["after"], f"{name}_places": {place: figures[place] for place in ("message", "before")}}


PARTS: dict[str, Callable[[TrialConfig, Receiver, float], dict[str, Any]]] = {
    "train": lambda config, receiver, seconds: by_place(bench_training, "train", config, receiver, seconds),
    "eval": lambda config, receiver, seconds: by_place(bench_evaluation, "eval", config, receiver, seconds),
    "pack": lambda config, receiver, seconds: bench_pack(config.receiver, steps=int(2 * seconds)),
    "variants": lambda config, receiver, seconds: bench_variants(config.receiver, seconds),
    "start": lambda config, receiver, seconds: bench_start(),
    "sweep": lambda config, receiver, seconds: bench_sweep(),
}
# Figures of the table: name, unit, goal, and the side of the goal that meets it.
SHOWN = [
    ("train_ratio", "x", 20.0, ">="),
    ("train_ratio_batch8", "x", 8.0, ">="),
    ("train_ratio_first", "x", None, ""),
    ("eval_ratio", "x", 50.0, ">="),
    ("eval_ratio_first", "x", None, ""),
    ("packed_ratio", "x", 1.2, ">="),
    ("packed_memory_ratio", "x", 0.35, "<="),
    ("bf16_ratio", "x", None, ""),
    ("compile_ratio", "x", None, ""),
    ("compile_s", "s", None, ""),
    ("overhead_ratio", "x", 1.25, "<="),
    ("warm_start_s", "s", 8.0, "<="),
    ("plain_start_s", "s", None, ""),
    ("peak_memory_gb", "GB", 3.0, "<="),
    ("default_sweep_s", "s", 300.0, "<="),
]


def figures_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table of the measured figures beside their goals."""
    table = [["figure", "value", "goal", ""]]
    for name, unit, goal, side in SHOWN:
        if name not in figures:
            continue
        value = figures[name]
        met = "" if goal is None else "met" if (value >= goal if side == ">=" else value <= goal) else "missed"
        table.append([name, f"{value:.2f} {unit}", "" if goal is None else f"{side} {goal:g} {unit}", met])
        for place, others in figures.get(f"{name.partition('_')[0]}_places", {}).items():
            table.append([f"{name}, prefix in place {place!r}", f"{others[name]:.2f} {unit}", "", ""])
    return table


def processor_name() -> str:
    """Return the processor's model name, or its architecture where the kernel gives none."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1] if model else platform.machine()


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
        (args.out / "bench.md").write_text(markdown(figures_table(figures)) + "\n")
    print(markdown(figures_table(figures)))


if __name__ == "__main__":
    main()
