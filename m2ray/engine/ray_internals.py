"""All that depends on how Ray 2.60 works inside: environment variables, resource names, private modules.

None of these are promised by Ray. `tests/engine/test_ray_internals.py` fails where a name has vanished.
"""

from __future__ import annotations

# glibc reads these when a process starts. With one arena, threads that have ended leave no memory behind that no
# other thread uses. The thresholds keep freed pages, which each training step would otherwise request again: a
# tenth of its time.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}
# Ray reads these at run time, here and in the processes it starts.
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Relative paths in a configuration are the caller's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # At the default of 2 s every report of a worker blocks that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Otherwise Tune takes the first Ctrl-C for the end of the search, and the sweep judges what there is.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
AUTH_MODE = "RAY_AUTH_MODE"  # "disabled" also where a token file exists
# The cluster that a process means if it is given none, and that cluster's dashboard, which comes first.
ADDRESS = "RAY_ADDRESS"
DASHBOARD_ADDRESS = "RAY_API_SERVER_ADDRESS"
MAX_PENDING_TRIALS = "TUNE_MAX_PENDING_TRIALS_PG"  # trials that Tune starts at the same time
# Modules that every process of a local cluster imports while it starts. Ray reads it as a field of its C++
# configuration, of which every field is an environment variable with the prefix RAY_.
PRELOAD_MODULES = "RAY_preload_python_modules"
# Attempts to connect to a cluster, of half a minute each. Ray's 20 are meant for nodes that join a starting head.
CONNECT_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
# A resource of the head node only. A nested trial's driver requests a sliver of it instead of a CPU.
HEAD_NODE = "node:__internal_head__"
ACCELERATOR_PREFIX = "accelerator_type:"
SLIVER = 0.001  # enough to be placed on a node, and never used up


def run_trials_in_prestarted_processes() -> None:
    """Let Tune's trials run in the processes that a local cluster has started already.

    Tune gives a trial environment variables, and Ray starts a new process for each set of variables. All processes
    of a local cluster inherit them anyway, except one that Tune adds for Lightning.
    """
    from ray.tune.execution import class_cache  # takes a second, which no cluster's start has to wait for

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def set_cluster_of_nested_trials(address: str) -> None:
    """Let the processes of nested trials find their own cluster.

    Where a nested trial is stopped early, a process of Ray Train frees its workers' CPUs once the cluster reports
    that the training process has died. Without the address it searches the machine for a cluster, and fails where
    it finds several: the CPUs stay reserved, and the next training waits for them forever.
    """
    from ray.tune.execution import class_cache  # see above

    class_cache.DEFAULT_ENV_VARS[ADDRESS] = address
