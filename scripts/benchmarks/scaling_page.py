"""Page of scaling.py: the cost model, its constants, and what it predicts for real clusters."""

from __future__ import annotations

import math
from typing import Any

from m2ray.util.tables import markdown

PAGE = """# How a sweep grows: a cost model, its constants, and what limits it first

`python scripts/benchmarks/scaling.py --out results/scaling.json`, {cores} CPU cores, load average
{load_average:.1f}. Trials that sleep {sleep:g} s run through the real search (Tune, searcher, reports) on fake Ray
nodes of {slots} slots, so what they take beyond their sleep is the engine's overhead. GPUs are not measured: none
was at hand.

## Model

    wall = process_start x (slots started one after the other) + waves x (training + each_trial)
    waves = ceil(trials / slots)          driver = trials x driver_per_trial, which must stay below wall

{constants}

Evaluation rows pass through the object store once, one job at a time: a job of 200 episodes under 8 conditions
is 1,600 rows, {job_mb:.1f} MB. Receivers are not sent: every process reads its own from disk or the shared
folder.

## Check

The constants come from the first two runs; the others are predictions. Fake nodes share this machine's cores, so
their processes start one after the other; real nodes start theirs at the same time.

{check}

## 1 to 64 nodes of 8 A100, trials of 10 minutes, 3 epochs evaluated on 200 episodes under 12 conditions

Predicted by the model, not measured on such clusters. It assumes that a node starts two processes at a time.

{clusters}

## What limits growth first, and what was done

1. **Trials started one at a time.** Tune keeps one trial pending while a searcher may suggest more: filling 512
   slots one by one takes {fill:.0f} minutes at the process start above. Now as many start at a time as the
   cluster has room for (`resources.trials_at_once` for a cluster that starts without nodes).
2. **Rows in the driver's memory.** The leaderboard reads all rows at once. At 10,000 trials they take the memory
   in the last column above, more than a small head node has. Not fixed: evaluate fewer episodes
   (`splits.search`), fewer conditions, or `evaluation.scale_gates: []`, or give the head more memory. The board
   adds tables of its own: 10,000 trials of 192 rows took [7.7 GB](scaling-trials.md), ten times their rows.
3. **The driver** is far from a limit with trials of minutes. With trials of seconds its limit is about
   {trials_per_hour_at_most:,} trials per hour.
4. **A shared file system** receives a checkpoint for each epoch and trial, and at most once a minute the training
   state, three times as large: 512 trials write at most about {shared_mb:.0f} MB/s.
"""


def constants_table(found: dict[str, Any]) -> list[list[str]]:
    """Return a table of the model's constants."""
    rows, checkpoint, load_s = found["rows"], found["checkpoint"], found["receiver_load_s"]
    loads = [
        f"{name} ({load['gb']:.3f} GB) {load['seconds']:.1f} s"
        for name, load in load_s.items()
        if isinstance(load, dict)
    ]
    return [
        ["constant", "measured"],
        [
            "process_start: a worker process of Ray, with its imports",
            f"{found['process_start_s']:.2f} s of all cores",
        ],
        ["each_trial: overhead of a trial in a running process", f"{found['each_trial_s']:+.2f} s"],
        [
            "driver_per_trial: suggestion, journal, reports (processor time)",
            f"{1000 * found['driver_s_per_trial']:.0f} ms",
        ],
        ["receiver load, once per process", "; ".join(loads)],
        [
            "checkpoint of the default codec, every epoch",
            f"{checkpoint['mb']:.1f} MB, saved in {1000 * checkpoint['save_s']:.0f} ms, "
            f"loaded in {1000 * checkpoint['load_s']:.0f} ms",
        ],
        ["rows: append of 4,000, synced", f"{1000 * rows['append_4000_s']:.0f} ms"],
        [
            "rows: reading back, a million",
            f"{rows['read_s_per_million']:.1f} s, {rows['bytes_in_memory_each']:.0f} bytes each in memory, "
            f"{rows['bytes_on_disk_each']:.0f} on disk",
        ],
    ]


def check_table(runs: list[dict[str, float]]) -> list[list[str]]:
    """Return a table of measured and predicted times."""
    table = [["nodes", "trials", "measured s", "predicted s", "off"]]
    for run in runs:
        seconds = [f"{run['seconds']:.1f}", f"{run['predicted_s']:.1f}"]
        table.append([str(run["nodes"]), str(run["trials"]), *seconds, f"{100 * run['off']:+.0f} %"])
    return table


def clusters_table(found: dict[str, Any]) -> list[list[str]]:
    """Return a table of what the model predicts for clusters of nodes with 8 GPUs."""
    table = [["nodes", "trials", "waves", "wall", "driver's share", "rows", "rows in memory"]]
    for nodes, trials in ((1, 10), (8, 1000), (64, 1000), (64, 10_000)):
        waves, rows = math.ceil(trials / (8 * nodes)), trials * 3 * 200 * 12
        wall_s = 4 * found["process_start_s"] + waves * (600 + max(0.0, found["each_trial_s"]))
        memory = f"{rows * found['rows']['bytes_in_memory_each'] / 1e9:.1f} GB"
        times = [f"{wall_s / 3600:.1f} h", f"{trials * found['driver_s_per_trial'] / 60:.1f} min"]
        table.append([str(nodes), f"{trials:,}", str(waves), *times, f"{rows / 1e6:.1f} M", memory])
    return table


def page(found: dict[str, Any], slots: int, sleep_s: float) -> str:
    """Return the measurements as a Markdown page.

    Args:
        found: Content of the JSON file that scaling.py writes.
        slots: Trials at a time on a fake node.
        sleep_s: Seconds that a trial sleeps.
    """
    return PAGE.format(
        **found,
        sleep=sleep_s,
        slots=slots,
        constants=markdown(constants_table(found)),
        check=markdown(check_table(found["runs"])),
        clusters=markdown(clusters_table(found)),
        job_mb=1600 * found["rows"]["bytes_in_memory_each"] / 1e6,
        fill=512 * found["process_start_s"] / 60,
        shared_mb=512 * 4 * found["checkpoint"]["mb"] / 60,
    )
