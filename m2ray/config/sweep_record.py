"""The record of a sweep, `sweep.yaml`: everything that decides its outcome, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.strict_yaml import read_yaml


class Change(NamedTuple):
    """A setting that differs: its dotted key, its value before, and its value now."""

    key: str
    before: Any
    now: Any


class Extension(NamedTuple):
    """An extension of a sweep: how many trials, and which training seeds of what it judges, were added."""

    date: str
    command: str
    trials: int
    seeds: list[int]


def record_file(folder: Path) -> Path:
    """Return the path of the record in a results folder."""
    return folder / "sweep.yaml"


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which `read_yaml` refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def plain_yaml(tree: Mapping[str, Any]) -> str:
    """Return a tree of settings as YAML that `read_yaml` reads."""
    return yaml.dump(dict(tree), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def write_sweep_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record into a results folder."""
    write_atomic(record_file(folder), plain_yaml(record).encode())


def read_sweep_record(folder: Path) -> dict[str, Any]:
    """Return the record in a results folder; empty if there is none.

    Besides the settings at the start (`m2ray.engine.record.describe_sweep`) it may have:

    - `changes`: settings that differed when the sweep was resumed, each a `Change` with its date.
    - `withdrawn`: points that were taken out of the space when the sweep was resumed, each with the date.
    - `extensions`: trials and training seeds that were added to the sweep, each an `Extension`.
    - `budget`: what a spent budget has left out, as a line.
    - `looks`: looks at confirm, each with its date, its key, and the line that reports show
      (`m2ray.evaluation.confirm_ledger`); and with its `split`, the `seeds` of its episodes if they are not those
      of `splits.confirm`, and the `configurations` and `training_seeds` that it judges.

    Raises:
        UserError: unreadable, or not what a sweep writes.
    """
    file = record_file(folder)
    record = read_yaml(file) if file.is_file() else {}
    for key, kind in (("receiver", dict), ("gate", dict), ("points", dict)):
        if not isinstance(record.get(key, kind()), kind):
            raise _damaged(file, key)
    for key, fields in (
        ("changes", ("date", *Change._fields)),
        ("looks", ("date", "key", "line")),
        ("extensions", Extension._fields),
    ):
        entries = record.get(key, [])
        if not isinstance(entries, list) or not all(_has_fields(entry, fields) for entry in entries):
            raise _damaged(file, key)
    withdrawn = record.get("withdrawn", {})
    if not isinstance(withdrawn, dict) or not all(isinstance(date, str) for date in withdrawn.values()):
        raise _damaged(file, "withdrawn")
    return record


def added(record: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Return the trials and the training seeds that all extensions of a sweep have added."""
    extensions = record.get("extensions", [])
    return sum(entry["trials"] for entry in extensions), [seed for entry in extensions for seed in entry["seeds"]]


def _has_fields(entry: Any, fields: Sequence[str]) -> bool:
    return isinstance(entry, dict) and set(fields) <= set(entry)


def _damaged(file: Path, key: str) -> UserError:
    return UserError(f"{file}: {key}: not what a sweep writes there; restore the file, or remove it")
