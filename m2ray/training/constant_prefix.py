"""The trained content-free prefix of the condition `constant`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from m2ray.codec.codec import Codec, load_codec
from m2ray.config.objectives import CrossEntropyTerm, Losses
from m2ray.config.trial import CodecConfig, TrainingConfig, TrialConfig
from m2ray.receiver.receiver import Receiver
from m2ray.training.trainer import train


def trained_constant(receiver: Receiver, trial: TrialConfig, slots: CodecConfig, root: Path) -> Codec:
    """Return the best content-free prefix that a short training finds; train it unless it is there.

    Args:
        receiver: The receiver that reads it.
        trial: The configuration under test: its task, training split, batch size and `constant_samples` apply.
        slots: The codec under test: the prefix gets its k and place.
        root: Folder in which such prefixes are kept.
    """
    config = _constant_config(trial, slots)
    # The name contains all that decides the weights, so that a short training never stands in for a long one.
    decisive: Any = {"task": True, "codec": True, "training": True, "splits": {"train"}}
    settings = hashlib.sha256(config.model_dump_json(include=decisive).encode()).hexdigest()[:8]
    codec = config.codec
    folder = root / f"constant-{trial.task.level}-{receiver.digest}-k{codec.k}-{codec.place}-{settings}"
    checkpoint = folder / "epoch-01"
    if not (checkpoint / "config.json").is_file():
        train(config, 0, receiver, folder, lambda metrics, at: None, {"config": "constant"})
    return load_codec(checkpoint, receiver)


def _constant_config(trial: TrialConfig, slots: CodecConfig) -> TrialConfig:
    codec = CodecConfig(encoder="constant", k=slots.k, place=slots.place, calibration="norm", scale_gate=1.0)
    training = TrainingConfig(
        epochs=1,
        epoch_samples=trial.evaluation.constant_samples,
        batch_size=min(64, trial.training.batch_size),
        lr=2e-2,
        weight_decay=0.0,
    )
    losses = Losses(ce=CrossEntropyTerm())
    changes = {"codec": codec, "losses": losses, "training": training, "workers": 1, "trackers": []}
    return trial.model_copy(update=changes)
