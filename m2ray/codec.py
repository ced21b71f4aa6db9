"""The codec: a message, as the receiver reads it, becomes k prefix vectors in the receiver's embedding space.

    reading --encoder--> latent_BKD --bottleneck--> latent_BKD --calibration--> prefix_BKD

Shapes: B messages, T tokens of a message, K slots, D width of the receiver, W width of the encoder,
G groups of a slot's vector, C codes of a codebook.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.command import UserError, why
from m2ray.config import CodecConfig, validate
from m2ray.files import write_json
from m2ray.receiver import Reading, Receiver
from m2ray.state import load_tensors, save_tensors

Gather = Callable[[Tensor], Tensor]

CLAUSE_ENDS = (";", ".", "!", "?", "\n", "Ċ")  # the last is a byte-level tokenizer's line break


class Encoded(NamedTuple):
    """What a forward pass yields; code fields are None without a VQ bottleneck."""

    prefix_BKD: Tensor
    latent_BKD: Tensor  # before the bottleneck; under VQ in units of an embedding entry where norms are free
    codes_BKG: Tensor | None
    code_probs_BKGC: Tensor | None  # soft assignment, differentiable
    quantised_BKD: Tensor | None


# --- encoders: reading, k -> latent_BKD ----------------------------------------------------------------------


class LastToken(nn.Module):
    """The attempt's encoder: an MLP on the last token of the last hidden layer."""

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
            nn.Linear(width, config.k * receiver.width),
        )

    def forward(self, reading: Reading, k: int) -> Tensor:
        """See the section's head."""
        latent_BF = cast(Tensor, self.mlp(last_state(reading)))
        return latent_BF.reshape(len(latent_BF), self.k, -1)


class TokenFeatures(nn.Module):
    """Message tokens as the encoder's own features: hidden state and embedding, normalised, plus position."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self.unit = receiver.embedding_norm
        self.project = nn.Linear(2 * receiver.width, config.width)

    def forward(self, reading: Reading) -> Tensor:
        """[B, T, W]."""
        states_BTD = F.rms_norm(reading.states_BTD.float(), reading.states_BTD.shape[-1:])
        embeds_BTD = reading.embeds_BTD.float() / self.unit * math.sqrt(reading.embeds_BTD.shape[-1])
        features_BTW = cast(Tensor, self.project(torch.cat([states_BTD, embeds_BTD], dim=-1)))
        place_T = torch.arange(features_BTW.shape[1], device=features_BTW.device, dtype=torch.float32)
        return features_BTW + waves(place_T, features_BTW.shape[2])


def waves(at_T: Tensor, width: int) -> Tensor:
    """Sinusoidal positions, [T, W] (Vaswani et al. 2017, section 3.5)."""
    rates_H = torch.exp(torch.arange(0, width // 2, device=at_T.device) * (-math.log(1e4) / (width // 2)))
    angles_TH = at_T[:, None] * rates_H
    return torch.cat([angles_TH.sin(), angles_TH.cos()], dim=1)


class Resampler(nn.Module):
    """k learned queries attend to all token states of the message (cross-attention, as in Perceiver)."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = config.width
        self.features = TokenFeatures(config, receiver)
        self.queries_KW = nn.Parameter(torch.randn(config.k, width) / math.sqrt(width))
        layer = nn.TransformerDecoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, config.layers)
        self.out = nn.Linear(width, receiver.width)

    def forward(self, reading: Reading, k: int) -> Tensor:
        """See the section's head."""
        memory_BTW = self.features(reading)
        queries_BKW = self.queries_KW.expand(len(memory_BTW), -1, -1)
        read_BKW = self.layers(queries_BKW, memory_BTW, memory_key_padding_mask=~reading.mask_BT)
        return cast(Tensor, self.out(read_BKW))


