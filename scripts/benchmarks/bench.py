"""How much faster than the reference loop: training and evaluation, the same losses and the same answers. And what
packing trials and the default sweep as a whole cost, and what bfloat16 and torch.compile would bring.

python scripts/benchmarks/bench.py --out FOLDER [--receiver mini] [--seconds 20] [--parts train,eval,pack,variants,start,...]

The naive side is the reference attempt's algorithm, written plainly: per sample two message encodings and three
receiver forwards at batch 1, with logits over the whole vocabulary at every position; evaluation one episode at a
time, the message encoded anew for each condition. The other side is m2ray's own. Both see the same receiver,
episodes, codec, objectives and decoding; their losses and answers are compared before anything is timed. Ratios of
medians, the two sides taking turns within one run. Each is measured with the prefix in every place; the figures
without a place are those of `after`, behind B's text, where what precedes the prefix need not be read again.

Writes bench.json and bench.md; parts that are there already and not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_pack import bench_pack
from bench_sweep import bench_start, bench_sweep
from bench_variants import bench_variants
from torch import Tensor
from torch.nn import functional as F

from m2ray.codec.codec import Codec
from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.cluster import MALLOC
from m2ray.evaluation.conditions import ConditionInputs, Injection, derangement, get_condition
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.layout import Place
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.requests import EncodedMessage
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads, weighted_nll
from m2ray.training.step import CodecLoss
from m2ray.util.tables import markdown

SPACE = Path(__file__).parents[2] / "search_spaces" / "attempt-02.yaml"
CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1")
BATCHES = (8, 32, 64, 128)


# --- the reference loop, as it is described --------------------------------------------------------------------


def naive_reading(receiver: Receiver, message: str) -> EncodedMessage:
    """What the receiver makes of one message, of which nothing is kept from one time to the next."""
    ids_1T = torch.tensor([receiver.tokens(message)], device=receiver.device)
    with torch.no_grad():
        out = receiver.model(ids_1T, use_cache=False, output_hidden_states=True)
    states = out.hidden_states
    return EncodedMessage(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool), states[0], states[1], states[-1])


def naive_nll(receiver: Receiver, episode: Episode, prefix_KD: Tensor, place: Place) -> Tensor:
    """Answer NLL per token, [A], from one forward pass that computes logits for every position."""
    layout = receiver.layout([episode], len(prefix_KD), place)
    embeds_1TD = receiver.embed(layout, prefix_KD[None])
    logits_1TW = receiver.model(inputs_embeds=embeds_1TD, use_cache=False).logits
    frame = receiver.answer_frame(episode.level)
    first = int(layout.answer_B[0]) - 1
    return answer_nll(logits_1TW[:, first : first + len(frame.ids_A)], frame, receiver.targets([episode]))[0]


def naive_loss(
    config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver, batch: Sequence[Episode]
) -> Tensor:
    """The attempt's total loss over a batch, a sample at a time."""
    losses = config.losses
    assert losses.ce is not None
    assert losses.contrast is not None
    assert losses.help is not None
    assert losses.reconstruction is not None
    assert losses.info_preserve is not None
    frame, weight = receiver.answer_frame(batch[0].level), losses.ce.value_weight
    latents, inputs, totals = [], [], []
    for i, episode in enumerate(batch):
        wrong = batch[(i + 1) % len(batch)]
        reading = naive_reading(receiver, episode.message)
        right, other = codec(reading), codec(naive_reading(receiver, wrong.message))
        rows = [
            weighted_nll(naive_nll(receiver, episode, prefix_KD, config.codec.place)[None], frame, weight)[0]
            for prefix_KD in (right.prefix_BKD[0], other.prefix_BKD[0], torch.zeros_like(right.prefix_BKD[0]))
        ]
        nll, shuffled, null = rows
        total = losses.ce.weight * nll
        total = total + losses.contrast.weight * F.relu(losses.contrast.margin - (shuffled - nll))
        total = total + losses.help.weight * F.relu(nll - null + losses.help.margin)
        totals.append(total)
        latents.append(right.latent_BKD[0])
        inputs.append(reading.states_BTD[0].float().mean(0))
    latent_BKD, inputs_BD = torch.stack(latents), torch.stack(inputs)
    assert heads.rebuild is not None
    guess_BD = heads.rebuild(latent_BKD.flatten(1))
    rebuilt = F.mse_loss(F.normalize(guess_BD, dim=-1), F.normalize(inputs_BD, dim=-1))
    flat_BF, unit_BD = F.normalize(latent_BKD.flatten(1), dim=-1), F.normalize(inputs_BD, dim=-1)
    kept = F.mse_loss(flat_BF @ flat_BF.T, unit_BD @ unit_BD.T)
    return torch.stack(totals).mean() + losses.reconstruction.weight * rebuilt + losses.info_preserve.weight * kept


