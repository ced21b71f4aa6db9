"""Write a sweep's record, sweep.yaml, and hold a resumed sweep against it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from m2ray.codec.checkpoints import TASK_FILE
from m2ray.config.gate_file import GateConfig
from m2ray.config.plan import Plan
from m2ray.config.sweep_record import (
    LOCK_FILE,
    Change,
    Extension,
    read_sweep_record,
    record_file,
    write_sweep_record,
)
from m2ray.config.trial import TrialConfig
from m2ray.receiver.loading import load_trial_receiver
from m2ray.util import plugins
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable
from m2ray.util.locks import Locked, try_lock
from m2ray.util.strict_yaml import validate

PACKAGES = ("m2ray", "torch", "transformers", "ray", "optuna", "numpy", "scipy", "statsmodels", "pandas")
# Entries that may not change unnoticed when a sweep is resumed.
MOVED_RECEIVER = "space.trial.receiver"  # where it is; its digest decides
DECISIVE = ("space", "points", "gate", "receiver", "code", "packages")
BUDGET = ("space.search.max_hours", "space.search.max_core_hours")  # may change: they decide no outcome


def check_results_folder(root: Path, resume: str, name: str | None, dry: bool) -> None:
    """Refuse to mix two sweeps in one folder.

    Args:
        root: The folder.
        resume: The option that continues a sweep there; empty for a new one.
        name: The name that the command line gives.
        dry: True if nothing will be written.

    Raises:
        UserError: the folder holds a sweep and no option continues it, or the other way round.
    """
    if name is not None and (not name or name in (".", "..") or Path(name).name != name):
        raise UserError(f"--name: {name!r} is not a plain folder name; use letters, digits, - and _")
    check_writable("--results", root)
    exists = record_file(root).is_file()
    if exists and not resume and not dry:
        raise UserError(
            f"{root}: already holds a sweep (a clone of the repository has the published ones); choose another "
            "--name, resume with --resume, or sample more with --add-trials"
        )
    if resume and not exists:
        raise UserError(f"{root}: no sweep.yaml to resume; check --name and --results, or leave {resume} out")


@contextmanager
def lock_results_folder(root: Path) -> Iterator[None]:
    """Keep other sweeps out of a results folder while the block runs; a kill frees it.

    Raises:
        UserError: another sweep runs there; names its process and machine.
    """
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    try:
        with try_lock(root / LOCK_FILE, holder) as locked:
            if not locked:
                print(f"{root}: no locks on this file system; run one sweep at a time there", file=sys.stderr)
            yield
    except Locked as other:
        raise UserError(
            f"{root}: another sweep runs there ({other or 'just started'}); wait for it, stop it, or choose "
            "another --name"
        ) from None


def describe_sweep(plan: Plan, gate: GateConfig, argv: Sequence[str]) -> dict[str, Any]:
    """Return a sweep's record: all settings resolved, package versions, and the receiver's digest."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    receiver = load_trial_receiver(plan.example)
    record = {
        "id": uuid.uuid4().hex[:12],  # tells a look at confirm that continues from a second one
        "command": shlex.join(["python", "-m", "m2ray.sweep", *argv]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {receiver.device.type}",
        "python": platform.python_version(),
        "code": code_digest(),
        "git": commit.stdout.strip() or "not a git checkout",
        "receiver": {"name": receiver.name, "digest": receiver.digest},
        # Found by the receiver's check; see `m2ray.receiver.model.causal_model.Ways`.
        "receiver_run": {
            "dtype": receiver.dtype_name,
            "ways": dict(receiver.causal.ways._asdict()),
        },
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES} | plugins.packages(),
        "space": plan.space.model_dump(by_alias=True),
        "file": str(plan.file),
        "gate": gate.model_dump(),
        "points": {name: config.model_dump() for name, config in plan.points.items()},
    }
    digest = plan.example.task.file_digest
    return record if digest is None else {**record, TASK_FILE: digest}


def decided_type(folder: Path, plan: Plan) -> str | None:
    """Return the numeric type that the receiver of a resumed sweep has, whatever is faster on this machine.

    None leaves it to the configuration, which names one. Earlier versions took that of the receiver's file.
    """
    if plan.example.receiver_dtype is not None:
        return None
    recorded = read_sweep_record(folder).get("receiver_run", {}).get("dtype", "auto")
    return str(recorded)


