"""Encoders that run a sender: the receiver's own weights with a low-rank change (LoRA).

The changed weights exist only inside the encoder's forward pass (`functional_call`). The receiver that later reads
the prefix is unchanged, so that one receiver can serve many codecs at once. `m2ray.codec.encoders` says what all
encoders share.

Shapes: B messages, T tokens of a message, K slots, D width of the receiver, W width of the encoder.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.codec.encoders import segment_shares
from m2ray.config.trial import CodecConfig
from m2ray.receiver.channel import Channel, recording
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError


class AdaptedReceiver(nn.Module):
    """Base of these encoders: the receiver with LoRA."""

    TARGETS: tuple[str, ...] = ("q_proj.weight", "v_proj.weight")

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self.lead = receiver.tokens(config.lead) if config.lead else []
        self._receiver = (receiver,)  # in a tuple, so that its weights are not part of this module

    def add_lora(self, config: CodecConfig) -> None:
        """Create the low-rank change, zero at the start, of every target weight."""
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in self._targets().items():
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(torch.randn(config.lora_rank, weight.shape[1]) / weight.shape[1] ** 0.5)
            self.up[key] = nn.Parameter(torch.zeros(weight.shape[0], config.lora_rank))
        if not self.up:
            names = [target.removesuffix(".weight") for target in self.TARGETS]
            raise UserError(
                f"receiver {self._receiver[0].name}: has no {' or '.join(names)} for the encoder "
                f"{config.encoder}; use another encoder"
            )

    def run(self, embeds_BTD: Tensor, channel: Channel | None = None) -> Tensor:
        """Return the last hidden states with LoRA, or what a channel's modules write, [B, T, D].

        The lead stands before the embeddings; its own states are not part of the result.
        """
        receiver = self._receiver[0]
        lead_TD = receiver.causal.embed(torch.tensor(self.lead, dtype=torch.long, device=embeds_BTD.device))
        embeds_BTD = torch.cat([lead_TD.expand(len(embeds_BTD), -1, -1), embeds_BTD], dim=1)
        adapted = {}
        for name, weight in self._targets().items():
            key = name.replace(".", "/")
            adapted[name] = weight + (self.up[key] @ self.down[key]).to(weight.dtype)
        inputs = {"inputs_embeds": embeds_BTD, "use_cache": False}
        with recording(channel) as recorded:
            states_BTD = torch.func.functional_call(receiver.causal.trunk, adapted, (), inputs)[0]
        states_BTD = states_BTD if channel is None else channel.join(recorded)
        return cast(Tensor, states_BTD)[:, len(self.lead) :]

    def _targets(self) -> dict[str, Tensor]:
        trunk = self._receiver[0].causal.trunk
        return {name: weight for name, weight in trunk.named_parameters() if name.endswith(self.TARGETS)}


class Memory(AdaptedReceiver):
    """Encoder that is the receiver itself, with LoRA and k memory tokens behind the message.

    The latents are the memory tokens' last states; in other channels than `embeddings`, what the channel's
    modules write at them. As in ICAE (embeddings) and 500xCompressor (keys and values).
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__(config, receiver)
        self.memory_KD = nn.Parameter(self.first_tokens(config, receiver))
        self.add_lora(config)
        self.channel = receiver.channel if config.channel != "embeddings" else None
        self.out: nn.Module = nn.Identity()
        if self.channel is None:
            self.out = nn.Linear(receiver.width, receiver.width)
            nn.init.eye_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def first_tokens(self, config: CodecConfig, receiver: Receiver) -> Tensor:
        """Return the memory tokens before training, [K, D]: as token embeddings are spread."""
        embedding_ND = receiver.embedding_ND.float()
        return embedding_ND.mean(0) + torch.randn(config.k, receiver.width) * float(embedding_ND.std())

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        # Each message's memory tokens follow its last token directly: no padding in between.
        lengths_B = messages.mask_BT.sum(dim=1)
        rows_B1 = torch.arange(len(lengths_B), device=lengths_B.device)[:, None]
        slots_BK = lengths_B[:, None] + torch.arange(k, device=lengths_B.device)
        embeds_BTD = F.pad(messages.embeds_BTD, (0, 0, 0, k))
        memory_BKD = self.memory_KD.to(embeds_BTD.dtype).expand(len(lengths_B), k, -1)
        embeds_BTD = embeds_BTD.index_put((rows_B1, slots_BK), memory_BKD)
        states_BTD = self.run(embeds_BTD, self.channel)
        return cast(Tensor, self.out(states_BTD[rows_B1, slots_BK].float()))


class Gist(Memory):
    """Memory whose k tokens are one learned token, and whose LoRA changes all weights of a layer."""

    TARGETS = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))

    def first_tokens(self, config: CodecConfig, receiver: Receiver) -> Tensor:
        """Return the one token before training, [1, D]."""
        return super().first_tokens(config.model_copy(update={"k": 1}), receiver)


class Pooled(AdaptedReceiver):
    """Encoder with LoRA whose last states are averaged over k equal parts of the message, then projected.

    As in ARC-Encoder. A part without a token, where there are more slots than tokens, is zero.
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__(config, receiver)
        self.add_lora(config)
        self.project = nn.Sequential(
            nn.Linear(receiver.width, config.width), nn.GELU(), nn.Linear(config.width, receiver.channel.width)
        )

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        share_BKT = segment_shares(messages.mask_BT, torch.zeros_like(messages.mask_BT), k)
        count_BK1 = share_BKT.sum(dim=2, keepdim=True)
        pooled_BKD = share_BKT / count_BK1.clamp(min=1) @ self.run(messages.embeds_BTD).float()
        return cast(Tensor, self.project(F.rms_norm(pooled_BKD, pooled_BKD.shape[-1:]))) * (count_BK1 > 0)