def naive_answers(
    receiver: Receiver, codec: Codec, played: Sequence[Episode], name: str, noise: Sequence[Tensor]
) -> list[str]:
    """One condition's greedy answers, an episode at a time."""
    answers, partners = [], derangement(played)
    for i, episode in enumerate(played):
        prefix_1KD = codec(naive_reading(receiver, episode.message)).prefix_BKD  # made anew for each condition
        texts: list[str] | int = codec.config.k
        if name == "shuffle":
            prefix_1KD = codec(naive_reading(receiver, played[partners[i]].message)).prefix_BKD
        elif name == "null":
            prefix_1KD = torch.zeros_like(prefix_1KD)
        elif name == "random":
            prefix_1KD = noise[i][None]
        elif name in ("P0", "P1"):
            texts = [episode.message if name == "P1" else ""]
        layout = receiver.layout([episode], texts, codec.config.place)
        embeds_1TD = receiver.embed(layout, prefix_1KD)[:, : int(layout.answer_B[0])]
        written = receiver.model.generate(
            inputs_embeds=embeds_1TD,
            attention_mask=torch.ones(embeds_1TD.shape[:2], dtype=torch.long, device=receiver.device),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=next(iter(receiver.end_ids)),
            eos_token_id=sorted(receiver.end_ids),
        )
        answers.append(str(receiver.tokenizer.decode(written[0], skip_special_tokens=True)))
    return answers


# --- both sides, in turns --------------------------------------------------------------------------------------


