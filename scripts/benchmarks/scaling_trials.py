"""Measure what a sweep's driver spends on a trial as trials add up: proposer, journal, row store and board.

    python scripts/benchmarks/scaling_trials.py --out results/scaling-trials.json [--trials 100,1000,10000]

Nothing is trained: each trial gets rows made from those of a published codec on the search split. Everything else
is the engine's own: Optuna's suggestions, the journal and the study file, an append of rows per trial, what is
read back to choose the best, and the leaderboard. Each number of trials runs in a process of its own, whose peak
memory is reported. Times are processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.engine.cost.forecast import forecast
from m2ray.engine.progress import Progress
from m2ray.engine.proposer import OptunaProposer
from m2ray.evaluation.row_selection import judged_rows
from m2ray.evaluation.rows import RowStore, read_rows
from m2ray.judging.selection import gains_of_rows
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard
from m2ray.util.files import write_json
from m2ray.util.journal import Journal
from m2ray.util.tables import markdown

ROWS = Path(__file__).parents[2] / "results" / "recipe-mini" / "rows.parquet"
AT_ONCE = 8  # trials at a time
CONDITIONS = ("normal", "shuffle", "random")  # of each checkpoint
SPACE = """
name: many
trial:
  splits: {train: "100000:1000000", search: "1000:1064", select: "4000:4064", confirm: "5000:5064"}
  losses: {ce: {}}
axes:
  codec.encoder: {choice: [segments, last_token, resampler]}
  codec.k: {choice: [4, 8, 16]}
  training.lr: {loguniform: [1e-4, 1e-2]}
  losses.contrast.weight: {uniform: [0.0, 2.0]}
  codec.cut: {choice: [tokens, clauses], when: {codec.encoder: [segments]}}
search: {trials: %d}
judge: {select: 6, confirm: 3, diagnose: 0}
"""
STAGES = ("propose", "append rows", "finish", "read rows", "choose the best", "merge rows", "board")


class Clock:
    """Adds up the processor time of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.process_time()

    def lap(self, stage: str | None) -> None:
        """Count the time since the last call to a stage; None counts it to nothing."""
        now = time.process_time()
        if stage is not None:
            self.seconds[stage] += now - self._last
        self._last = now


class MadeRows:
    """Makes the rows of a trial's checkpoint from those of a published one."""

    def __init__(self) -> None:
        rows = judged_rows(read_rows(ROWS), "k8", 0, "search")
        null = rows[(rows.config == "") & (rows.condition == "null")]
        text = rows[(rows.config == "") & rows.condition.isin(["P0", "P1"])]
        self.shared = pd.concat([text, *(null.assign(k=k) for k in (4, 8, 16))])
        self._own = rows[(rows.config != "") & rows.condition.isin(CONDITIONS)]
        self._rng = np.random.default_rng(0)

    def of(self, name: str, k: int, params: dict[str, Any]) -> tuple[pd.DataFrame, float]:
        """Return rows and a score."""
        skill = float(self._rng.normal(0.0, 0.1))
        columns = {"config": name, "seed": 0, "checkpoint": name, "params": json.dumps(params, sort_keys=True)}
        nll = self._own.nll - skill * (self._own.condition == "normal")
        return self._own.assign(**columns, k=k, nll=nll), skill


def simulate(trials: int, folder: Path) -> dict[str, Any]:
    """Run the trials of one sweep and make its board; return seconds per trial and the peak memory."""
    file = folder / "many.yaml"
    file.write_text(SPACE % trials)
    plan = load_plan(file)
    gate = load_plan_gate(plan)
    proposer = OptunaProposer(plan, folder / "checkpoints", Journal(folder / "trials.jsonl"))
    store, made, running = RowStore(folder), MadeRows(), deque[dict[str, Any]]()
    clock = Clock()
    progress = Progress("many", forecast(plan), "quiet", folder / "progress.json")
    store.append(made.shared)

    def end(proposal: dict[str, Any]) -> None:
        name = proposal["config"]
        rows, score = made.of(name, proposer.configs[name].codec.k, proposal["params"])
        clock.lap(None)
        store.append(rows)
        progress.evaluated(name, "", len(rows), 1.0)
        clock.lap("append rows")
        proposer.finished(name, score, "")
        progress.ended(name, "")
        clock.lap("finish")

    clock.lap(None)
    while isinstance(proposal := proposer.propose(), dict):
        clock.lap("propose")
        running.append(proposal)
        if len(running) == AT_ONCE:
            end(running.popleft())
    while running:
        end(running.popleft())
    rows = store.read()
    clock.lap("read rows")
    gains_of_rows(rows[rows.split == "search"])
    clock.lap("choose the best")
    store.compact()
    clock.lap("merge rows")
    runs = judge_runs(rows, gate)
    leaderboard = make_leaderboard(rows, runs, gate)
    clock.lap("board")
    assert len(leaderboard) == len(proposer.ended) == trials
    each = {stage: seconds / trials * 1e3 for stage, seconds in clock.seconds.items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"trials": trials, "rows": len(rows), "ms_per_trial": each, "peak_memory_gb": memory}


def page(found: list[dict[str, Any]]) -> str:
    """Return the page: the table, and the command that made it."""
    counts = ",".join(str(run["trials"]) for run in found)
    command = f"python scripts/benchmarks/scaling_trials.py --trials {counts} --out results/scaling-trials.json"
    table = [["processor time per trial", *(f"{run['trials']:,} trials" for run in found)]]
    for stage in STAGES:
        table.append([stage, *(f"{run['ms_per_trial'][stage]:.1f} ms" for run in found)])
    table.append(["all", *(f"{sum(run['ms_per_trial'].values()):.0f} ms" for run in found)])
    table.append(["rows", *(f"{run['rows']:,}" for run in found)])
    table.append(["peak memory of the driver", *(f"{run['peak_memory_gb']:.2f} GB" for run in found)])
    return f"# What a sweep's driver spends on a trial\n\n`{command}`\n\n{markdown(table)}"


def main() -> None:
    """Measure each number of trials in a process of its own; print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", default="100,1000,10000", help="numbers of trials, comma-separated")
    parser.add_argument("--one", type=int, help="measure this number in this process, and print JSON")
    parser.add_argument("--out", type=Path, help="JSON file; a table is written beside it as .md")
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(simulate(args.one, Path(folder))))
        return
    found = []
    for trials in args.trials.split(","):
        done = subprocess.run(
            [sys.executable, __file__, "--one", trials], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(page(found), flush=True)
        if args.out:
            write_json(args.out, {"runs": found})
            args.out.with_suffix(".md").write_text(f"{page(found)}\n")


if __name__ == "__main__":
    main()
