"""Inputs and output of a condition: `ConditionInputs` and `Injection`.

Shapes: E episodes, K slots, D width of the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.receiver.channel import Channel
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.layout import Place
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import AnyEpisode

STREAM_STRIDE = 1_000_003  # keeps the noise of different conditions apart


class Injection(NamedTuple):
    """B's input: a text per episode in the message's place, or vectors [K, D] per episode in open slots.

    With both, the vectors take the place of the text's own. They are of a channel, None for `embeddings`.
    """

    texts: list[str] | None
    prefixes: Sequence[Tensor] | None
    place: Place
    partners: list[int] | None = None  # index of the episode whose message was used, per episode
    facts: list[tuple[Any, ...]] | None = None  # of the message used, where no episode holds it
    channel: Channel | None = None

    def reader(self, receiver: Receiver) -> Receiver:
        """Return the receiver, whose slots are filled through the channel of the vectors."""
        return receiver if self.channel is None else receiver.through(self.channel)


@dataclass
class ConditionInputs:
    """Inputs that a condition can use. `codec` and `constant` are None where no requested condition needs them."""

    receiver: Receiver
    episodes: Sequence[AnyEpisode]
    codec: Codec | None
    constant: Codec | None
    batch_size: int

    @property
    def tested_codec(self) -> Codec:
        """The codec under test."""
        assert self.codec is not None, "this condition needs a codec"
        return self.codec

    @cached_property
    def view(self) -> Receiver:
        """The receiver, whose slots are filled through the tested codec's channel."""
        config = self.tested_codec.config
        return open_channel(self.receiver, config.channel, config.channel_layers)

    @cached_property
    def latents_EKD(self) -> Tensor:
        """The encoder's latents of all messages: the input of `Codec.decode`."""
        codec = self.tested_codec
        return self.encode(lambda messages: codec.encode(messages, codec.config.k))

    @cached_property
    def prefixes_EKD(self) -> Tensor:
        """The codec's prefixes of all messages."""
        codec = self.tested_codec
        return self.encode(lambda messages: codec(messages).prefix_BKD)

    def encode(self, forward: Callable[[EncodedMessage], Tensor], messages: Sequence[str] | None = None) -> Tensor:
        """Run a function of encoded messages on the episodes' messages, or on others, in batches, without grad."""
        texts = [episode.message for episode in self.episodes] if messages is None else messages
        parts = []
        with torch.no_grad():
            for start in range(0, len(texts), self.batch_size):
                parts.append(forward(self.view.encode_messages(texts[start : start + self.batch_size])))
        return torch.cat(parts).detach()  # a view of a parameter keeps its gradient even here

    def noise(self, shape: Sequence[int], stream: int) -> Tensor:
        """Return N(0, 1) noise per episode, [E, *shape], that depends on the episode and the stream only."""
        rows = []
        for episode in self.episodes:
            generator = torch.Generator().manual_seed(stream * STREAM_STRIDE + episode.seed)
            rows.append(torch.randn(*shape, generator=generator))
        return torch.stack(rows).to(self.receiver.device)

    def inject(self, prefixes_EKD: Sequence[Tensor] | Tensor, partners: list[int] | None = None) -> Injection:
        """Return an injection of prefixes in the place of the tested codec's."""
        place = self.tested_codec.config.place
        return Injection(None, list(prefixes_EKD), place, partners, channel=self.view.channel)
