"""`python -m m2ray.status results/NAME`: how far a sweep is, from another shell, while it runs or after."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from m2ray import manifest, stats
from m2ray.command import DONE, Parser, UserError, run
from m2ray.proposer import Journal
from m2ray.report import SPLITS
from m2ray.rows import FAILED, RowStore


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
    about, rows = manifest.read(folder), RowStore(folder).read()
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


def main(argv: Sequence[str]) -> int:
    """Print how far a sweep is."""
    parser = Parser(prog="python -m m2ray.status", description="How far a sweep is; it may be running.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    args = parser.parse_args(argv)
    found = status_of(args.folder)
    if args.json:
        print(json.dumps(found))
        return DONE
    table = [
        [
            line["config"],
            line["state"],
            " ".join(f"{seed}:{epoch}" for seed, epoch in line["epochs"].items()),
            "" if line["score"] is None else f"{line['score']:+.3f}",
            line["split"] or "",
            line["n"] or "",
            "" if line["normal"] is None else f"{100 * line['normal']:.1f}",
            "" if line["normal"] is None else "[{:.1f}, {:.1f}]".format(*(100 * end for end in line["normal_ci"])),
        ]
        for line in found["configurations"]
    ]
    head = ["configuration", "state", "seed:epoch", "score", "split", "n", "normal %", "95 % CI"]
    print(f"{found['name']}: {found['rows']:,} rows, last change {found['last_change_s']} s ago")
    print(tabulate(table, headers=head, disable_numparse=True))
    return DONE


if __name__ == "__main__":
    run(main)