def in_turns(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of each side's call, the sides taking turns until each has run three times and time is up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    while min(map(len, times.values())) < 3 or time.perf_counter() - started < seconds:
        for name, call in sides.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_training(config: TrialConfig, receiver: Receiver, seconds: float) -> dict[str, Any]:
    """Training samples a second, the attempt's objectives on both sides.

    What the receiver makes of a message and of B's prompt is kept: `train_ratio` is that of samples met before, by
    another trial on the same receiver or in another epoch, `train_ratio_first` that of samples met for the first
    time.
    """
    torch.manual_seed(0)
    codec, heads = Codec(config.codec, receiver), Heads(config, receiver)
    trainee = CodecLoss(config, codec, heads, receiver)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=1e-4, fused=True)  # on both sides
    drawn = episodes(level(config.task.level), range(9_000_000, 9_000_000 + max(BATCHES)), "train")

    def step(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with torch.no_grad():
        ours = float(trainee(drawn[:8], config.codec.k, 1, False)[0])
        theirs = float(naive_loss(config, codec, heads, receiver, drawn[:8]))
    if abs(ours - theirs) > 1e-3 * abs(theirs):
        raise RuntimeError(f"the two sides compute different losses: {ours} and {theirs}")

    def fast(size: int) -> Callable[[], None]:
        return lambda: step(trainee(drawn[:size], config.codec.k, 1, False)[0])

    def first(size: int) -> Callable[[], None]:
        def step_on_strangers() -> None:
            receiver.clear_caches()
            fast(size)()

        return step_on_strangers

    sides: dict[str, Callable[[], Any]] = {f"batch {size}": fast(size) for size in BATCHES}
    sides |= {f"first, batch {size}": first(size) for size in BATCHES}
    sides["naive"] = lambda: step(naive_loss(config, codec, heads, receiver, drawn[:8]))
    times = in_turns(sides, seconds)
    rates = {name: (8 if name == "naive" else int(name.rpartition(" ")[2])) / took for name, took in times.items()}
    naive = rates["naive"]

    def best(kind: str) -> str:
        return max((name for name in rates if name.startswith(kind)), key=lambda name: rates[name])

    return {
        "train_ratio": rates[best("batch")] / naive,
        "train_ratio_batch8": rates["batch 8"] / naive,
        "train_ratio_first": rates[best("first")] / naive,
        "train_best": best("batch"),
        "train_samples_per_s": rates,
        "loss": {"fast": ours, "naive": theirs},
    }


def bench_evaluation(config: TrialConfig, receiver: Receiver, seconds: float, count: int = 250) -> dict[str, Any]:
    """Episodes a second under all conditions: 8 of them on the naive side, `count` on the other.

    As in a sweep, P0, P1 and null are played for the first checkpoint and on hand for every other: `eval_ratio` is
    that of another checkpoint, `eval_ratio_first` that of the first.
    """
    torch.manual_seed(0)
    codec = Codec(config.codec, receiver).eval()
    played = episodes(level(config.task.level), range(9_500_000, 9_500_000 + count), "search")
    few = played[:8]
    settings = config.evaluation.model_copy(update={"temperature": 0.0, "max_new_tokens": 32})

    def fast(part: Sequence[Episode], names: Sequence[str] = CONDITIONS) -> dict[str, list[str]]:
        inputs = ConditionInputs(receiver, part, codec, None, settings.batch_size)
        injections: dict[str, Injection] = {name: get_condition(name).inject(inputs) for name in names}
        return {name: answer_episodes(receiver, part, injections[name], settings)[0] for name in names}

    noise = (
        get_condition("random").inject(ConditionInputs(receiver, few, codec, None, settings.batch_size)).prefixes
    )
    assert noise is not None

    @torch.no_grad()
    def naive() -> dict[str, list[str]]:
        return {name: naive_answers(receiver, codec, few, name, noise) for name in CONDITIONS}

    if (ours := fast(few)) != (theirs := naive()):
        raise RuntimeError(f"the two sides answer differently: {ours} and {theirs}")
    own = [name for name in CONDITIONS if get_condition(name).depends_on == "checkpoint"]
    sides = {"first": lambda: fast(played), "other": lambda: fast(played, own), "naive": naive}
    times = in_turns(sides, seconds)
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
    """A part's figures with the prefix behind B's text, and in `NAME_places` with it elsewhere."""
    found = {}
    for place in ("after", "message", "before"):
        codec = config.codec.model_copy(update={"place": place})
        found[place] = part(config.model_copy(update={"codec": codec}), receiver, seconds)
    return {**found["after"], f"{name}_places": {place: found[place] for place in ("message", "before")}}


PARTS: dict[str, Callable[[TrialConfig, Receiver, float], dict[str, Any]]] = {
    "train": lambda config, receiver, seconds: by_place(bench_training, "train", config, receiver, seconds),
    "eval": lambda config, receiver, seconds: by_place(bench_evaluation, "eval", config, receiver, seconds),
    "pack": lambda config, receiver, seconds: bench_pack(config.receiver, steps=int(2 * seconds)),
    "variants": lambda config, receiver, seconds: bench_variants(config.receiver, in_turns, seconds),
    "start": lambda config, receiver, seconds: bench_start(),
    "sweep": lambda config, receiver, seconds: bench_sweep(),
}
# What is shown: figure, unit, bound, and which side of it is good.
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


def rows_of(figures: dict[str, Any]) -> list[list[str]]:
    """The table: each figure beside the goal."""
    table = [["figure", "value", "goal", ""]]
    for name, unit, bound, side in SHOWN:
        if name not in figures:
            continue
        value = figures[name]
        met = "" if bound is None else "met" if (value >= bound if side == ">=" else value <= bound) else "missed"
        table.append([name, f"{value:.2f} {unit}", "" if bound is None else f"{side} {bound:g} {unit}", met])
        for place, others in figures.get(f"{name.partition('_')[0]}_places", {}).items():
            table.append([f"{name}, prefix in place {place!r}", f"{others[name]:.2f} {unit}", "", ""])
    return table


def processor() -> str:
    """Its maker's name for it."""
    told = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return told[1] if told else platform.machine()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--receiver", default="mini")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement, at the least")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and bench.md")
    args = parser.parse_args()
    if not MALLOC.keys() <= os.environ.keys():  # memory as in a sweep's processes, for both sides
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
            "processor": processor(),
            "load_average": os.getloadavg()[0],
            "command": f"python scripts/benchmarks/bench.py --parts {name} --seconds {args.seconds:g}",
        }
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")
        (args.out / "bench.md").write_text(markdown(rows_of(figures)) + "\n")
    print(markdown(rows_of(figures)))


if __name__ == "__main__":
    main()
