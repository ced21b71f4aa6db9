"""The least arithmetic that a receiver's work needs, and how fast this machine multiplies matrices.

Counted are the products of a forward pass with the receiver's weights and of attention, two operations each per
multiplication, for the tokens that no cache can hold: from the slots on. A frozen receiver passes gradients to its
inputs only, which costs as much again as the forward pass, not twice as much. The codec is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import median_times
from torch import nn

from m2ray.config.trial import CodecConfig
from m2ray.receiver.layout import Layout
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode

TOKENS = 4096


def projections(receiver: Receiver) -> list[nn.Linear]:
    """Return the matrices that every token passes through: all but the output matrix."""
    head = receiver.model.get_output_embeddings()
    return [each for each in receiver.model.modules() if isinstance(each, nn.Linear) and each is not head]


def matmul_rate(receiver: Receiver) -> float:
    """Return operations per second of the product of 4,096 tokens with the receiver's largest projection."""
    weight_OI = max((each.weight for each in projections(receiver)), key=lambda weight: weight.numel()).detach()
    tokens_TI = torch.randn(TOKENS, weight_OI.shape[1], device=weight_OI.device, dtype=weight_OI.dtype)
    repeats = max(1, int(2e10 / weight_OI.numel() / TOKENS)) if weight_OI.device.type == "cuda" else 4

    @torch.no_grad()
    def multiply() -> None:
        for _ in range(repeats):
            nn.functional.linear(tokens_TI, weight_OI)
        if weight_OI.device.type == "cuda":
            torch.cuda.synchronize()

    seconds = median_times({"multiply": multiply}, 0.5)["multiply"]
    return 2.0 * repeats * TOKENS * weight_OI.numel() / seconds


def forward_flops(receiver: Receiver, layout: Layout, answer_len: int) -> float:
    """Return the operations of a forward pass over rows with `answer_len` answer tokens, from their slots on."""
    weights = sum(each.weight.numel() for each in projections(receiver))
    head = receiver.model.get_output_embeddings().weight.numel()
    config = receiver.model.config.get_text_config()
    heads = config.num_attention_heads
    attention = (
        config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    )
    total = 0.0
    for last, cached in zip((layout.answer_B + answer_len - 1).tolist(), layout.cached_B.tolist(), strict=True):
        pairs = (last * (last + 1) - cached * (cached + 1)) / 2  # of a token and one that it attends to
        total += 2.0 * weights * (last - cached) + 4.0 * attention * pairs + 2.0 * head * answer_len
    return total


def training_flops(receiver: Receiver, episodes: Sequence[Episode], codec: CodecConfig) -> float:
    """Return the operations of the attempt's step: the right and a wrong prefix, forward and back to the prefix.

    The answers under zeros and the states of the messages are known after the first epoch.
    """
    layout = receiver.layout(episodes, codec.k, codec.place)
    answer_len = len(receiver.answer_frame(episodes[0].level).ids_A)
    return 2 * 2 * forward_flops(receiver, layout, answer_len)


def evaluation_flops(
    receiver: Receiver, episodes: Sequence[Episode], codec: CodecConfig, conditions: Sequence[str]
) -> float:
    """Return the operations of answering episodes under conditions, every token run once."""
    answer_len = len(receiver.answer_frame(episodes[0].level).ids_A)
    texts = {"P0": [""] * len(episodes), "P1": [episode.message for episode in episodes]}
    return sum(
        forward_flops(receiver, receiver.layout(episodes, texts.get(name, codec.k), codec.place), answer_len)
        for name in conditions
    )