class Segments(nn.Module):
    """Starts on the embedding manifold: slot j is the sum of the token embeddings of the j-th k-th of the
    message, plus a learned change that starts at zero. The same weights serve any k: with k at the number of
    tokens it is the identity, from where training can anneal k. With `cut: clauses` each clause of the message
    gets the same share of the slots, so that a slot that holds a clause holds all of it, whatever its length.
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = config.width
        self.unit = receiver.embedding_norm
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
        self.change = nn.Linear(2 * width, receiver.width)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def stands_for(self, reading: Reading, k: int) -> Tensor:
        """[B, K], the place in the message of each slot's last word that ends no clause; -1 where it has none."""
        ends_BT = self.ends_N[reading.ids_BT]
        words_BKT = segment_shares(reading.mask_BT, ends_BT, k).bool() & ~ends_BT[:, None]
        places_T = torch.arange(words_BKT.shape[2], device=words_BKT.device)
        return torch.where(words_BKT, places_T, -1).amax(2)

    def forward(self, reading: Reading, k: int) -> Tensor:
        """See the section's head."""
        share_BKT = segment_shares(reading.mask_BT, self.ends_N[reading.ids_BT], k)
        tokens_BTW = self.layers(self.features(reading), src_key_padding_mask=~reading.mask_BT)
        raw_BKD = share_BKT @ reading.embeds_BTD.float()
        mean_BKT = share_BKT / share_BKT.sum(dim=2, keepdim=True).clamp(min=1)
        slots_K = torch.arange(k, device=tokens_BTW.device) / k * 24
        pooled_BKW = mean_BKT @ tokens_BTW + waves(slots_K, tokens_BTW.shape[2])
        # In units of an embedding's entries, so that a learning rate means the same for any receiver.
        unit = self.unit / math.sqrt(raw_BKD.shape[2])
        return raw_BKD + unit * cast(Tensor, self.change(self.mix(pooled_BKW)))


def segment_shares(mask_BT: Tensor, ends_BT: Tensor, k: int) -> Tensor:
    """Which tokens each of k segments of a message holds.

    Args:
        mask_BT: True at tokens of the message, False at padding.
        ends_BT: True at a clause's last token; a message without any is one clause.
        k: Segments.

    Returns:
        [B, K, T], 1 where a token lies in a segment. Clause c of C has the segments from floor(c k / C) to before
        floor((c + 1) k / C), and its i-th of l tokens lies in the floor(i / l)-th part of them; with fewer
        segments than clauses, neighbouring clauses share one.
    """
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    ends_BT = ends_BT & mask_BT
    clause_BT = ends_BT.long().cumsum(1) - ends_BT.long()
    same_BTT = (clause_BT[:, :, None] == clause_BT[:, None]) & mask_BT[:, None]
    length_BT = same_BTT.sum(-1).clamp(min=1)
    within_BT = (same_BTT & (places_T[:, None] > places_T)).sum(-1)
    clauses_B1 = clause_BT.masked_fill(~mask_BT, 0).amax(1, keepdim=True) + 1
    first_BT = k * clause_BT // clauses_B1
    count_BT = k * (clause_BT + 1) // clauses_B1 - first_BT
    segment_BT = first_BT + within_BT * count_BT // length_BT
    slots_K1 = torch.arange(k, device=mask_BT.device)[:, None]
    return ((segment_BT[:, None] == slots_K1) & mask_BT[:, None]).float()


class Memory(nn.Module):
    """The receiver itself reads the message, with LoRA and k memory tokens whose last states are the latent.

    The adapted weights exist only inside this forward pass (`functional_call`): the receiver that later reads
    the prefix is untouched, so that one receiver can serve many codecs at once.
    """

    TARGETS = ("q_proj.weight", "v_proj.weight")

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        self._receiver = (receiver,)  # in a tuple: its weights are no part of this module
        self.memory_KD = nn.Parameter(
            receiver.embedding_ND.float().mean(0) + torch.randn(config.k, receiver.width) * self._std(receiver)
        )
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in self._targets().items():
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(torch.randn(config.lora_rank, weight.shape[1]) / weight.shape[1] ** 0.5)
            self.up[key] = nn.Parameter(torch.zeros(weight.shape[0], config.lora_rank))
        if not self.up:
            raise UserError(f"receiver {receiver.name}: has no {' or '.join(self.TARGETS)} for the encoder memory")
        self.out = nn.Linear(receiver.width, receiver.width)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @staticmethod
    def _std(receiver: Receiver) -> float:
        return float(receiver.embedding_ND.float().std())

    def _targets(self) -> dict[str, Tensor]:
        decoder = self._receiver[0].model.get_decoder()
        return {name: weight for name, weight in decoder.named_parameters() if name.endswith(self.TARGETS)}

    def forward(self, reading: Reading, k: int) -> Tensor:
        """See the section's head."""
        decoder = self._receiver[0].model.get_decoder()
        adapted = {}
        for name, weight in self._targets().items():
            key = name.replace(".", "/")
            adapted[name] = weight + (self.up[key] @ self.down[key]).to(weight.dtype)
        # Each message's memory tokens follow its last token directly: no padding in between.
        lengths_B = reading.mask_BT.sum(dim=1)
        rows_B1 = torch.arange(len(lengths_B), device=lengths_B.device)[:, None]
        slots_BK = lengths_B[:, None] + torch.arange(k, device=lengths_B.device)
        embeds_BTD = F.pad(reading.embeds_BTD, (0, 0, 0, k))
        memory_BKD = self.memory_KD.to(embeds_BTD.dtype).expand(len(lengths_B), -1, -1)
        embeds_BTD = embeds_BTD.index_put((rows_B1, slots_BK), memory_BKD)
        inputs = {"inputs_embeds": embeds_BTD, "use_cache": False}
        states_BTD = torch.func.functional_call(decoder, adapted, (), inputs)[0]
        return cast(Tensor, self.out(states_BTD[rows_B1, slots_BK].float()))


