# NEWDOC
"""Units of evaluation work: which checkpoint plays which conditions on which split. Run anywhere, by anyone."""

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
    """The best content-free prefix that a short training finds, of a codec's k and place; trained once."""
    codec = CodecConfig(encoder="constant", k=slots.k, place=slots.place, calibration="norm", scale_gate=1.0)
    training = TrainingConfig(
        epochs=1,
        epoch_samples=trial.evaluation.constant_samples,
        batch_size=min(64, trial.training.batch_size),
        lr=2e-2,
        weight_decay=0.0,
    )
    plain = trial.model_copy(
        update={
            "codec": codec,
            "losses": Losses(ce=CrossEntropyTerm()),
            "training": training,
            "workers": 1,
            "trackers": [],
        }
    )
    # All that decides its weights is in the name: a short training must never stand in for a long one.
    decisive: Any = {"task": True, "codec": True, "training": True, "splits": {"train"}}
    settings = hashlib.sha256(plain.model_dump_json(include=decisive).encode()).hexdigest()[:8]
    folder = root / f"constant-{trial.task.level}-{receiver.digest}-k{codec.k}-{codec.place}-{settings}"
    checkpoint = folder / "epoch-01"
    if not (checkpoint / "config.json").is_file():
        train(plain, 0, receiver, folder, lambda metrics, at: None, {"config": "constant"})
    return load_codec(checkpoint, receiver)