def settle_changes(folder: Path, record: Mapping[str, Any], accept: bool) -> None:
    """Refuse to resume a sweep with other settings than it began with, or record that this was done on purpose.

    Args:
        folder: The sweep's folder.
        record: What `describe_sweep` returns now.
        accept: Accept changes: `sweep.yaml` then has the new settings, and lists the old ones, with the date,
            under `changes`. Points that are no longer in the space are listed under `withdrawn`.

    Raises:
        UserError: names the first setting that differs, its old and its new value; or the file of the episodes
            or the points differ, which is never accepted.
    """
    before, now = read_sweep_record(folder), yaml.safe_load(yaml.safe_dump(dict(record)))
    # Rows of different episodes under the same numbers would mix.
    if before.get(TASK_FILE) != now.get(TASK_FILE):
        raise UserError(
            f"{record_file(folder)}: {TASK_FILE}: the episodes of task.file differ from those that this sweep "
            f"began with (digest {now.get(TASK_FILE)}, was {before.get(TASK_FILE)}); restore the file, or start "
            "anew under another --name"
        )
    changes = [
        change
        for key in DECISIVE
        for change in differences(key, before.get(key), now[key])
        if change.key != MOVED_RECEIVER
    ]
    budget = [change for change in changes if change.key in BUDGET]
    changes = [change for change in changes if change.key not in BUDGET]
    if changes and accept:
        check_points(folder, before, now)
    if changes and not accept:
        key, old, new = changes[0]
        more = f"; {len(changes) - 1} more" if changes[1:] else ""
        raise UserError(
            f"{record_file(folder)}: {key}: differs from what this sweep began with "
            f"(was {old!r:.60}, is {new!r:.60}{more}); restore it, start anew under another --name, or resume "
            "with --resume --accept-changes"
        )
    if budget and not changes:
        write_sweep_record(folder, {**before, "space": now["space"]})
    if changes:
        dated = [{"date": now["date"], **change._asdict()} for change in changes]
        decisive = {key: now[key] for key in DECISIVE}
        settled = {**before, **decisive, "changes": [*before.get("changes", []), *dated]}
        if "receiver_run" in now:
            settled["receiver_run"] = now["receiver_run"]
        settled.pop("withdrawn", None)
        withdrawn = withdrawn_points(before, now)
        write_sweep_record(folder, {**settled, "withdrawn": withdrawn} if withdrawn else settled)


def check_points(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse points that the sweep did not begin with: what is pre-registered cannot be written afterwards.

    Points may be taken out, and come back.

    Raises:
        UserError: names the first point that was added, or is trained differently.
    """
    for name, point in now["points"].items():
        known = before.get("points", {}).get(name)
        if known is None and name in before.get("withdrawn", {}):
            continue
        if known is None or _trained(known) != _trained(point):
            what = "was added" if known is None else "has other settings"
            raise UserError(
                f"{record_file(folder)}: points.{name}: {what}; points are fixed when a sweep starts: restore "
                "it, or start anew under another --name"
            )


def _trained(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded point's settings of the training; keys that later versions added have their defaults."""
    try:
        return validate(TrialConfig, dict(point), "points").model_dump(include={"codec", "losses", "training"})
    except UserError:  # of a version with other keys
        return dict(point)


def withdrawn_points(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the points that were taken out of a sweep under way, each with the date on which that was noticed.

    Args:
        before: The sweep's record so far. Points that it lists as withdrawn stay so, unless the space has them
            again.
        now: What `describe_sweep` returns now.
    """
    removed = dict.fromkeys(before.get("points", {}), now["date"])
    return {
        name: date
        for name, date in {**removed, **before.get("withdrawn", {})}.items()
        if name not in now["points"]
    }


def forget(folder: Path) -> None:
    """Remove what a sweep wrote before anything was trained, so that another one can begin in the folder."""
    shutil.rmtree(folder / "rows", ignore_errors=True)
    for file in (folder / "optuna.log", record_file(folder)):
        file.unlink(missing_ok=True)


def extend(folder: Path, trials: int, seeds: Sequence[int], command: str) -> None:
    """Record in a sweep's record that trials, and training seeds of what it judges, are added."""
    record = read_sweep_record(folder)
    extension = Extension(time.strftime("%Y-%m-%d", time.gmtime()), command, trials, list(seeds))
    extensions = [*record.get("extensions", []), extension._asdict()]
    write_sweep_record(folder, {**record, "extensions": extensions})


def differences(key: str, before: Any, now: Any) -> Iterator[Change]:
    """Yield the settings in which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield Change(key, before, now)
