"""`python -m m2ray.status results/NAME`: how far a sweep is, from another shell, while it runs or after."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.config.record import read_sweep_record
from m2ray.evaluation.rows import FAILED, RowStore
from m2ray.judging import statistics as stats
from m2ray.reporting.leaderboard import SPLITS
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal


def status_of(folder: Path) -> dict[str, Any]:
    """What a sweep's folder says of it; writes nothing.

    Returns:
        name, command, state (running or at rest, by when the folder last changed), rows, and `configurations`: of
        each its state, epochs trained of each training seed, latest search score, and success with its interval on
        the most telling split that it was played on.

    Raises:
        UserError: no sweep's folder.
    """
    if folder.name == "sweep.yaml":
        folder = folder.parent
    if not (folder / "sweep.yaml").is_file():
        raise UserError(f"{folder}: no sweep.yaml; give results/NAME of a sweep")
    about, rows = read_sweep_record(folder), RowStore(folder).read()
    began: dict[str, str] = dict.fromkeys(about.get("points", {}), "waits")
    for entry in Journal(folder / "trials.jsonl").entries():
        if entry["event"] == "began":
            began[entry["config"]] = "training"
        else:
            began[entry["config"]] = "failed" if entry["cause"] else "trained"
    for config in rows[rows.config != ""].config.unique():  # a published folder may have nothing but its rows
        if began.get(config, "waits") == "waits":
            began[config] = "trained"
    for config in rows[rows.condition == FAILED].config.unique():
        began[str(config)] = "failed"
    lines = [{"config": name, "state": state, **_line(folder, rows, name)} for name, state in began.items()]
    lines.sort(key=lambda line: -(line["score"] if line["score"] is not None else -1e9))
    age = time.time() - max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
    return {
        "name": folder.name,
        "command": about.get("command", ""),
        "last_change_s": round(age),
        "rows": len(rows),
        "configurations": lines,
    }


def _line(folder: Path, rows: pd.DataFrame, name: str) -> dict[str, Any]:
    epochs, scores = {}, []
    for seed in sorted((folder / "checkpoints" / name).glob("seed-*")):
        records = sorted(seed.glob("epoch-*/config.json"))
        if records:
            record = json.loads(records[-1].read_text())
            epochs[seed.name.removeprefix("seed-")] = record["metrics"]["epoch"]
            scores.append(record["metrics"]["score"])
    own = rows[(rows.config == name) & (rows.condition == "normal")]
    split = next((split for split in SPLITS if (own.split == split).any()), None)
    played = own[own.split == split]
    played = played[played.step == played.step.max()]
    line: dict[str, Any] = {
        "epochs": epochs,
        "score": sum(scores) / len(scores) if scores else None,
        "split": split,
        "n": 0,
        "normal": None,
        "normal_ci": None,
    }
    if len(played):
        # Training seeds play the same episodes, which more of them do not make more.
        n, success = played.episode.nunique(), float(played.success.mean())
        line |= {"n": n, "normal": success, "normal_ci": list(stats.wilson(round(success * n), n))}
    return line
