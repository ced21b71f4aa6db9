"""Size of what a codec sends, beside that of the message as text: bytes, and work that B's prefill saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from m2ray.codec.codec import Codec
from m2ray.config.trial import CodecConfig
from m2ray.receiver.receiver import Receiver


def vq_bits(config: CodecConfig) -> float:
    """Return the bits of a message through a VQ bottleneck."""
    return config.k * config.groups * math.log2(config.codebook)


def sent_size(codec: Codec, messages: Sequence[str]) -> dict[str, float]:
    """Return what a message costs, as columns of the leaderboard.

    Returns:
        bytes: what the codec sends: its codes, or its vectors in the receiver's own precision.
        numbers: the numbers in these vectors; left out for codes.
        text_bytes: the message as text, mean over `messages`.
        prefill_saved: floating-point operations that B saves against the text, two for each weight of its layers
            and token that it need not run. Attention is not counted. Slots of the channel `kv` need no run.
    """
    receiver, config = codec.receiver, codec.config
    numbers = config.k * codec.width
    size = {"bytes": numbers * torch.finfo(receiver.dtype).bits / 8, "numbers": numbers}
    if codec.quantiser is not None:
        size = {"bytes": math.ceil(vq_bits(config) / 8)}
    tokens = sum(len(receiver.tokens(message)) for message in messages) / len(messages)
    run = 0 if config.channel == "kv" else config.k
    return {
        **size,
        "text_bytes": round(sum(len(message.encode()) for message in messages) / len(messages), 1),
        "prefill_saved": round(2 * _layer_weights(receiver) * (tokens - run)),
    }


def _layer_weights(receiver: Receiver) -> int:
    """Return the number of weights that every token of a prompt is multiplied with: all but the embeddings."""
    embeddings = {id(weight) for weight in receiver.causal.own.get_input_embeddings().parameters()}
    head = receiver.causal.own.get_output_embeddings()
    outside = embeddings | {id(weight) for weight in (head.parameters() if head is not None else ())}
    return sum(weight.numel() for weight in receiver.causal.own.parameters() if id(weight) not in outside)
