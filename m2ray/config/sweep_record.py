"""The record of a sweep, `sweep.yaml`: everything that decides its outcome, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping
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


def record_file(folder: Path) -> Path:
    """Return the path of the record in a results folder."""
    return folder / "sweep.yaml"


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which `read_yaml` refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_sweep_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record into a results folder."""
    write_atomic(record_file(folder), yaml.dump(dict(record), Dumper=_PlainDumper, sort_keys=False).encode())


def read_sweep_record(folder: Path) -> dict[str, Any]:
    """Return the record in a results folder; empty if there is none.

    Raises:
        UserError: unreadable, or not what a sweep writes.
    """
    file = record_file(folder)
    record = read_yaml(file) if file.is_file() else {}
    for key, kind in (("receiver", dict), ("gate", dict), ("changes", list)):
        value = record.get(key, kind())
        if not isinstance(value, kind) or (key == "changes" and not all(map(_is_dated_change, value))):
            raise UserError(f"{file}: {key}: not what a sweep writes there; restore the file, or remove it")
    return record


def _is_dated_change(entry: Any) -> bool:
    return isinstance(entry, dict) and {"date", *Change._fields} <= set(entry)
