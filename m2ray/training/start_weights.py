"""What a training run starts from: a receiver with the layers its objectives compare, weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2ray.codec.checkpoints import TASK_FILE
from m2ray.codec.codec import Codec, load_codec
from m2ray.config.task import TaskConfig
from m2ray.config.trial import TrialConfig
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError


def check_layers(config: TrialConfig, receiver: Receiver) -> None:
    """Refuse objectives on hidden states that a receiver does not have.

    Raises:
        UserError: `losses.slots` compares states after each layer but the last, and there is only one.
    """
    if config.losses.slots and receiver.layers < 2:
        raise UserError(
            f"losses.slots: compares states after each layer but the last, and receiver {receiver.name} has one "
            "layer; remove it"
        )


def load_start_weights(folder: Path, codec: Codec, config: TrialConfig, receiver: Receiver) -> None:
    """Give a codec the weights of a checkpoint of the same form, except for its k.

    Raises:
        UserError: there is no such checkpoint, its receiver or form differs, or it was trained on another task,
            whose training messages may be those that this one is judged on.
    """
    start = load_codec(folder, receiver)
    if not _is_trained_on(start.record, config.task):
        raise UserError(f"training.start: {folder}: trained on another task; use a checkpoint of the same")
    given, wanted = ({**dict(codec_config), "k": None} for codec_config in (start.config, config.codec))
    if given != wanted:
        differ = [f"codec.{key} is {given[key]}, not {wanted[key]}" for key in wanted if given[key] != wanted[key]]
        raise UserError(
            f"training.start: {folder}: more than its k differs: {', '.join(differ)}; give both the same"
        )
    try:
        codec.load_state_dict(start.state_dict())
    except RuntimeError:
        raise UserError(
            f"training.start: {folder}: the encoder {config.codec.encoder} is made for one k; use {start.config.k}"
        ) from None


def _is_trained_on(record: Mapping[str, Any], task: TaskConfig) -> bool:
    """Return whether a codec's record names this task; a published one names its file without folders."""
    trained, now = (record.get("trial") or {}).get("task"), task.model_dump(mode="json")
    if trained == now:
        return True
    if task.file is None or not trained:
        return False
    return {**trained, "file": None} == {**now, "file": None} and record.get(TASK_FILE) == task.file_digest
