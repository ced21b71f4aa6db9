"""Progress of a sweep, read from its results folder while it runs or afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.config.split_names import most_conclusive
from m2ray.config.sweep_record import read_sweep_record
from m2ray.evaluation.rows import FAILED, RowStore
from m2ray.judging import statistics as stats
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal


def status_of(folder: Path) -> dict[str, Any]:
    """Return the progress of a sweep, from its folder or its sweep.yaml; write nothing.

    Returns:
        `name`, `command`, `last_change_s` (seconds since a file of the folder last changed), `rows` (their
        number), and `configurations`, highest search score first. Each has its `config`, its `state` (waits,
        training, trained or failed), `epochs` trained of each training seed, mean `score` of the latest
        checkpoints, and the success rate `normal` with its interval `normal_ci` on `n` episodes of `split`, the
        most conclusive split that it was evaluated on.

    Raises:
        UserError: Not the folder of a sweep.
    """
    if folder.name == "sweep.yaml":
        folder = folder.parent
    if not (folder / "sweep.yaml").is_file():
        raise UserError(f"{folder}: no sweep.yaml; give results/NAME of a sweep")
    record, rows = read_sweep_record(folder), RowStore(folder).read()
    configurations = [
        {"config": config, "state": state, **_latest_epochs(folder, config), **_success(rows, config)}
        for config, state in _states(folder, record, rows).items()
    ]
    configurations.sort(key=lambda line: -(line["score"] if line["score"] is not None else -1e9))
    changed = max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
    return {
        "name": folder.name,
        "command": record.get("command", ""),
        "last_change_s": round(time.time() - changed),
        "rows": len(rows),
        "configurations": configurations,
    }


def _states(folder: Path, record: dict[str, Any], rows: pd.DataFrame) -> dict[str, str]:
    """Return the state of each configuration: waits, training, trained or failed."""
    states: dict[str, str] = dict.fromkeys(record.get("points", {}), "waits")
    for entry in Journal(folder / "trials.jsonl").entries():
        if entry["event"] == "began":
            states[entry["config"]] = "training"
        elif entry["event"] == "ended":
            states[entry["config"]] = "failed" if entry["cause"] else "trained"
    for config in rows[rows.config != ""].config.unique():  # a published folder may hold rows without a journal
        if states.get(config, "waits") == "waits":
            states[config] = "trained"
    for config in rows[rows.condition == FAILED].config.unique():
        states[str(config)] = "failed"
    return states


def _latest_epochs(folder: Path, config: str) -> dict[str, Any]:
    """Return the epochs that each training seed has trained, and the mean score of the latest checkpoints."""
    epochs, scores = {}, []
    for seed_folder in sorted((folder / "checkpoints" / config).glob("seed-*")):
        files = sorted(seed_folder.glob("epoch-*/config.json"))
        if files:
            metrics = json.loads(files[-1].read_text())["metrics"]
            epochs[seed_folder.name.removeprefix("seed-")] = metrics["epoch"]
            scores.append(metrics["score"])
    return {"epochs": epochs, "score": sum(scores) / len(scores) if scores else None}


def _success(rows: pd.DataFrame, config: str) -> dict[str, Any]:
    """Return the success rate under normal with its interval, on the most conclusive split."""
    normal = rows[(rows.config == config) & (rows.condition == "normal")]
    split = most_conclusive(normal.split.unique())
    last = normal[normal.split == split]
    last = last[last.step == last.step.max()]
    if last.empty:
        return {"split": split, "n": 0, "normal": None, "normal_ci": None}
    # All training seeds are evaluated on the same episodes, so more seeds do not raise n.
    n, rate = last.episode.nunique(), float(last.success.mean())
    return {"split": split, "n": n, "normal": rate, "normal_ci": list(stats.wilson(round(rate * n), n))}
