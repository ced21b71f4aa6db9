"""sweep.yaml: everything that decides a sweep's outcome, and where it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m2ray import plugs
from m2ray.command import UserError, check_place
from m2ray.criteria import GateConfig
from m2ray.files import write_atomic
from m2ray.space import Plan
from m2ray.strict import read_yaml

PACKAGES = ("m2ray", "torch", "transformers", "ray", "optuna", "numpy", "scipy", "statsmodels", "pandas")
# What may not change unnoticed when a sweep is resumed.
DECISIVE = ("space", "points", "gate", "receiver", "code", "packages")


def file_of(folder: Path) -> Path:
    """Where a results folder keeps it."""
    return folder / "sweep.yaml"


def check_folder(root: Path, resume: bool, name: str | None, dry: bool) -> None:
    """Refuse to mix two sweeps in one folder.

    Raises:
        UserError: the folder holds a sweep and `--resume` was not given, or the other way round.
    """
    if name is not None and (not name or name in (".", "..") or Path(name).name != name):
        raise UserError(f"--name: {name!r} is no plain folder name; use letters, digits, - and _")
    check_place("--results", root)
    there = file_of(root).is_file()
    if there and not resume and not dry:
        raise UserError(
            f"{root}: already holds a sweep (a clone of the repository has the published ones); choose another "
            "--name, or go on with --resume"
        )
    if resume and not there:
        raise UserError(f"{root}: no sweep.yaml to resume; check --name and --results, or leave --resume out")


def describe(plan: Plan, gate: GateConfig, argv: Sequence[str]) -> dict[str, Any]:
    """A sweep with all settings resolved, the versions of what runs it, and the receiver's digest."""
    from m2ray.loading import load_receiver

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
        "code": code_digest(),
        "git": commit.stdout.strip() or "not a git checkout",
        "receiver": {"name": receiver.name, "digest": receiver.digest},
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES} | plugs.packages(),
        "space": plan.space.model_dump(by_alias=True),
        "file": str(plan.file),
        "gate": gate.model_dump(),
        "points": {name: config.model_dump() for name, config in plan.points.items()},
    }


def code_digest() -> str:
    """First 16 hex digits of the SHA-256 of this package's source: its version, committed or not."""
    sha = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(file.name.encode() + file.read_bytes())
    return sha.hexdigest()[:16]


class _Plain(yaml.SafeDumper):
    """Without anchors, which are not read back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Write it into a results folder."""
    write_atomic(file_of(folder), yaml.dump(dict(about), Dumper=_Plain, sort_keys=False).encode())


def read(folder: Path) -> dict[str, Any]:
    """What a results folder says of its sweep; empty where it says nothing.

    Raises:
        UserError: unreadable, or not what a sweep writes.
    """
    file = file_of(folder)
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


def settle(folder: Path, about: Mapping[str, Any], accept: bool) -> None:
    """Refuse to resume a sweep under other settings than it began with, or record that it was done on purpose.

    Args:
        folder: The sweep's.
        about: What `describe` says now.
        accept: Whether changes are accepted: `sweep.yaml` has them from then on, under `changes` with the date.

    Raises:
        UserError: names the first setting that differs, what it was and what it is.
    """
    before, now = read(folder), yaml.safe_load(yaml.safe_dump(dict(about)))
    changes = [change for key in DECISIVE for change in differences(key, before.get(key), now[key])]
    if changes and not accept:
        key, was, is_ = changes[0]
        more = f"; {len(changes) - 1} more" if changes[1:] else ""
        raise UserError(
            f"{file_of(folder)}: {key}: differs from what this sweep began with (was {was!r:.60}, is {is_!r:.60}"
            f"{more}); restore it, start anew under another --name, or go on with --resume --accept-changes"
        )
    if changes:
        noted = [{"date": now["date"], **change._asdict()} for change in changes]
        decided = {key: now[key] for key in DECISIVE}
        write(folder, {**before, **decided, "changes": [*before.get("changes", []), *noted]})


def differences(key: str, before: Any, now: Any) -> Iterator[Change]:
    """The settings in which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield Change(key, before, now)
