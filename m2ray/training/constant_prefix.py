"""The trained content-free prefix of the condition `constant`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from m2ray.codec.codec import Codec, load_codec
from m2ray.config.objectives import CrossEntropyTerm, Losses
from m2ray.config.trial import CodecConfig, EvaluationConfig, TrainingConfig, TrialConfig
from m2ray.receiver.receiver import Receiver
from m2ray.training.trainer import train
from m2ray.util.locks import file_lock


def trained_constant(receiver: Receiver, trial: TrialConfig, slots: CodecConfig, root: Path) -> Codec:
    """Return the best content-free prefix that training finds with the budget of the codec under test.

    It is trained once for its settings, and then read from its folder. If several processes need it at the same
    time, one of them trains and the others wait.

    Args:
        receiver: The receiver that reads it.
        trial: The configuration under test: its task, splits, number of samples and batch size apply.
        slots: The codec under test: the prefix gets its k, place and channel.
        root: Folder in which such prefixes are kept.
    """
    config = constant_config(trial, slots).model_copy(update={"receiver": receiver.name})
    # The name contains all that decides the weights, so that a short training never stands in for a long one.
    settings = hashlib.sha256(config.model_dump_json(exclude={"receiver"}).encode()).hexdigest()[:8]
    codec = config.codec
    folder = root / f"constant-{trial.task.family}-{receiver.digest}-k{codec.k}-{codec.place}-{settings}"
    checkpoint = folder / "epoch-01"
    with file_lock(folder / "lock"):
        if not (checkpoint / "config.json").is_file():
            train(config, 0, receiver, folder, lambda metrics, at: None, {"config": "constant"})
    return load_codec(checkpoint, receiver)


def constant_config(trial: TrialConfig, slots: CodecConfig) -> TrialConfig:
    """Return the settings of the prefix's training.

    Of the configuration under test they depend on nothing but what `trained_constant` names, so that trials that
    differ in other ways share it.
    """
    samples = trial.constant_samples
    batch_size = min(samples, trial.training.batch_size)
    return TrialConfig(
        receiver=trial.receiver,
        task=trial.task,
        splits=trial.splits,
        codec=CodecConfig(
            encoder="constant",
            channel=slots.channel,
            channel_layers=slots.channel_layers,
            k=slots.k,
            place=slots.place,
            calibration="norm",
            scale_gate=1.0,
        ),
        losses=Losses(ce=CrossEntropyTerm()),
        training=TrainingConfig(epochs=1, epoch_samples=samples, batch_size=batch_size, lr=2e-2, weight_decay=0.0),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )
