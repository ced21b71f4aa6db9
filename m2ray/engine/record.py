"""Write a sweep's record, sweep.yaml, and hold a resumed sweep against it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
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
from m2ray.config.sweep_record import LOCK_FILE, Change, read_sweep_record, record_file, write_sweep_record
from m2ray.receiver.loading import load_receiver
from m2ray.util import plugins
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable
from m2ray.util.locks import Locked, try_lock

PACKAGES = ("m2ray", "torch", "transformers", "ray", "optuna", "numpy", "scipy", "statsmodels", "pandas")
# Entries that may not change unnoticed when a sweep is resumed.
MOVED_RECEIVER = "space.trial.receiver"  # where it is; its digest decides
DECISIVE = ("space", "points", "gate", "receiver", "code", "packages")


def check_results_folder(root: Path, resume: bool, name: str | None, dry: bool) -> None:
    """Refuse to mix two sweeps in one folder.

    Raises:
        UserError: the folder holds a sweep and `--resume` was not given, or the other way round.
    """
    if name is not None and (not name or name in (".", "..") or Path(name).name != name):
        raise UserError(f"--name: {name!r} is not a plain folder name; use letters, digits, - and _")
    check_writable("--results", root)
    exists = record_file(root).is_file()
    if exists and not resume and not dry:
        raise UserError(
            f"{root}: already holds a sweep (a clone of the repository has the published ones); choose another "
            "--name, or resume with --resume"
        )
    if resume and not exists:
        raise UserError(f"{root}: no sweep.yaml to resume; check --name and --results, or leave --resume out")


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
    receiver = load_receiver(plan.example.receiver)
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
            "dtype": str(receiver.dtype).removeprefix("torch."),
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


def settle_changes(folder: Path, record: Mapping[str, Any], accept: bool) -> None:
    """Refuse to resume a sweep with other settings than it began with, or record that this was done on purpose.

    Args:
        folder: The sweep's folder.
        record: What `describe_sweep` returns now.
        accept: Accept changes: `sweep.yaml` then has the new settings, and lists the old ones, with the date,
            under `changes`. Points that are no longer in the space are listed under `withdrawn`.

    Raises:
        UserError: names the first setting that differs, its old and its new value; or the file of the episodes
            differs, which is never accepted.
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
    if changes and not accept:
        key, old, new = changes[0]
        more = f"; {len(changes) - 1} more" if changes[1:] else ""
        raise UserError(
            f"{record_file(folder)}: {key}: differs from what this sweep began with "
            f"(was {old!r:.60}, is {new!r:.60}{more}); restore it, start anew under another --name, or resume "
            "with --resume --accept-changes"
        )
    if changes:
        dated = [{"date": now["date"], **change._asdict()} for change in changes]
        decisive = {key: now[key] for key in DECISIVE}
        settled = {**before, **decisive, "changes": [*before.get("changes", []), *dated]}
        settled.pop("withdrawn", None)
        withdrawn = withdrawn_points(before, now)
        write_sweep_record(folder, {**settled, "withdrawn": withdrawn} if withdrawn else settled)


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


def record_confirm_look(folder: Path, plan: Plan) -> str:
    """Record a look at the confirm split in the user's ledger and in the sweep's record.

    A sweep that was killed in its confirm stage and resumed continues its look: see
    `m2ray.evaluation.confirm_ledger`.

    Returns:
        The line about the look that reports show.
    """
    # Load torch and pandas, which `m2ray.sweep --help` must not wait for.
    from m2ray.evaluation.confirm_ledger import ConfirmLedger, look_key, new_look
    from m2ray.receiver.episode_source import EpisodeSource

    record, example = read_sweep_record(folder), plan.example
    points = {name: config.model_dump() for name, config in plan.points.items()}
    key = look_key(folder, record, [plan.space.model_dump(by_alias=True), points])
    looks = record.get("looks", [])
    for recorded in looks:
        if recorded["key"] == key:
            return str(recorded["line"])
    episodes = EpisodeSource(example.task).without_sender(example.splits.seeds("confirm"), "confirm")
    ledger = ConfirmLedger(example.task.level, load_receiver(example.receiver).digest)
    look = new_look(episodes, str(record.get("command")), f"sweep {folder.name}", "confirm", key)
    line = ledger.earlier(look).line
    ledger.record(look)
    write_sweep_record(folder, {**record, "looks": [*looks, {"date": look.date, "key": key, "line": line}]})
    return line


def differences(key: str, before: Any, now: Any) -> Iterator[Change]:
    """Yield the settings in which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield Change(key, before, now)
