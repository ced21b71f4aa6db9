"""Measure what a sweep costs beyond its trials' own compute, and predict how that grows with nodes and trials.

    python scripts/benchmarks/scaling.py --out results/scaling.json [--nodes 1,2,4]

Trials that only sleep run through the real search on Ray clusters of fake nodes on this machine: what they take
beyond their sleep is the engine's overhead. The constants of the model come from one node and two numbers of
trials. For more nodes and trials the model's prediction is compared with the measurement. Receivers, checkpoints
and rows are timed as the engine handles them. A page with the model, the check and what follows for real clusters
is written beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray.cluster_utils import Cluster
from scaling_page import page
from timing import median_times

from m2ray.codec.codec import Codec, load_codec
from m2ray.config.space import Resources
from m2ray.config.trial import CodecConfig
from m2ray.engine import ray_internals
from m2ray.engine.tune_search import run_search
from m2ray.evaluation.rows import RowStore, read_rows
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import write_json

SLOTS = 4  # trials at a time on a fake node
SLEEP_S, EPOCHS = 4.0, 2  # a trial sleeps instead of training
ROWS = Path(__file__).parents[2] / "results" / "recipe-mini" / "rows.parquet"


def sleeping_trial(settings: dict[str, Any]) -> None:
    """Report like a training, and compute nothing."""
    (member,) = settings["pack"]
    for epoch in range(EPOCHS):
        time.sleep(SLEEP_S / EPOCHS)
        metrics = {"score": 0.0, "progress": epoch + 1, "epochs_total": EPOCHS, "epoch": epoch + 1}
        ray.tune.report({"member": member["config"], **metrics})


class Sleepers:
    """Proposer and observer of a number of sleeping trials."""

    def __init__(self, trials: int) -> None:
        self.left, self.ended = trials, 0

    def propose(self) -> dict[str, Any] | None:
        """Return the next trial."""
        if not self.left:
            return None
        self.left -= 1
        return {"config": f"sleeper-{self.left}", "trial": json.dumps({"workers": 1}), "point": True}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Count a trial that ended.

        Raises:
            RuntimeError: It failed.
        """
        if cause:
            raise RuntimeError(f"{name}: {cause}")
        self.ended += 1

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Do nothing."""


def driver_s() -> float:
    """Return the processor time of this process so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_sleepers(nodes: int, waves: list[int]) -> list[dict[str, float]]:
    """Search with one trial a slot and wave on a cluster of fake nodes; return each search's times in seconds."""
    fake_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    runs = []
    try:
        for _ in range(nodes):
            fake_cluster.add_node(num_cpus=SLOTS)
        ray.init(fake_cluster.address, log_to_driver=False)
        for wave in [1, *waves]:  # the first starts processes, and is not counted
            trials = wave * SLOTS * nodes
            sleepers, start, driver_start = Sleepers(trials), time.monotonic(), driver_s()
            with tempfile.TemporaryDirectory() as folder:
                run_search(sleepers, sleepers, Resources(), "none", EPOCHS, Path(folder), work=sleeping_trial)
            assert sleepers.ended == trials
            run = {"nodes": nodes, "trials": trials, "waves": wave, "seconds": time.monotonic() - start}
            runs.append({**run, "driver_s": driver_s() - driver_start})
    finally:
        ray.shutdown()
        fake_cluster.shutdown()
    return runs[1:]


def predict(process_s: float, each_s: float, run: Mapping[str, float]) -> float:
    """Return the predicted seconds of a search: a process start for each slot, then in each wave a trial.

    Fake nodes share this machine's cores, so their processes start one after the other. Real nodes start theirs at
    the same time.
    """
    return SLOTS * run["nodes"] * process_s + run["waves"] * (SLEEP_S + each_s)


def median_s(call: Callable[[], object]) -> float:
    """Return the median time of a call in seconds."""
    return median_times({"call": call})["call"]


def load_times() -> dict[str, Any]:
    """Return seconds and size of loading each receiver, or why it was not measured."""
    times: dict[str, Any] = {}
    for name in ("mini", "smollm2-135m", "qwen2.5-coder-0.5b"):
        try:
            start = time.perf_counter()
            receiver = load_receiver(name)
        except UserError as error:  # not fetched on this machine
            times[name] = f"not measured: {error}"
            continue
        size = sum(weight.nbytes for weight in receiver.model.parameters())
        times[name] = {"seconds": time.perf_counter() - start, "gb": size / 1e9}
    return times


def storage_costs() -> dict[str, Any]:
    """Return times and sizes of a checkpoint and of rows, as the engine saves and reads them."""
    receiver = load_receiver("mini")
    codec = Codec(CodecConfig(), receiver)
    rows = read_rows(ROWS)
    some_rows = rows.head(4000)
    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(Path(folder) / "store")
        return {
            "checkpoint": {
                "mb": sum(weight.nbytes for weight in codec.state_dict().values()) / 1e6,
                "save_s": median_s(lambda: codec.save(Path(folder), {})),
                "load_s": median_s(lambda: load_codec(Path(folder), receiver)),
            },
            "rows": {
                "append_4000_s": median_s(
                    lambda: store.append(some_rows.assign(step=time.monotonic_ns() % 1_000_000))
                ),
                "read_s_per_million": median_s(lambda: read_rows(ROWS)) / len(rows) * 1e6,
                "bytes_on_disk_each": ROWS.stat().st_size / len(rows),
                "bytes_in_memory_each": float(pd.DataFrame(rows).memory_usage(deep=True).sum()) / len(rows),
            },
        }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", default="1,2,4", help="numbers of fake nodes, comma-separated")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the page is written beside it as .md")
    args = parser.parse_args()
    for key, value in {**ray_internals.ENVIRONMENT, **ray_internals.MALLOC}.items():
        os.environ.setdefault(key, value)
    os.environ[ray_internals.AUTH_MODE] = "disabled"
    runs: list[dict[str, float]] = []
    for nodes in map(int, args.nodes.split(",")):
        runs += run_sleepers(nodes, [1, 3] if not runs else [2])
    first, third = runs[:2]
    each_s = (third["seconds"] - first["seconds"]) / 2 - SLEEP_S
    process_s = (first["seconds"] - SLEEP_S - each_s) / SLOTS
    for run in runs:
        run["predicted_s"] = predict(process_s, each_s, run)
        run["off"] = run["predicted_s"] / run["seconds"] - 1
        print({name: round(value, 3) for name, value in run.items()})
    driver = max(run["driver_s"] / run["trials"] for run in runs)
    found = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "process_start_s": process_s,
        "each_trial_s": each_s,
        "driver_s_per_trial": driver,
        "trials_per_hour_at_most": math.floor(3600 / driver),
        "runs": runs,
        "receiver_load_s": load_times(),
        **storage_costs(),
    }
    write_json(args.out, found)
    args.out.with_suffix(".md").write_text(page(found, SLOTS, SLEEP_S))
    print(json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
