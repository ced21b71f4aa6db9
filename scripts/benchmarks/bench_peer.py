"""Training and evaluation in m2ray against the peer (`peer.py`) and the reference attempt's loop.

Used by scripts/benchmarks/bench.py. All three do the same work on the same receiver, episodes, codec, objectives
and decoding; losses and answers are compared before anything is timed. They take turns within one run, and a ratio
is the median of the ratios turn by turn. A share is what part of the measured rate of matrix products (`flops.py`)
the operations reach that the receiver needs for this work.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import peer
import reference_loop
import torch
from flops import evaluation_flops, matmul_rate, training_flops
from timing import speed_ratio, times_in_turns
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads
from m2ray.training.step import CodecLoss

CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1")
BATCHES = (8, 32, 64, 128)
NAIVE_BATCH = 8  # samples and episodes that the reference attempt's loop is timed on
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of losses, relative


def synchronized(call: Callable[[], Any]) -> Callable[[], None]:
    """Return a call that also waits for an accelerator."""

    def run() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def training_calls(
    config: TrialConfig, receiver: Receiver, batches: Sequence[int], naive: bool
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return the training steps to time, by name, and every side's loss of the first batch.

    Raises:
        RuntimeError: The losses differ by more than the receiver's dtype explains.
    """
    torch.manual_seed(0)
    codec = Codec(config.codec, receiver).to(receiver.device)
    heads = Heads(config, receiver).to(receiver.device)
    codec_loss = CodecLoss(config, codec, heads, receiver)
    optimizer = torch.optim.AdamW(codec_loss.parameters(), lr=1e-4, fused=True)  # the same for all
    samples = episodes(level(config.task.level), range(9_000_000, 9_000_000 + max(batches)), "train")

    def ours(size: int) -> Tensor:
        return codec_loss(samples[:size], config.codec.k, 1, False)[0]

    def peers(size: int) -> Tensor:
        return peer.batch_loss(config, codec, heads, receiver, samples[:size])

    def naives(size: int) -> Tensor:
        return reference_loop.batch_loss(config, codec, heads, receiver, samples[:size])

    def step(loss: Callable[[int], Tensor], size: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def first_step(size: int) -> None:
        receiver.clear_caches()
        step(ours, size)

    sides = {"m2ray": ours, "peer": peers, **({"naive": naives} if naive else {})}
    with torch.no_grad():
        losses = {name: float(loss(NAIVE_BATCH)) for name, loss in sides.items()}
    if max(losses.values()) - min(losses.values()) > TOLERANCE[receiver.dtype] * abs(losses["peer"]):
        raise RuntimeError(f"the sides compute different losses: {losses}")
    calls: dict[str, Callable[[], Any]] = {}
    for size in batches:
        calls[f"m2ray, batch {size}"] = partial(step, ours, size)
        calls[f"first, batch {size}"] = partial(first_step, size)
        calls[f"peer, batch {size}"] = partial(step, peers, size)
    if naive:
        calls[f"naive, batch {NAIVE_BATCH}"] = partial(step, naives, NAIVE_BATCH)
    return {name: synchronized(call) for name, call in calls.items()}, losses


def bench_training(
    config: TrialConfig,
    receiver: Receiver,
    seconds: float,
    batches: Sequence[int] = BATCHES,
    naive: bool = True,
) -> dict[str, Any]:
    """Measure training samples per second with the attempt's objectives, each side at its best batch size.

    m2ray keeps what the receiver makes of messages and prompts: `train_first` is with samples seen for the first
    time, the others with samples of an earlier epoch, or of another trial on the same receiver.
    """
    calls, losses = training_calls(config, receiver, batches, naive)
    times = times_in_turns(calls, seconds)
    sizes = {name: int(name.rpartition(" ")[2]) for name in times}
    rates = {name: sizes[name] / statistics.median(each) for name, each in times.items()}

    def best(side: str) -> str:
        return max((name for name in rates if name.startswith(side)), key=lambda name: rates[name])

    def ratio(name: str, other: str) -> float:
        return speed_ratio(times[name], times[other], sizes[name], sizes[other])

    small = f"batch {min(batches)}"
    samples = episodes(level(config.task.level), range(9_000_000, 9_000_000 + NAIVE_BATCH), "train")
    needed = training_flops(receiver, samples, config.codec) / NAIVE_BATCH
    rate = matmul_rate(receiver)
    figures = {
        "train": ratio(best("m2ray"), best("peer")),
        "train_small_batch": ratio(f"m2ray, {small}", f"peer, {small}"),
        "train_first": ratio(best("first"), best("peer")),
        "train_share": rates[best("m2ray")] * needed / rate,
        "train_peer_share": rates[best("peer")] * needed / rate,
        "train_best": [best("m2ray"), best("peer")],
        "train_samples_per_s": rates,
        "train_gflop_per_sample": needed / 1e9,
        "matmul_gflop_per_s": rate / 1e9,
        "loss": losses,
    }
    if naive:
        figures["train_naive"] = ratio(best("m2ray"), best("naive"))
    return figures


def bench_evaluation(
    config: TrialConfig, receiver: Receiver, seconds: float, count: int = 256, naive: bool = True
) -> dict[str, Any]:
    """Measure episodes per second under all conditions.

    As in a sweep, m2ray evaluates P0, P1 and null for the first checkpoint and uses their rows for every other:
    `eval` is of another checkpoint, `eval_first` of the first. m2ray also scores the reference answers, the peer
    and the attempt's loop do not.

    Raises:
        RuntimeError: The sides give different answers, in float32.
    """
    torch.manual_seed(0)
    codec = Codec(config.codec, receiver).to(receiver.device).eval()
    many = episodes(level(config.task.level), range(9_500_000, 9_500_000 + count), "search")
    few = many[:NAIVE_BATCH]
    settings = config.evaluation.model_copy(update={"temperature": 0.0, "max_new_tokens": peer.NEW_TOKENS})

    def inject(batch: Sequence[Episode], conditions: Sequence[str]) -> dict[str, Injection]:
        inputs = ConditionInputs(receiver, batch, codec, None, settings.batch_size)
        return {name: get_condition(name).inject(inputs) for name in conditions}

    def ours(batch: Sequence[Episode], conditions: Sequence[str] = CONDITIONS) -> dict[str, list[str]]:
        injections = inject(batch, conditions)
        return {name: answer_episodes(receiver, batch, injections[name], settings).texts for name in conditions}

    noise = inject(many, ["random"])["random"].prefixes
    assert noise is not None

    def peers() -> dict[str, list[str]]:
        return peer.evaluate(receiver, codec, many, CONDITIONS, noise)

    @torch.no_grad()
    def naives() -> dict[str, list[str]]:
        return {name: reference_loop.answer_condition(receiver, codec, few, name, noise) for name in CONDITIONS}

    different = differing_answers(ours(many), peers(), naives() if naive else ours(few), ours(few))
    if different and receiver.dtype == torch.float32:
        raise RuntimeError(f"{different} answers differ between the sides")
    per_checkpoint = [name for name in CONDITIONS if get_condition(name).depends_on == "checkpoint"]
    calls = {"first": lambda: ours(many), "other": lambda: ours(many, per_checkpoint), "peer": peers}
    if naive:
        calls["naive"] = naives
    times = times_in_turns({name: synchronized(call) for name, call in calls.items()}, seconds)
    rates = {name: (len(few) if name == "naive" else count) / statistics.median(t) for name, t in times.items()}
    rate = matmul_rate(receiver)
    each = {
        name: evaluation_flops(receiver, few, config.codec, conditions) / len(few)
        for name, conditions in {"first": CONDITIONS, "other": per_checkpoint}.items()
    }
    figures = {
        "eval": speed_ratio(times["other"], times["peer"]),
        "eval_first": speed_ratio(times["first"], times["peer"]),
        "eval_share": each["other"] * rates["other"] / rate,
        "eval_first_share": each["first"] * rates["first"] / rate,
        "eval_different_answers": different,
        "eval_episodes_per_s": rates,
    }  # fmt: skip
    if naive:
        figures["eval_naive"] = speed_ratio(times["other"], times["naive"], count, len(few))
    return figures


def differing_answers(*sides: dict[str, list[str]]) -> int:
    """Return how many answers differ, of m2ray and the peer, and of the attempt's loop and m2ray."""
    ours, peers, naives, few = sides
    pairs = ((ours, peers), (naives, few))
    return sum(a != b for one, other in pairs for name in one for a, b in zip(one[name], other[name], strict=True))


def in_places(part: Callable[[TrialConfig], dict[str, Any]], config: TrialConfig) -> dict[str, dict[str, Any]]:
    """Measure a part with the prefix in each place."""
    places = ("message", "before", "after")
    return {
        place: part(config.model_copy(update={"codec": config.codec.model_copy(update={"place": place})}))
        for place in places
    }
