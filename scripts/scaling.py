"""What a sweep costs beside its trials' own compute, and how that grows: constants measured, a model, a check.

python scripts/scaling.py --out results/scaling.json [--nodes 1,2,4]

Trials that only sleep run through the real search on Ray clusters of fake nodes on this machine: what they take
beyond their sleep is the engine's. The constants come from one node and two numbers of trials; for more nodes and
trials the model must then say beforehand what is measured. Receivers, checkpoints and rows are timed as the engine
handles them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray.cluster_utils import Cluster

from m2ray import cluster
from m2ray.codec import Codec, load_codec
from m2ray.config import CodecConfig
from m2ray.files import write_json
from m2ray.loading import load_receiver
from m2ray.rows import RowStore, read_rows
from m2ray.search import search
from m2ray.space import Resources

SLOTS, SLEEP_S, EPOCHS = 4, 4.0, 2  # trials at a time on a fake node; what a trial does instead of training
ROWS = Path(__file__).parent.parent / "results" / "recipe-mini" / "rows.parquet"


def sleeping_trial(settings: dict[str, Any]) -> None:
    """Reports like a training, and computes nothing."""
    (member,) = settings["pack"]
    for epoch in range(EPOCHS):
        time.sleep(SLEEP_S / EPOCHS)
        told = {"score": 0.0, "progress": epoch + 1, "epochs_total": EPOCHS, "epoch": epoch + 1}
        ray.tune.report({"member": member["config"], **told})


class Sleepers:
    """Proposes so many sleeping trials, and watches them."""

    def __init__(self, trials: int) -> None:
        self.left, self.ended = trials, 0

    def propose(self) -> dict[str, Any] | None:
        """The next one."""
        if not self.left:
            return None
        self.left -= 1
        return {"config": f"sleeper-{self.left}", "trial": json.dumps({"workers": 1}), "point": True}

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """One has ended."""
        if cause:
            raise RuntimeError(f"{name}: {cause}")
        self.ended += 1

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Nothing to be done."""

    def tick(self) -> None:
        """Nothing to be done."""


def driver_s() -> float:
    """Processor seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_sleepers(nodes: int, waves: list[int]) -> list[dict[str, float]]:
    """Searches of one trial a slot and wave, on a cluster of fake nodes; seconds, and the driver's own."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found = []
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=SLOTS)
        ray.init(made.address, log_to_driver=False)
        for wave in [1, *waves]:  # the first warms processes up, and is not counted
            trials = wave * SLOTS * nodes
            sleepers, begun, used = Sleepers(trials), time.monotonic(), driver_s()
            with tempfile.TemporaryDirectory() as folder:
                search(sleepers, sleepers, Resources(), "none", EPOCHS, Path(folder), sleeping_trial)
            assert sleepers.ended == trials
            took = {"nodes": nodes, "trials": trials, "waves": wave, "seconds": time.monotonic() - begun}
            found.append({**took, "driver_s": driver_s() - used})
    finally:
        ray.shutdown()
        made.shutdown()
    return found[1:]


def predict(process_s: float, each_s: float, run: Mapping[str, float]) -> float:
    """Seconds of a search: a process started for each slot, and in every wave a trial and what comes with it.

    Fake nodes share this machine's cores, so that their processes start one after the other; on real nodes each
    node starts its own.
    """
    return SLOTS * run["nodes"] * process_s + run["waves"] * (SLEEP_S + each_s)


def timed(call: Any, times: int = 3) -> float:
    """Median seconds of a call."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return sorted(took)[times // 2]


def materials() -> dict[str, Any]:
    """Receivers, checkpoints and rows, as the engine loads, saves and reads them."""
    found: dict[str, Any] = {"receiver_load_s": {}}
    for name in ("mini", "smollm2-135m", "qwen2.5-coder-0.5b"):
        try:
            begun = time.perf_counter()
            receiver = load_receiver(name)
        except Exception as error:  # not fetched on this machine
            found["receiver_load_s"][name] = f"not measured: {error}"
            continue
        size = sum(weight.nbytes for weight in receiver.model.parameters())
        found["receiver_load_s"][name] = {"seconds": time.perf_counter() - begun, "gb": size / 1e9}
    receiver = load_receiver("mini")
    codec = Codec(CodecConfig(), receiver)
    with tempfile.TemporaryDirectory() as folder:
        found["checkpoint"] = {
            "mb": sum(weight.nbytes for weight in codec.state_dict().values()) / 1e6,
            "save_s": timed(lambda: codec.save(Path(folder), {})),
            "load_s": timed(lambda: load_codec(Path(folder), receiver)),
        }
        rows = read_rows(ROWS)
        some = rows.head(4000)
        store = RowStore(Path(folder) / "store")
        found["rows"] = {
            "append_4000_s": timed(lambda: store.append(some.assign(step=time.monotonic_ns() % 1_000_000))),
            "read_s_per_million": timed(lambda: read_rows(ROWS)) / len(rows) * 1e6,
            "bytes_on_disk_each": ROWS.stat().st_size / len(rows),
            "bytes_in_memory_each": float(pd.DataFrame(rows).memory_usage(deep=True).sum()) / len(rows),
        }
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    for key, value in cluster.QUIET.items():
        os.environ.setdefault(key, value)
    os.environ["RAY_AUTH_MODE"] = "disabled"
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
        **materials(),
    }
    write_json(args.out, found)
    print(json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
