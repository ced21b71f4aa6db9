"""Ray itself: a local cluster is started, or another one joined.

`m2ray.search` runs the trials (Tune), `m2ray.trial` is what one does (Train), `m2ray.pool` the evaluations.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from m2ray.config.space import Resources
from m2ray.util.errors import UserError, describe_error, last_line

# glibc reads these when a process starts. One arena: else every thread that a trial runs in leaves behind memory
# that no other uses. The rest: else every step asks the system for the same pages again, a tenth of its time.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


# Read by Ray when it runs, here and in the processes it starts.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Relative paths of a configuration are the caller's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # At its default of 2 s every report of a worker blocks that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Else Tune takes the first Ctrl-C for the end of the search, and the sweep goes on to judge what there is.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    **MALLOC,
}


START_TRIES = 3


NO_CLUSTER = (
    "no Ray cluster answers ({error}); start one with `ray up cluster.yaml` or `ray start --head`, or leave "
    "--address out"
)


def start(address: str | None, nested: bool, preload: Sequence[str] = ()) -> None:
    """Connect to a cluster, or start a local one.

    Args:
        address: Of a running cluster, `auto`, or None for a local one on this machine.
        nested: Whether trials train with several workers. Then a local cluster needs its dashboard (on loopback):
            without it Ray cannot clean up after a nested trial that stops early.
        preload: Modules that every process of a local cluster imports while it starts; Ray has one a CPU at hand.

    Raises:
        UserError: nothing answers at the address, or no local cluster starts.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    if address is None or not (Path.home() / ".ray" / "auth_token").is_file():
        # A token that any Ray may have left there is none of a local cluster's, whose ports are on loopback. Set
        # here, "token" would reach the processes that Ray starts, but not this one, which read it with the import.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Without "local" Ray would join a cluster that `ray start` has left on this machine.
        options |= {"address": "local", "include_dashboard": nested, "dashboard_host": "127.0.0.1"}
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.setdefault("RAY_preload_python_modules", ",".join(preload))
    else:
        _check_listening(address)
        options["address"] = address
        # Attempts to connect, of half a minute each; Ray's 20 are for nodes that join while a head starts.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    for left in reversed(range(START_TRIES if address is None else 1)):
        try:
            on_term = signal.getsignal(signal.SIGTERM)
            ray.init(**options)
            signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in place, which ends the process at once
            if address is None:
                _trials_in_ready_processes()
            return
        except Exception as error:  # on a busy machine a local node may miss Ray's deadline: a bare Exception
            ray.shutdown()
            if left:
                continue
            if address is None:
                raise UserError(
                    f"Ray: no local cluster starts ({last_line(str(error))}); free memory and CPU and try again, "
                    "or give --address"
                ) from None
            raise UserError(f"--address {address}: {NO_CLUSTER.format(error=last_line(str(error)))}") from None


def _trials_in_ready_processes() -> None:
    """Tune gives a trial's process variables of its own, and with them a new process: none that Ray has at hand. A
    local cluster's processes have all of them but the one that Tune adds for Lightning.
    """
    from ray.tune.execution import class_cache  # a second, which no start has to wait for

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def check_resources(resources: Resources, workers: int, local: bool) -> None:
    """Refuse trials that a local machine can never hold, where Ray would wait for a node for ever.

    Args:
        resources: Of each worker.
        workers: Of the largest training.
        local: Whether no node can come.

    Raises:
        UserError: one training asks for more than there is.
    """
    there = ray.cluster_resources()
    for name, amount in worker_resources(resources).items():
        asked, held = workers * amount, there.get(name, 0.0)
        if asked <= held:
            continue
        said = (
            f"resources.{name.lower()}s_per_worker: a training asks for {asked:g} {name}s, and there are {held:g}"
        )
        if local:
            raise UserError(f"{said}; lower it or workers, or give the --address of a larger cluster")
        print(f"{said}; it waits for nodes to come", file=sys.stderr)


def _check_listening(address: str) -> None:
    """Refuse at once an address that nobody listens at; Ray itself would try for a long time, and say much.

    Raises:
        UserError: no such form, or no answer.
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


def limit_threads() -> None:
    """Called where a process's work begins: as many threads as Ray gave it CPUs, or as the user says. Torch, if it
    was imported before, has one for each core of the machine, and processes would hinder each other.
    """
    if torch := sys.modules.get("torch"):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cpus))))


def worker_resources(resources: Resources) -> dict[str, float]:
    """What one worker asks of Ray."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in amounts.items() if amount}
