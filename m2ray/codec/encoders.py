"""Encoders: modules that turn messages, as the receiver reads them, into k latent vectors each.

An encoder is built from (CodecConfig, Receiver), and its forward pass is (EncodedMessage, k) -> latent_BKD. The
receiver is a view through the codec's channel: `receiver.channel.width` is D, `receiver.width` that of embeddings.
Encoders that learn a fixed number of slots ignore k. Attribute names are keys of saved checkpoints, and the order
in which parameters are drawn decides the initial weights of a seed: change neither.

Shapes: B messages, T tokens of a message, K slots, D width of the receiver, W width of the encoder, F = K * D,
N words of the vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.config.trial import CodecConfig
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver

CLAUSE_ENDS = (";", ".", "!", "?", "\n", "Ċ")  # the last is a byte-level tokenizer's line break


class LastToken(nn.Module):
    """The reference attempt's encoder: an MLP on the last token's last hidden state."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self.k, width = config.k, config.width
        self.mlp = nn.Sequential(
            nn.Linear(receiver.width, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, config.k * receiver.channel.width),
        )

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        latent_BF = cast(Tensor, self.mlp(last_state(messages)))
        return latent_BF.reshape(len(latent_BF), self.k, -1)


class TokenFeatures(nn.Module):
    """Features of message tokens: normalized hidden state and embedding, mapped to width W, plus position."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self.unit = receiver.embedding_norm
        self.project = nn.Linear(2 * receiver.width, config.width)

    def forward(self, messages: EncodedMessage) -> Tensor:
        """Return features [B, T, W]."""
        states_BTD = F.rms_norm(messages.states_BTD.float(), messages.states_BTD.shape[-1:])
        embeds_BTD = messages.embeds_BTD.float() / self.unit * math.sqrt(messages.embeds_BTD.shape[-1])
        features_BTW = cast(Tensor, self.project(torch.cat([states_BTD, embeds_BTD], dim=-1)))
        positions_T = torch.arange(features_BTW.shape[1], device=features_BTW.device, dtype=torch.float32)
        return features_BTW + sinusoidal_positions(positions_T, features_BTW.shape[2])


def sinusoidal_positions(positions_T: Tensor, width: int) -> Tensor:
    """Return sinusoidal position encodings, [T, W] (Vaswani et al. 2017, section 3.5)."""
    rates_H = torch.exp(torch.arange(0, width // 2, device=positions_T.device) * (-math.log(1e4) / (width // 2)))
    angles_TH = positions_T[:, None] * rates_H
    return torch.cat([angles_TH.sin(), angles_TH.cos()], dim=1)


class Resampler(nn.Module):
    """Resampler: k learned queries attend to all tokens of the message (cross-attention, as in Perceiver)."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = config.width
        self.features = TokenFeatures(config, receiver)
        self.queries_KW = nn.Parameter(torch.randn(config.k, width) / math.sqrt(width))
        layer = nn.TransformerDecoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, config.layers)
        self.out = nn.Linear(width, receiver.channel.width)

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        memory_BTW = self.features(messages)
        queries_BKW = self.queries_KW.expand(len(memory_BTW), -1, -1)
        read_BKW = self.layers(queries_BKW, memory_BTW, memory_key_padding_mask=~messages.mask_BT)
        return cast(Tensor, self.out(read_BKW))


