# NEWDOC
"""sweep.yaml: everything that decides a sweep's outcome, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.strict_yaml import read_yaml


def record_file(folder: Path) -> Path:
    """Where a results folder keeps it."""
    return folder / "sweep.yaml"


class _Plain(yaml.SafeDumper):
    """Without anchors, which are not read back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_sweep_record(folder: Path, about: Mapping[str, Any]) -> None:
    """Write it into a results folder."""
    write_atomic(record_file(folder), yaml.dump(dict(about), Dumper=_Plain, sort_keys=False).encode())


def read_sweep_record(folder: Path) -> dict[str, Any]:
    """What a results folder says of its sweep; empty where it says nothing.

    Raises:
        UserError: unreadable, or not what a sweep writes.
    """
    file = record_file(folder)
    about = read_yaml(file) if file.is_file() else {}
    for key, kind in (("receiver", dict), ("gate", dict), ("changes", list)):
        value = about.get(key, kind())
        whole = key != "changes" or all(isinstance(c, dict) and {"date", *Change._fields} <= set(c) for c in value)
        if not isinstance(value, kind) or not whole:
            raise UserError(f"{file}: {key}: not what a sweep writes there; restore the file, or remove it")
    return about


class Change(NamedTuple):
    """A setting that differs: its dotted key, what it was, what it is."""

    key: str
    before: Any
    now: Any
