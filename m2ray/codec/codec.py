"""The codec: a message, as the receiver reads it, becomes k prefix vectors in one of the receiver's channels.

    messages --encoder--> latent_BKD --bottleneck--> latent_BKD --calibration--> prefix_BKD

Shapes: B messages, K slots, D width of the channel, G groups of a slot's vector, C codes of a codebook.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.codec.checkpoints import CORE, check_receiver, read_record
from m2ray.codec.encoder_registry import ENCODERS
from m2ray.codec.lora_encoders import AdaptedReceiver
from m2ray.codec.model_card import LIBRARY, model_card
from m2ray.codec.tensor_file import load_tensors, save_tensors
from m2ray.codec.vector_quantizer import Gather, VectorQuantizer
from m2ray.config.trial import CodecConfig
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.loading import is_hub_name, load_receiver
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver
from m2ray.util import plugins
from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import write_json
from m2ray.util.strict_yaml import validate

FILES = ["codec.safetensors", "config.json"]  # of a checkpoint's folder


class CodecOutput(NamedTuple):
    """Output of the codec. The last three fields are None without a VQ bottleneck."""

    prefix_BKD: Tensor
    latent_BKD: Tensor  # before the bottleneck; with VQ and calibration `norm` in units of an embedding's entries
    codes_BKG: Tensor | None
    code_probs_BKGC: Tensor | None  # soft assignment, differentiable
    quantized_BKD: Tensor | None


class Codec(nn.Module, ModelHubMixin, library_name=LIBRARY):
    """Encoder, bottleneck and calibration, for one receiver.

    Attribute names of modules and parameters are keys of saved checkpoints: do not rename them.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub, on the files of `save`.
    """

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        if config.k + 1 >= receiver.max_positions:
            raise UserError(f"codec.k: {config.k} slots exceed the receiver's context; use a smaller k")
        self.config = config
        receiver = open_channel(receiver, config.channel, config.channel_layers)
        self._receiver = (receiver,)  # in a tuple: frozen, not part of this module
        self.record: dict[str, Any] = {"receiver": receiver.name}  # of a loaded codec, all of its config.json
        self.receiver_digest = receiver.digest  # of the receiver that it is trained with
        self.unit = receiver.channel.unit
        self.width = receiver.channel.width
        make = plugins.load(plugins.ENCODERS, ENCODERS, config.encoder)
        with plugins.blame(plugins.ENCODERS, config.encoder):
            self.encoder: nn.Module = make(config, receiver)
        # An adapted receiver reads the lead itself, with weights of its own.
        reads_lead = isinstance(self.encoder, AdaptedReceiver)
        self.lead = receiver.tokens(config.lead) if config.lead and not reads_lead else []
        # The spelling is that of the weights' names in published checkpoints.
        self.quantiser = VectorQuantizer(config, receiver) if config.bottleneck == "vq" else None
        self.norm = nn.LayerNorm(self.width) if config.calibration == "layernorm" else None
        gate = config.scale_gate if self.norm else math.log(config.scale_gate)
        scaled = config.calibration != "none"
        self.gate = nn.Parameter(torch.tensor(gate if scaled else 0.0), requires_grad=scaled)

    @property
    def receiver(self) -> Receiver:
        """The receiver, whose slots are filled through the codec's channel."""
        return self._receiver[0]

    @property
    def scale_gate(self) -> Tensor:
        """The learned prefix norm divided by the channel's unit, such as the mean token-embedding norm.

        Calibration `none` has no such norm; there it is 1.
        """
        return self.gate if self.norm else self.gate.exp()

    def forward(
        self, messages: EncodedMessage, k: int | None = None, gather: Gather = lambda tensor: tensor
    ) -> CodecOutput:
        """Turn messages into prefixes.

        Args:
            messages: The messages as the receiver reads them.
            k: Number of slots, by default the configured one; only the encoder `segments` accepts another.
            gather: Returns a tensor's rows from all workers, so that codebooks follow the global batch.
        """
        return self.decode(self.encode(messages, k or self.config.k), gather=gather)

    def encode(self, messages: EncodedMessage, k: int) -> Tensor:
        """Turn messages into latents, [B, K, D].

        Raises:
            UserError: the messages were read without the codec's channel, or a plugin's encoder fails or returns
                another shape.
        """
        if self.config.channel != "embeddings" and messages.own_BTD is messages.embeds_BTD:
            # Also behind a lead, where they are read again: decoded by the same receiver, a prefix that happens to
            # have its width would enter at the wrong place, and give wrong numbers.
            raise UserError(
                f"messages: not read through the codec's channel {self.config.channel}; read them with "
                "codec.receiver.encode_messages, and decode with codec.receiver"
            )
        if self.lead:
            messages = self._behind_lead(messages)
        with plugins.blame(plugins.ENCODERS, self.config.encoder):
            latent_BKD = cast(Tensor, self.encoder(messages, k))
        found, expected = list(latent_BKD.shape), [len(messages.mask_BT), k, self.width]
        if found != expected:
            raise plugins.plugin_error(
                plugins.ENCODERS, self.config.encoder, f"gave shape {found}, expected {expected}"
            )
        return latent_BKD

    def _behind_lead(self, messages: EncodedMessage) -> EncodedMessage:
        """Return messages as the receiver reads them behind the lead, of which nothing is kept."""
        lengths = messages.mask_BT.sum(dim=1).tolist()
        rows = [row[:length] for row, length in zip(messages.ids_BT.tolist(), lengths, strict=True)]
        led = self.receiver.encode_token_ids([[*self.lead, *row] for row in rows])
        return EncodedMessage(*(field[:, len(self.lead) :] for field in led))

    def decode(
        self, latent_BKD: Tensor, scale_gate: float | None = None, gather: Gather = lambda tensor: tensor
    ) -> CodecOutput:
        """Turn latents into prefixes; `scale_gate` overrides the learned one."""
        if self.quantiser is None:
            return CodecOutput(self.calibrate(latent_BKD, scale_gate), latent_BKD, None, None, None)
        scaled_BKD = latent_BKD / (self.unit / math.sqrt(self.width)) if self.norm is None else latent_BKD
        quantized_BKD, codes_BKG, probs_BKGC = self.quantiser(scaled_BKD, gather)
        # Straight-through: the gradient skips the quantizer.
        straight_BKD = scaled_BKD + (quantized_BKD - scaled_BKD).detach()
        return CodecOutput(
            self.calibrate(straight_BKD, scale_gate), scaled_BKD, codes_BKG, probs_BKGC, quantized_BKD
        )

    def calibrate(self, latent_BKD: Tensor, scale_gate: float | None = None) -> Tensor:
        """Scale latents like the receiver's own vectors: LayerNorm or unit norm, times the unit and scale_gate.

        Calibration `none` leaves them as they are, unless `scale_gate` asks for a norm.
        """
        if self.config.calibration == "none" and scale_gate is None:
            return latent_BKD
        gate = self.scale_gate if scale_gate is None else scale_gate
        if self.norm is not None:
            return cast(Tensor, self.norm(latent_BKD)) * (self.unit / math.sqrt(self.width)) * gate
        # A slot without tokens (there are more slots than tokens) starts at zero. A vector below a tenth of an
        # embedding's norm is not scaled to full norm: it would be noise, with a gradient that exceeds all others.
        floor = 0.1 * (self.unit if self.quantiser is None else math.sqrt(self.width))
        return F.normalize(latent_BKD, dim=-1, eps=floor) * self.unit * gate

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration with the keys that existed when it was saved, so that new keys change no digest."""
        known = self.record.get("codec", CodecConfig.model_fields)
        return {key: value for key, value in self.config.model_dump().items() if key in known}

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of configuration, receiver and weights."""
        text = json.dumps(self.settings, separators=(",", ":"))
        sha = hashlib.sha256((text + self.receiver_digest).encode())
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().numpy())
        return sha.hexdigest()[:16]

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write `codec.safetensors` and `config.json`, to which `about` adds how the codec was trained."""
        save_tensors(folder / "codec.safetensors", dict(self.state_dict()), {"receiver": self.receiver_digest})
        record = {
            "codec": self.settings,
            "receiver_digest": self.receiver_digest,
            "digest": self.digest,
            **about,
        }
        write_json(folder / "config.json", record)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory, {key: value for key, value in self.record.items() if key not in CORE})

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Codec:  # type: ignore[override]
        """Load a codec from a folder, or from the hub.

        Args:
            name: A folder that `save`, `save_pretrained` or m2ray.publish wrote, or a name on the hub.
            options: `receiver`, a Receiver or its name (default: the name in the codec's record), `other_receiver`
                as in `load_codec`, and those of `ModelHubMixin.from_pretrained`.

        Raises:
            UserError: as `load_codec`; or no such folder, and the hub has no such codec or does not answer.
        """
        if Path(name).is_dir():
            return super().from_pretrained(name, **options)
        if not is_hub_name(str(name)):
            raise UserError(f"{name}: no such folder; give a codec's folder, or its name on the hub")
        try:
            return super().from_pretrained(name, **options)
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"{name}: no such folder, and the hub does not provide it ({describe_error(error)}); "
                "check the name"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        receiver: Receiver | str | None = None,
        other_receiver: bool = False,
        config: Any = None,
        **download: Any,
    ) -> Codec:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, allow_patterns=FILES, **download))
        if not isinstance(receiver, Receiver):  # a name; by default the mixin passes that of the record
            record = read_record(folder)
            trained_in = (record.get("trial") or {}).get("receiver_dtype", "auto")
            receiver = load_receiver(receiver or str(record.get("receiver")), dtype=trained_in)
        return load_codec(folder, receiver, other_receiver)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the codec's model card, with its verdict if it was judged."""
        record = {**self.record, "codec": self.settings, "digest": self.digest}
        return model_card({**record, "receiver_digest": self.receiver_digest}, kwargs.get("repo_id") or "FOLDER")


def min_parameters(config: CodecConfig, width: int, out: int) -> int:
    """Return a lower bound on a codec's parameters, from its configuration and the widths of receiver and channel.

    A plugin's encoder counts as 0 parameters, since its size is unknown.
    """
    hidden = config.width
    bounds = {
        "last_token": hidden * (width + hidden + config.k * out),
        "resampler": hidden * (width + out + config.layers * hidden + config.k),
        "segments": hidden * (width + out + config.layers * hidden),
        "memory": (config.k + config.lora_rank) * width,
        "projector": hidden * (width + config.k * out),
        "pooled": hidden * (width + out) + config.lora_rank * width,
        "gist": (1 + config.lora_rank) * width,
        "adapter": hidden * (width + out + 4 * hidden),
        "constant": config.k * out,
    }
    return bounds.get(config.encoder, 0) + (config.codebook * out if config.bottleneck == "vq" else 0)


def load_codec(folder: Path, receiver: Receiver, other_receiver: bool = False) -> Codec:
    """Load a codec for the receiver that it was trained with. Never unpickles.

    Args:
        folder: The codec's folder.
        receiver: The receiver that reads its prefixes, and whose embeddings and states its encoder gets.
        other_receiver: Load it for another receiver of the same width instead, to see whether it carries over.

    Raises:
        UserError: missing, truncated, changed, of another receiver (with `other_receiver`, of this one), or its
            weights do not fit its config.json or the other receiver's size.
    """
    record = read_record(folder)
    file = folder / "config.json"
    check_receiver(record, folder, receiver.name, receiver.digest, other_receiver)
    config = validate(CodecConfig, record["codec"], f"{file}: codec")
    tensors, _ = load_tensors(folder / "codec.safetensors")
    # The weights are compared with a codec that is built first. A damaged record must not make it gigabytes large.
    channel = open_channel(receiver, config.channel, config.channel_layers).channel
    if min_parameters(config, receiver.width, channel.width) > sum(tensor.numel() for tensor in tensors.values()):
        if other_receiver:
            raise _misfit(folder, receiver)
        raise UserError(f"{folder}/codec.safetensors: fewer weights than config.json implies; restore either")
    codec = Codec(config, receiver)
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        if other_receiver:
            raise _misfit(folder, receiver) from None
        raise UserError(
            f"{folder}/codec.safetensors: does not fit config.json ({' '.join(str(error).split())[:200]}); "
            "restore the k and encoder it was trained with"
        ) from None
    codec.record, codec.receiver_digest = record, record["receiver_digest"]
    if codec.digest != record["digest"]:
        raise UserError(f"{folder}: digest: weights or settings were changed since training; remake it")
    return codec.to(receiver.device).eval()


def _misfit(folder: Path, receiver: Receiver) -> UserError:
    return UserError(
        f"{folder}/codec.safetensors: does not fit {receiver.name}, of width {receiver.width}; give a receiver of "
        "the width and depth that it was trained with"
    )
