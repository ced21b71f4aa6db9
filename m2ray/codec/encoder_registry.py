"""The built-in encoders by the name that a configuration gives them (`m2ray.config.trial.ENCODERS`)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from m2ray.codec.encoders import Constant, LastToken, Resampler, Segments
from m2ray.codec.lora_encoders import Gist, Memory, Pooled
from m2ray.codec.state_encoders import Adapter, Own, Projector
from m2ray.config.trial import CodecConfig
from m2ray.receiver.receiver import Receiver

ENCODERS: dict[str, Callable[[CodecConfig, Receiver], nn.Module]] = {
    "last_token": LastToken,
    "resampler": Resampler,
    "segments": Segments,
    "memory": Memory,
    "constant": Constant,
    "own": Own,
    "projector": Projector,
    "pooled": Pooled,
    "gist": Gist,
    "adapter": Adapter,
}
