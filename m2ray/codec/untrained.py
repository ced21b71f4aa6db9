"""The codec with which a training begins: its initial weights follow from configuration and training seed."""

from __future__ import annotations

from typing import Any

import torch

from m2ray.codec.codec import Codec
from m2ray.config.trial import TrialConfig
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

RESTART_STRIDE = 1_000_003  # keeps the initial weights of restarts and of training seeds apart


def untrained_codec(config: TrialConfig, seed: int, receiver: Receiver, restart: int = 0) -> Codec:
    """Return the codec before its first training step, without the weights that `training.start` names.

    It seeds torch's global generator; what is drawn next belongs to the training too.

    Args:
        config: The configuration.
        seed: Training seed.
        receiver: The receiver.
        restart: How often training has begun again with other weights.
    """
    torch.manual_seed(seed + RESTART_STRIDE * restart)
    return Codec(config.codec, receiver).to(receiver.device)


def untrained_version(codec: Codec, receiver: Receiver) -> Codec:
    """Return a loaded codec as it was before training, as its record describes it.

    Raises:
        UserError: the record does not name a configuration and a training seed.
    """
    record: dict[str, Any] = codec.record
    if not isinstance(record.get("seed"), int) or "trial" not in record:
        raise UserError(
            "condition init: the codec's record lacks trial or seed, so its untrained weights are not known; load "
            "a checkpoint of m2ray.train, or leave init out"
        )
    trial = validate(TrialConfig, record["trial"], "config.json: trial")
    restart = record.get("metrics", {}).get("restart", 0)
    with torch.random.fork_rng(devices=[]):
        return untrained_codec(trial, record["seed"], receiver, restart).eval()