class Constant(nn.Module):
    """Content-free: the same k trained vectors whatever the message. The ceiling of mere priming."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        picks_K = torch.randint(len(receiver.embedding_ND), (config.k,))
        self.vectors_KD = nn.Parameter(receiver.embedding_ND[picks_K.to(receiver.device)].float().cpu().clone())

    def forward(self, reading: Reading, k: int) -> Tensor:
        """See the section's head."""
        return self.vectors_KD.expand(len(reading.mask_BT), -1, -1)


ENCODERS: dict[str, Callable[[CodecConfig, Receiver], nn.Module]] = {
    "last_token": LastToken,
    "resampler": Resampler,
    "segments": Segments,
    "memory": Memory,
    "constant": Constant,
}


def last_state(reading: Reading) -> Tensor:
    """The last token's last hidden state, [B, D]."""
    last_B = (reading.mask_BT.sum(dim=1) - 1).clamp(min=0)
    return reading.states_BTD[torch.arange(len(last_B), device=last_B.device), last_B].float()


def mean_state(reading: Reading) -> Tensor:
    """The mean of the last hidden states over a message's tokens, [B, D]."""
    weight_BT1 = reading.mask_BT[..., None].float()
    return (reading.states_BTD.float() * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


# --- bottleneck and calibration ------------------------------------------------------------------------------


class Quantiser(nn.Module):
    """VQ with a straight-through gradient; codebooks follow the latents by moving averages (van den Oord et
    al. 2017, appendix A.1), and a code that nothing has used for a while moves to a latent of the batch.
    """

    DECAY, DEAD = 0.97, 0.01

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        if receiver.width % config.groups:
            raise UserError(f"codec.groups: {config.groups} does not divide the receiver's width {receiver.width}")
        shape = (config.groups, config.codebook, receiver.width // config.groups)
        self.register_buffer("codes_GCE", torch.randn(shape))
        self.register_buffer("count_GC", torch.zeros(shape[:2]))
        self.codes_GCE: Tensor
        self.count_GC: Tensor

    def forward(self, latent_BKD: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents (straight-through), code numbers [B, K, G] and soft assignments [B, K, G, C]."""
        with torch.autocast(latent_BKD.device.type, enabled=False):  # distances and moving averages are float32
            return self._quantise(latent_BKD.float(), gather)

    def _quantise(self, latent_BKD: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
        parts_BKGE = latent_BKD.reshape(*latent_BKD.shape[:2], len(self.codes_GCE), -1)
        if self.training:
            with torch.no_grad():
                self._follow(gather(parts_BKGE.detach()).flatten(0, 1))
        similarity_BKGC = torch.einsum("bkge,gce->bkgc", parts_BKGE, self.codes_GCE)
        distance_BKGC = (
            parts_BKGE.square().sum(-1, keepdim=True) - 2 * similarity_BKGC + self.codes_GCE.square().sum(-1)
        )
        codes_BKG = distance_BKGC.argmin(dim=-1)
        groups_G = torch.arange(len(self.codes_GCE), device=codes_BKG.device)
        chosen_BKGE = self.codes_GCE[groups_G, codes_BKG]
        spread = distance_BKGC.detach().mean().clamp(min=1e-6)
        probs_BKGC = torch.softmax(-distance_BKGC / (0.1 * spread), dim=-1)
        quantised_BKD = chosen_BKGE.flatten(2)
        return quantised_BKD, codes_BKG, probs_BKGC

    def _follow(self, parts_MGE: Tensor) -> None:
        if not bool(self.count_GC.any()):
            # First batch: start on the data, not at the origin.
            picks_C = torch.arange(self.codes_GCE.shape[1], device=parts_MGE.device) % len(parts_MGE)
            jitter = (
                0.01 * parts_MGE.std() * torch.randn(self.codes_GCE.shape, generator=self._dice(0)).to(parts_MGE)
            )
            self.codes_GCE.copy_(parts_MGE[picks_C].transpose(0, 1) + jitter)
            self.count_GC.fill_(1.0)
        distance_GMC = torch.cdist(parts_MGE.transpose(0, 1), self.codes_GCE)
        hits_GMC = F.one_hot(distance_GMC.argmin(-1), self.codes_GCE.shape[1]).to(parts_MGE)
        hits_GC = hits_GMC.sum(1)
        sums_GCE = torch.einsum("gmc,mge->gce", hits_GMC, parts_MGE)
        rate_GC1 = ((1 - self.DECAY) * hits_GC / self.count_GC.clamp(min=1e-3)).clamp(max=1)[..., None]
        means_GCE = sums_GCE / hits_GC.clamp(min=1)[..., None]
        self.codes_GCE.lerp_(means_GCE, rate_GC1 * (hits_GC > 0)[..., None])
        self.count_GC.mul_(self.DECAY).add_(hits_GC, alpha=1 - self.DECAY)
        dead_GC = self.count_GC < self.DEAD * hits_GC.mean()
        if bool(dead_GC.any()):
            # The same dice on every worker, thrown on the gathered batch: replicas stay equal.
            dice = self._dice(int(1e6 * float(self.count_GC.sum())))
            picks_GC = torch.randint(len(parts_MGE), dead_GC.shape, generator=dice).to(parts_MGE.device)
            groups_G1 = torch.arange(len(picks_GC), device=picks_GC.device)[:, None]
            self.codes_GCE.copy_(torch.where(dead_GC[..., None], parts_MGE[picks_GC, groups_G1], self.codes_GCE))
            self.count_GC.masked_fill_(dead_GC, float(hits_GC.mean()))

    @staticmethod
    def _dice(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)


class Codec(nn.Module):
    """Encoder, bottleneck and calibration, bound to one receiver."""

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        if config.k + 1 >= receiver.max_positions:
            raise UserError(f"codec.k: {config.k} slots exceed the receiver's context; use a smaller k")
        self.config = config
        self.receiver_digest = receiver.digest
        self.unit = receiver.embedding_norm
        self.width = receiver.width
        self.encoder = ENCODERS[config.encoder](config, receiver)
        self.quantiser = Quantiser(config, receiver) if config.bottleneck == "vq" else None
        self.norm = nn.LayerNorm(receiver.width) if config.calibration == "layernorm" else None
        start = config.scale_gate if self.norm else math.log(config.scale_gate)
        self.gate = nn.Parameter(torch.tensor(start))

    @property
    def any_k(self) -> bool:
        """Whether the same weights serve any number of slots."""
        return isinstance(self.encoder, Segments)

    @property
    def scale_gate(self) -> Tensor:
        """Prefix norm over mean token-embedding norm, as learned."""
        return self.gate if self.norm else self.gate.exp()

    def forward(self, reading: Reading, k: int | None = None, gather: Gather = lambda tensor: tensor) -> Encoded:
        """Messages to prefixes.

        Args:
            reading: The messages as the receiver reads them.
            k: Slots, where the encoder serves any; default, and else, the configured k.
            gather: Collects a tensor's rows from all workers, so that codebooks follow the global batch.
        """
        latent_BKD = self.encoder(reading, k or self.config.k)
        return self.decode(latent_BKD, gather=gather)

    def decode(
        self, latent_BKD: Tensor, scale_gate: float | None = None, gather: Gather = lambda tensor: tensor
    ) -> Encoded:
        """Latents to prefixes; `scale_gate` overrides the learned one."""
        if self.quantiser is None:
            return Encoded(self.calibrate(latent_BKD, scale_gate), latent_BKD, None, None, None)
        scaled_BKD = latent_BKD / (self.unit / math.sqrt(self.width)) if self.norm is None else latent_BKD
        quantised_BKD, codes_BKG, probs_BKGC = self.quantiser(scaled_BKD, gather)
        through_BKD = scaled_BKD + (quantised_BKD - scaled_BKD).detach()
        return Encoded(self.calibrate(through_BKD, scale_gate), scaled_BKD, codes_BKG, probs_BKGC, quantised_BKD)

    def calibrate(self, latent_BKD: Tensor, scale_gate: float | None = None) -> Tensor:
        """Give latents the scale of token embeddings: LayerNorm, or the norm alone, times unit x scale_gate."""
        gate = self.scale_gate if scale_gate is None else scale_gate
        if self.norm is not None:
            return cast(Tensor, self.norm(latent_BKD)) * (self.unit / math.sqrt(self.width)) * gate
        # A slot without tokens (more slots than the message has) starts at zero. Below a tenth of an embedding's
        # norm a vector keeps its length: rescaled, it would be all noise, its gradient drowning all others.
        floor = 0.1 * (self.unit if self.quantiser is None else math.sqrt(self.width))
        return F.normalize(latent_BKD, dim=-1, eps=floor) * self.unit * gate

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of configuration, receiver and weights."""
        return self.digest_with(self.config.model_dump())

    def digest_with(self, settings: dict[str, Any]) -> str:
        """`digest` of a codec whose record holds these settings: an older one lacks keys that came later."""
        order = [key for key in CodecConfig.model_fields if key in settings]
        text = json.dumps({key: settings[key] for key in order}, separators=(",", ":"))
        sha = hashlib.sha256((text + self.receiver_digest).encode())
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().numpy())
        return sha.hexdigest()[:16]

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write `codec.safetensors` and `config.json`; `about` says how it was trained."""
        save_tensors(folder / "codec.safetensors", dict(self.state_dict()), {"receiver": self.receiver_digest})
        record = {
            "codec": self.config.model_dump(),
            "receiver_digest": self.receiver_digest,
            "digest": self.digest,
            **about,
        }
        write_json(folder / "config.json", record)


def read_record(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        UserError: missing or unreadable.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json; give a checkpoint folder that m2ray.train wrote")
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({why(error)}); remake the checkpoint") from None
    if not isinstance(record, dict) or not {"codec", "receiver_digest", "digest"} <= set(record):
        raise UserError(f"{file}: not the record of a codec; give a checkpoint folder that m2ray.train wrote")
    return record


def least_parameters(config: CodecConfig, width: int) -> int:
    """A lower bound of a codec's parameters for a receiver of some width, from its configuration alone."""
    hidden = config.width
    least = {
        "last_token": hidden * (width + hidden + config.k * width),
        "resampler": hidden * (2 * width + config.layers * hidden + config.k),
        "segments": hidden * (2 * width + config.layers * hidden),
        "memory": (config.k + config.lora_rank) * width,
        "constant": config.k * width,
    }
    return least[config.encoder] + (config.codebook * width if config.bottleneck == "vq" else 0)


def load_codec(folder: Path, receiver: Receiver) -> Codec:
    """Load a codec for the receiver it was trained with. Never unpickles.

    Raises:
        UserError: missing, truncated, changed, of another receiver, or of another shape than it says.
    """
    record = read_record(folder)
    file = folder / "config.json"
    if record["receiver_digest"] != receiver.digest:
        raise UserError(
            f"{file}: receiver_digest: trained with receiver {record['receiver_digest']}, not with "
            f"{receiver.name} ({receiver.digest}); use the receiver it was trained with"
        )
    config = validate(CodecConfig, record["codec"], f"{file}: codec")
    tensors, _ = load_tensors(folder / "codec.safetensors")
    # A codec is built before its weights are compared: not one of gigabytes for weights of kilobytes.
    if least_parameters(config, receiver.width) > sum(tensor.numel() for tensor in tensors.values()):
        raise UserError(f"{folder}/codec.safetensors: too few weights for what config.json says; restore either")
    codec = Codec(config, receiver)
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{folder}/codec.safetensors: does not fit config.json ({' '.join(str(error).split())[:200]}); "
            "restore the k and encoder it was trained with"
        ) from None
    if codec.digest_with(record["codec"]) != record["digest"]:
        raise UserError(f"{folder}: digest: weights or settings were changed since training; remake it")
    return codec.to(receiver.device).eval()
