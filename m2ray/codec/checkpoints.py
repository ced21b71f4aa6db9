"""Checkpoint folders: where they are, and what their records (config.json) contain. Loads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ray.config.task import TaskConfig
from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError, describe_error
from m2ray.util.strict_yaml import validate

TASK_FILE = "task_file"  # key of the digest of `task.file`
SENT = "sent"  # key of what a message costs (`m2ray.codec.sent_size`); its entries are leaderboard columns
CORE = ("codec", "receiver_digest", "digest")  # keys that every record has; those of the training come on top


def read_record(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json.

    Raises:
        UserError: missing or unreadable.
    """
    file = folder / "config.json"
    if not file.is_file():
        below = sorted(folder.glob("*/config.json"))
        fix = f", such as {below[-1].parent}" if below else " that m2ray.train wrote"
        raise UserError(f"{folder}: no config.json; give a checkpoint folder{fix}")
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({describe_error(error)}); remake the checkpoint") from None
    if not isinstance(record, dict) or not set(CORE) <= set(record):
        raise UserError(f"{file}: not the record of a codec; give a checkpoint folder that m2ray.train wrote")
    return record


@dataclass(frozen=True)
class CheckpointId:
    """Identity of a checkpoint, as the columns of its rows.

    Attributes:
        config: The configuration's name.
        seed: Training seed.
        checkpoint: The codec's digest.
        step: Optimizer steps done.
        params: JSON of the configuration's columns on the leaderboard.
    """

    config: str
    seed: int
    checkpoint: str
    step: int
    params: str


def trained_with(record: dict[str, Any]) -> str:
    """Return the receiver that a codec was trained with, by its record: its name, if known, and digest."""
    name, digest = record.get("receiver"), record["receiver_digest"]
    return f"{name} ({digest})" if name else str(digest)


def check_receiver(record: dict[str, Any], folder: Path, name: str, digest: str, other_receiver: bool) -> None:
    """Check that a codec meets the receiver that it was trained with or, with `other_receiver`, another one.

    Args:
        record: The codec's record.
        folder: The codec's folder, for the error.
        name: The name of the receiver that is to read its prefixes.
        digest: The digest of that receiver.
        other_receiver: True if it must be another one.

    Raises:
        UserError: it is not.
    """
    same = record["receiver_digest"] == digest
    if same and other_receiver:
        raise UserError(
            f"--other-receiver: {name} ({digest}) is the receiver that the codec was trained with; leave it out"
        )
    if not same and not other_receiver:
        raise UserError(
            f"{folder}/config.json: receiver_digest: trained with receiver {trained_with(record)}, not with "
            f"{name} ({digest}); use the receiver it was trained with (--other-receiver of m2ray.evaluate and "
            "m2ray.diagnose tries another)"
        )


def of_other_receiver(name: str, record: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the name and column of a configuration in rows of another receiver than its codec was trained with.

    The name is such as `k8-of-mini`, and the column `trained_with` has the codec's own receiver, so that no row is
    taken for one of its own.
    """
    own = Path(record.get("receiver") or record["receiver_digest"]).name
    return f"{name}-of-{own}", {"trained_with": trained_with(record)}


def checkpoint_id(folder: Path, other_receiver: bool = False) -> CheckpointId:
    """Return a checkpoint's identity.

    Args:
        folder: The checkpoint's folder.
        other_receiver: True where another receiver than the codec's own answers; see `of_other_receiver`.

    Raises:
        UserError: its record does not contain it.
    """
    record = read_record(folder)
    for key, kind in (("config", str), ("seed", int), ("step", int), ("digest", str)):
        if not isinstance(record.get(key), kind):
            file = f"{folder}/config.json"
            raise UserError(f"{file}: {key}: missing or not {kind.__name__}; give a checkpoint of m2ray.train")
    columns = [part for part in (record.get("params"), record.get(SENT)) if isinstance(part, dict)]
    name = record["config"]
    if other_receiver:
        name, column = of_other_receiver(name, record)
        columns.append(column)
    params = json.dumps({key: value for part in columns for key, value in part.items()}, sort_keys=True)
    return CheckpointId(name, record["seed"], record["digest"], record["step"], params)


def checkpoints(root: Path) -> list[Path]:
    """Return all complete checkpoints of trained configurations below a folder, oldest epoch first."""
    return sorted(file.parent for file in root.glob("*/seed-*/epoch-*/config.json"))


def last_checkpoints(root: Path) -> dict[tuple[str, int], Path]:
    """Return the latest checkpoint of each (configuration, training seed)."""
    latest: dict[tuple[str, int], Path] = {}
    for folder in checkpoints(root):
        record = read_record(folder)
        latest[record["config"], record["seed"]] = folder
    return latest


def trial_of(folder: Path) -> TrialConfig:
    """Return the configuration that a checkpoint was trained with.

    One that does not name the receiver's numeric type was trained in that of the receiver's file.

    Raises:
        UserError: not a checkpoint, its record has no valid configuration, or the file of its episodes has
            changed.
    """
    record = read_record(folder)
    if "trial" not in record:
        raise UserError(f"{folder}/config.json: trial: missing; give a checkpoint that m2ray.train wrote")
    trial = validate(TrialConfig, record["trial"], f"{folder}/config.json: trial")
    trial = trial.model_copy(update={"receiver_dtype": trial.receiver_dtype or "auto"})
    check_task_file(folder, trial.task)
    return trial


def check_task_file(folder: Path, task: TaskConfig) -> None:
    """Refuse a checkpoint where the file of the episodes is not the one that it was trained on.

    Lines of another file may hold other messages under the same numbers, among them training messages. A file that
    is gone is refused where it is read, and older checkpoints do not record what they were trained on.

    Raises:
        UserError: names the file.
    """
    trained = read_record(folder).get(TASK_FILE)
    if trained is None or task.file is None or not Path(task.file).is_file():
        return
    if (now := task.file_digest) != trained:
        raise UserError(
            f"{task.file}: not what {folder} was trained on (digest {now}, was {trained}); restore the file, or "
            "train anew"
        )


def run_folder(root: Path, name: str, seed: int) -> Path:
    """Return the folder of a configuration's training with one seed."""
    return root / name / f"seed-{seed}"