class Segments(nn.Module):
    """Encoder that starts on the manifold of the receiver's own vectors.

    In the channel `embeddings` slot j is the sum of the token embeddings of the j-th of k segments of the message,
    plus a learned change that starts at zero. The same weights serve any k: with as many slots as tokens the
    untrained encoder is the identity, from where training can anneal k. In other channels slot j starts as the
    mean of the receiver's own vectors at the segment's tokens, of the message on its own. With `cut: clauses` each
    clause of the message gets the same share of the slots, so that a slot that holds a clause holds all of it,
    whatever its length.

    With `start: states` slot j starts as the receiver's hidden state after its first layer at the segment's last
    word, where attention has already bound the words before it. At that state's own norm a pretrained receiver
    reads more from it, untrained, than from a sum of embeddings.
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = config.width
        self.unit, self.start, self.channel = receiver.channel.unit, config.start, config.channel
        ends_N = torch.zeros(len(receiver.embedding_ND), dtype=torch.bool)
        if config.cut == "clauses":
            vocabulary = receiver.tokenizer.get_vocab().items()
            ends_N[[token for text, token in vocabulary if text.endswith(CLAUSE_ENDS)]] = True
        self.register_buffer("ends_N", ends_N, persistent=False)
        self.ends_N: Tensor
        self.features = TokenFeatures(config, receiver)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.change = nn.Linear(2 * width, receiver.channel.width)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def word_positions(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return which word each slot stands for: its segment's last token that does not end a clause.

        Returns:
            [B, K], positions in the message; -1 where a segment has no such token.
        """
        ends_BT = self.ends_N[messages.ids_BT]
        words_BKT = segment_shares(messages.mask_BT, ends_BT, k).bool() & ~ends_BT[:, None]
        positions_T = torch.arange(words_BKT.shape[2], device=words_BKT.device)
        return torch.where(words_BKT, positions_T, -1).amax(2)

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        share_BKT = segment_shares(messages.mask_BT, self.ends_N[messages.ids_BT], k)
        tokens_BTW = self.layers(self.features(messages), src_key_padding_mask=~messages.mask_BT)
        mean_BKT = share_BKT / share_BKT.sum(dim=2, keepdim=True).clamp(min=1)
        own = self.channel != "embeddings"
        start_BKD = mean_BKT @ messages.own_BTD.float() if own else self._start(messages, share_BKT)
        slots_K = torch.arange(k, device=tokens_BTW.device) / k * 24
        pooled_BKW = mean_BKT @ tokens_BTW + sinusoidal_positions(slots_K, tokens_BTW.shape[2])
        # The change is in units of an embedding's entries: a learning rate then means the same for any receiver.
        unit = self.unit / math.sqrt(start_BKD.shape[2])
        return start_BKD + unit * cast(Tensor, self.change(self.mix(pooled_BKW)))

    def _start(self, messages: EncodedMessage, share_BKT: Tensor) -> Tensor:
        """Return the slots of the untrained encoder in the channel `embeddings`, [B, K, D]."""
        if self.start == "words":
            return share_BKT @ messages.embeds_BTD.float()
        words_BK = self.word_positions(messages, share_BKT.shape[1])
        rows_B1 = torch.arange(len(words_BK), device=words_BK.device)[:, None]
        first_BKD = messages.first_BTD[rows_B1, words_BK.clamp(min=0)].float()
        # Calibration sets the norm later. Here it is that of an embedding, the unit of the learned change.
        return F.normalize(first_BKD, dim=-1) * self.unit * (words_BK >= 0)[..., None]


def segment_shares(mask_BT: Tensor, ends_BT: Tensor, k: int) -> Tensor:
    """Return which tokens each of k segments of a message holds.

    Args:
        mask_BT: True at tokens of the message, False at padding.
        ends_BT: True at a clause's last token; a message without such tokens is one clause.
        k: Number of segments.

    Returns:
        [B, K, T], 1 where a token lies in a segment. Clause c of C has the segments from floor(c k / C) to before
        floor((c + 1) k / C), and its i-th of l tokens lies in the floor(i / l)-th part of them; with fewer
        segments than clauses, neighboring clauses share one.
    """
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    ends_BT = ends_BT & mask_BT
    clause_BT = ends_BT.long().cumsum(1) - ends_BT.long()
    same_BTT = (clause_BT[:, :, None] == clause_BT[:, None]) & mask_BT[:, None]
    length_BT = same_BTT.sum(-1).clamp(min=1)
    within_BT = (same_BTT & (positions_T[:, None] > positions_T)).sum(-1)
    clauses_B1 = clause_BT.masked_fill(~mask_BT, 0).amax(1, keepdim=True) + 1
    first_BT = k * clause_BT // clauses_B1
    count_BT = k * (clause_BT + 1) // clauses_B1 - first_BT
    segment_BT = first_BT + within_BT * count_BT // length_BT
    slots_K1 = torch.arange(k, device=mask_BT.device)[:, None]
    return ((segment_BT[:, None] == slots_K1) & mask_BT[:, None]).float()


class Constant(nn.Module):
    """Content-free encoder: the same k trained vectors whatever the message. The ceiling of mere priming."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        picks_K = torch.randint(len(receiver.embedding_ND), (config.k,))
        if config.channel == "embeddings":
            vectors_KD = receiver.embedding_ND[picks_K.to(receiver.device)]
        else:
            vectors_KD = receiver.own_vectors([picks_K.tolist()])[0]
        self.vectors_KD = nn.Parameter(vectors_KD.float().cpu().clone())

    def forward(self, messages: EncodedMessage, k: int) -> Tensor:
        """Return latents [B, K, D]; see the module's docstring."""
        return self.vectors_KD.expand(len(messages.mask_BT), -1, -1)


def last_state(messages: EncodedMessage) -> Tensor:
    """Return the last token's last hidden state, [B, D]."""
    last_B = (messages.mask_BT.sum(dim=1) - 1).clamp(min=0)
    return messages.states_BTD[torch.arange(len(last_B), device=last_B.device), last_B].float()


def mean_state(messages: EncodedMessage) -> Tensor:
    """Return the mean of the last hidden states over a message's tokens, [B, D]."""
    weight_BT1 = messages.mask_BT[..., None].float()
    return (messages.states_BTD.float() * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
