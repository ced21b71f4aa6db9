"""Encoders of the receiver's own states at a message, as they are or through a small network.

`m2ray.codec.encoders` says what all encoders share.

Shapes: B messages, T tokens of a message, K slots, D width of the channel, W width of the encoder, F = K * D.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.codec.encoders import mean_state, sinusoidal_positions
from m2ray.config.trial import CodecConfig
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver


class Own(nn.Module):
    """Encoder without weights: the receiver's own vectors in the channel, at k of the message's tokens.

    As KVComm (keys and values of chosen layers) and activation communication (a hidden state at one layer). Slots
    that a short message leaves over, the first ones, are zero: in the channel `kv` these hold no information.
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        return at_picks(messages.own_BTD, *spread_tokens(messages.mask_BT, k))


class Projector(nn.Module):
    """Encoder of one vector: the mean of the message's last states, through a two-layer MLP. As in xRAG."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self.k = config.k
        self.mlp = nn.Sequential(
            nn.Linear(receiver.width, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.k * receiver.channel.width),
        )

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        pooled_BD = mean_state(messages)
        latent_BF = cast(Tensor, self.mlp(F.rms_norm(pooled_BD, pooled_BD.shape[-1:])))
        return latent_BF.reshape(len(latent_BF), self.k, -1)


class Adapter(nn.Module):
    """Encoder of last hidden states: self-attention over all of them, then a projection at k. As in Interlat."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.Linear(receiver.width, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, receiver.channel.width)

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        states_BTD = F.rms_norm(messages.states_BTD.float(), messages.states_BTD.shape[-1:])
        positions_T = torch.arange(states_BTD.shape[1], device=states_BTD.device, dtype=torch.float32)
        states_BTW = self.enter(states_BTD)
        states_BTW = states_BTW + sinusoidal_positions(positions_T, states_BTW.shape[2])
        padding_BT = ~messages.mask_BT
        mixed_BTW, _ = self.attention(
            states_BTW, states_BTW, states_BTW, key_padding_mask=padding_BT, need_weights=False
        )
        picks_BK, used_BK = spread_tokens(messages.mask_BT, k)
        picked_BKW = at_picks(states_BTW + mixed_BTW, picks_BK, used_BK)
        return cast(Tensor, self.project(self.norm(picked_BKW))) * used_BK[..., None]


def spread_tokens(mask_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return k of a message's tokens: the last of each of k equal parts, or all in order if there are not more.

    Returns:
        [B, K] their positions, and [B, K] False at slots that the message leaves over.
    """
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True)
    counts_B1 = lengths_B1.clamp(max=k)
    # The last slots are the used ones: the message then ends right before what follows it.
    order_BK = torch.arange(k, device=mask_BT.device) - (k - counts_B1)
    picks_BK = (order_BK + 1) * lengths_B1 // counts_B1.clamp(min=1) - 1
    return picks_BK.clamp(0, mask_BT.shape[1] - 1), order_BK >= 0


def at_picks(vectors_BTD: Tensor, picks_BK: Tensor, used_BK: Tensor) -> Tensor:
    """Return the vectors at the tokens that `spread_tokens` picked, [B, K, D]; zeros at other slots."""
    rows_B1 = torch.arange(len(picks_BK), device=picks_BK.device)[:, None]
    return vectors_BTD[rows_B1, picks_BK].float() * used_BK[..., None]
