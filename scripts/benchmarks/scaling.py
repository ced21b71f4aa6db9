"""What a sweep costs beside its trials' own compute, and how that grows: constants measured, a model, a check.

python scripts/benchmarks/scaling.py --out results/scaling.json [--nodes 1,2,4]

Trials that only sleep run through the real search on Ray clusters of fake nodes on this machine: what they take
beyond their sleep is the engine's. The constants come from one node and two numbers of trials; for more nodes and
trials the model must then say beforehand what is measured. Receivers, checkpoints and rows are timed as the engine
handles them. A page with model, check and what follows for real clusters is written beside the JSON.
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

from m2ray.codec.codec import Codec, load_codec
from m2ray.config.space import Resources
from m2ray.config.trial import CodecConfig
from m2ray.engine import cluster
from m2ray.engine.tune_search import run_search
from m2ray.evaluation.rows import RowStore, read_rows
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import write_json
from m2ray.util.tables import markdown

SLOTS, SLEEP_S, EPOCHS = 4, 4.0, 2  # trials at a time on a fake node; what a trial does instead of training
ROWS = Path(__file__).parents[2] / "results" / "recipe-mini" / "rows.parquet"


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
                run_search(sleepers, sleepers, Resources(), "none", EPOCHS, Path(folder), work=sleeping_trial)
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
        except UserError as error:  # not fetched on this machine
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


PAGE = """# How a sweep grows: a cost model, its constants, where it breaks first

`python scripts/benchmarks/scaling.py --out results/scaling.json`, {cores} CPU cores, load average {load_average:.1f}.
Trials that sleep {sleep:g} s run through the real search (Tune, searcher, reports) on fake Ray nodes of {slots}
slots, so what they take beyond their sleep is the engine's. GPU rows are not measured: no GPU was at hand.

## Model

    wall = process_start x (slots started one after the other) + waves x (training + each_trial)
    waves = ceil(trials / slots)          driver = trials x driver_per_trial, which must stay below wall

{constants}

Evaluation rows travel through the object store once, a job at a time: a job of 200 episodes under 8 conditions
is 1,600 rows, {job_mb:.1f} MB. Receivers do not travel: every process reads its own from disk or the shared
folder.

## Check

Constants from the first two runs; the others are predictions. Fake nodes share this machine's cores, so their
processes start one after the other; real nodes start their own.

{check}

## 1 to 64 nodes of 8 A100, trials of 10 minutes, 3 epochs watched on 200 episodes under 12 conditions

By the model, not measured there. The processes of a node are taken to start two at a time.

{clusters}

## Where it breaks first, and what was done

1. **Trials started one at a time.** Tune keeps one trial pending where a searcher is asked for more: 512 slots
   that fill one by one take {fill:.0f} minutes at the process start above. Now as many start at a time as the
   cluster has room for (`resources.trials_at_once` for one that starts from none).
2. **Rows in the driver's memory.** The board reads all rows at once: at 10,000 trials that is the last column
   above, more than a small head node has. Not fixed: watch with fewer episodes (`splits.search`), fewer
   conditions, or `evaluation.scale_gates: []`, or give the head memory.
3. **The driver** is far from a limit with trials of minutes; with trials of seconds it is one at about
   {trials_per_hour_at_most:,} trials an hour.
4. **A shared file system** takes a checkpoint an epoch and trial, and at most once a minute the training state,
   three times as large: 512 trials write about {shared_mb:.0f} MB/s at the worst.
"""


def page(found: dict[str, Any]) -> str:
    """The measurements as a page."""
    rows, saved, driver = found["rows"], found["checkpoint"], found["driver_s_per_trial"]
    each, start = found["each_trial_s"], found["process_start_s"]
    loads = [
        f"{name} ({load['gb']:.3f} GB) {load['seconds']:.1f} s"
        for name, load in found["receiver_load_s"].items()
        if isinstance(load, dict)
    ]
    constants = [
        ["constant", "measured"],
        ["process_start: a worker process of Ray, its imports included", f"{start:.2f} s of all cores"],
        ["each_trial: what comes with a trial in a process that is there", f"{each:+.2f} s"],
        ["driver_per_trial: suggestion, journal, reports (processor time)", f"{1000 * driver:.0f} ms"],
        ["receiver load, once a process", "; ".join(loads)],
        [
            "checkpoint of the default codec, every epoch",
            f"{saved['mb']:.1f} MB, saved in {1000 * saved['save_s']:.0f} ms, "
            f"loaded in {1000 * saved['load_s']:.0f} ms",
        ],
        ["rows: append of 4,000, synced", f"{1000 * rows['append_4000_s']:.0f} ms"],
        [
            "rows: reading back, a million",
            f"{rows['read_s_per_million']:.1f} s, {rows['bytes_in_memory_each']:.0f} bytes each in memory, "
            f"{rows['bytes_on_disk_each']:.0f} on disk",
        ],
    ]
    check = [["nodes", "trials", "measured s", "predicted s", "off"]]
    for run in found["runs"]:
        seconds = [f"{run['seconds']:.1f}", f"{run['predicted_s']:.1f}"]
        check.append([str(run["nodes"]), str(run["trials"]), *seconds, f"{100 * run['off']:+.0f} %"])
    clusters = [["nodes", "trials", "waves", "wall", "driver's share", "rows", "rows in memory"]]
    for nodes, trials in ((1, 10), (8, 1000), (64, 1000), (64, 10_000)):
        waves, played = math.ceil(trials / (8 * nodes)), trials * 3 * 200 * 12
        wall = 4 * start + waves * (600 + max(0.0, each))
        memory = f"{played * rows['bytes_in_memory_each'] / 1e9:.1f} GB"
        spent = [f"{wall / 3600:.1f} h", f"{trials * driver / 60:.1f} min"]
        clusters.append([str(nodes), f"{trials:,}", str(waves), *spent, f"{played / 1e6:.1f} M", memory])
    return PAGE.format(
        **found,
        sleep=SLEEP_S,
        slots=SLOTS,
        constants=markdown(constants),
        check=markdown(check),
        clusters=markdown(clusters),
        job_mb=1600 * rows["bytes_in_memory_each"] / 1e6,
        fill=512 * start / 60,
        shared_mb=512 * 4 * saved["mb"] / 60,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the page gets its name, with .md")
    args = parser.parse_args()
    for key, value in cluster.SETTINGS.items():
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
    args.out.with_suffix(".md").write_text(page(found))
    print(json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
