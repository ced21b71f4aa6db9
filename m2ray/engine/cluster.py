"""Start a local Ray cluster, or connect to a running one.

`m2ray.engine.tune_search` runs the trials (Tune), `m2ray.engine.trial` is the work of one (Train),
`m2ray.engine.evaluator_pool` runs the evaluations.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from m2ray.config.space import Resources
from m2ray.engine import ray_internals
from m2ray.util.errors import UserError, describe_error, last_line

# Of the folder of Ray's sessions: below it stand session_DATE_TIME_PID/sockets/plasma_store, 64 characters.
MAX_SESSION_FOLDER = 43
START_TRIES = 3  # on a busy machine a local node may miss Ray's deadline
NO_CLUSTER = (
    "no Ray cluster answers ({error}); start one with `ray up cluster.yaml` or `ray start --head`, or leave "
    "--address out"
)


def start(address: str | None, nested: bool, preload: Sequence[str] = ()) -> None:
    """Connect to a cluster, or start a local one.

    Args:
        address: Address of a running cluster, `auto`, or None for a local one on this machine.
        nested: Whether trials train with several workers. A local cluster then needs its dashboard (on loopback):
            without it Ray cannot clean up after a nested trial that stops early.
        preload: Modules that every process of a local cluster imports while it starts; Ray keeps one process ready
            per CPU.

    Raises:
        UserError: nothing answers at the address, or no local cluster starts.
    """
    for key, value in {**ray_internals.ENVIRONMENT, **ray_internals.MALLOC}.items():
        os.environ.setdefault(key, value)
    if address is None or not Path(os.path.expanduser("~/.ray/auth_token")).is_file():
        # A token that another Ray left there does not concern a local cluster, whose ports are on loopback. Set
        # here, "token" would reach the processes that Ray starts, but not this one, which read it at the import.
        os.environ.setdefault(ray_internals.AUTH_MODE, "disabled")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Without "local" Ray would join a cluster that `ray start` has left on this machine.
        options |= {"address": "local", "include_dashboard": nested, "dashboard_host": "127.0.0.1"}
        options["_temp_dir"] = str(session_folder())
        for name in (ray_internals.ADDRESS, ray_internals.DASHBOARD_ADDRESS):
            os.environ.pop(name, None)
        os.environ.setdefault(ray_internals.PRELOAD_MODULES, ",".join(preload))
    else:
        _check_listening(address)
        options["address"] = address
        os.environ.setdefault(ray_internals.CONNECT_ATTEMPTS, "1")
    _init(address, options)


def session_folder() -> Path:
    """Return the folder for the sessions of a local Ray: the usual one, else a short one of this user.

    Sockets lie there, whose paths the system limits to 107 characters and Ray to ASCII. The folder of another
    user cannot be written.

    Raises:
        UserError: no such folder can be used.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    own = f"ray-{os.getuid()}"
    for folder in (usual, usual.with_name(own), Path("/tmp") / own, Path("/dev/shm") / own):
        if _is_usable(folder):
            return folder
    raise UserError(
        f"TMPDIR: neither {usual} nor /tmp/{own} can hold Ray's sockets (writable, at most {MAX_SESSION_FOLDER} "
        "ASCII characters); set TMPDIR to a short folder of your own"
    )


def _is_usable(folder: Path) -> bool:
    """Return whether Ray can keep its sessions in a folder, which need not exist."""
    text = str(folder)
    if len(text) > MAX_SESSION_FOLDER or not text.isascii() or not folder.is_absolute():
        return False
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _init(address: str | None, options: dict[str, Any]) -> None:
    for left in reversed(range(START_TRIES if address is None else 1)):
        try:
            on_term = signal.getsignal(signal.SIGTERM)
            ray.init(**options)
            signal.signal(signal.SIGTERM, on_term)  # Ray's own handler would end the process at once
            if address is None:
                ray_internals.run_trials_in_prestarted_processes()
            return
        except Exception as error:  # Ray raises a bare Exception where a node misses its deadline
            ray.shutdown()
            if left:
                continue
            if address is None:
                raise UserError(
                    f"Ray: no local cluster starts ({last_line(str(error))}); free memory and CPU and try again, "
                    "or give --address"
                ) from None
            raise UserError(f"--address {address}: {NO_CLUSTER.format(error=last_line(str(error)))}") from None


def _check_listening(address: str) -> None:
    """Refuse at once an address where nothing listens; Ray itself would try for a long time.

    Raises:
        UserError: the address has another form, or nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise UserError(f"--address {address}: write host:port of the head node, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: {NO_CLUSTER.format(error=describe_error(error))}") from None


def stop() -> None:
    """Disconnect; a local cluster ends."""
    ray.shutdown()


def check_resources(resources: Resources, workers: int, local: bool) -> None:
    """Refuse trials that a local machine can never hold, where Ray would wait for another node forever.

    Args:
        resources: Resources of each worker.
        workers: Workers of the largest training.
        local: Whether no node can join.

    Raises:
        UserError: one training needs more than there is.
    """
    available = ray.cluster_resources()
    for name, amount in worker_resources(resources).items():
        needed, held = workers * amount, available.get(name, 0.0)
        if needed <= held:
            continue
        line = f"resources.{name.lower()}s_per_worker: a training needs {needed:g} {name}s, and there are {held:g}"
        if local:
            raise UserError(f"{line}; lower it or workers, or give the --address of a larger cluster")
        print(f"{line}; it waits for more nodes", file=sys.stderr)


def worker_resources(resources: Resources) -> dict[str, float]:
    """Return what one worker requests of Ray."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in amounts.items() if amount}


def limit_threads() -> None:
    """Give this process as many threads as Ray gave it CPUs, or as OMP_NUM_THREADS says.

    Call it where a process's work begins. If torch was imported before, it has one thread per core of the machine,
    and processes would slow each other down.
    """
    if torch := sys.modules.get("torch"):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cpus))))
