"""sweep.yaml: everything that decides a sweep's outcome, and where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from m2ray.command import UserError
from m2ray.config import read_yaml
from m2ray.files import write_atomic
from m2ray.gate import GateConfig
from m2ray.space import Plan

PACKAGES = ("m2ray", "torch", "transformers", "ray", "optuna", "numpy", "scipy", "statsmodels", "pandas")
DECISIVE = ("space", "points", "gate", "receiver")  # what may not change when a sweep is resumed


def file_of(folder: Path) -> Path:
    """Where a results folder keeps it."""
    return folder / "sweep.yaml"


def describe(plan: Plan, gate: GateConfig, argv: Sequence[str]) -> dict[str, Any]:
    """A sweep with all settings resolved, the versions of what runs it, and the receiver's digest."""
    from m2ray.receiver import load_receiver

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    receiver = load_receiver(plan.example.receiver)
    return {
        "command": shlex.join(["python", "-m", "m2ray.sweep", *argv]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {receiver.device.type}",
        "python": platform.python_version(),
        "git": commit.stdout.strip() or "not a git checkout",
        "receiver": {"name": receiver.name, "digest": receiver.digest},
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "space": plan.space.model_dump(by_alias=True),
        "file": str(plan.file),
        "gate": gate.model_dump(),
        "points": {name: config.model_dump() for name, config in plan.points.items()},
    }


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Write it into a results folder."""
    write_atomic(file_of(folder), yaml.safe_dump(dict(about), sort_keys=False).encode())


def read(folder: Path) -> dict[str, Any]:
    """What a results folder says of its sweep; empty where it says nothing.

    Raises:
        UserError: unreadable.
    """
    file = file_of(folder)
    return read_yaml(file) if file.is_file() else {}


def check_same(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse to resume a sweep under other settings than it began with.

    Raises:
        UserError: names the setting.
    """
    before, now = read(folder), yaml.safe_load(yaml.safe_dump(dict(about)))
    for key in DECISIVE:
        if before.get(key) != now[key]:
            where = first_difference(before.get(key), now[key], key)
            raise UserError(
                f"{file_of(folder)}: {where}: differs from what this sweep began with; restore it, or start anew "
                "under another --name"
            )


def first_difference(before: Any, now: Any, key: str) -> str:
    """The dotted key of the first setting in which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                return first_difference(before.get(name), now.get(name), f"{key}.{name}")
    return key
