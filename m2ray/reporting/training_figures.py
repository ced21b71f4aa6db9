"""The picture of the trainings: losses, gaps and the signs of collapse, from what each logged as it ran."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.reporting.figures import FOLDER, LineStyle
from m2ray.util.errors import UserError
from m2ray.util.plotting import hide_spines
from m2ray.util.text import pluralize

NAME = "training"


PANELS = {
    "loss": "loss, all terms (log scale)",
    "nll": "NLL of the answer (nats a value)",
    "k": "k, prefix vectors",
    "shuffle_gap": "gap to a wrong message (nats)",
    "null_gap": "gap to zeros (nats)",
    "prefix_cosine": "cosine of two prefixes",
}


OTHERS = LineStyle("#bbbbbb", "o", "-")


def read_histories(root: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """What the trainings of a sweep logged, by configuration and seed folder, as far as the files are there.

    Raises:
        UserError: a damaged file.
    """
    found = {}
    for file in sorted((root / "checkpoints").glob("*/seed-*/history.json")):
        try:
            frame = pd.DataFrame(json.loads(file.read_text(encoding="utf-8")))
            frame = frame.astype({"step": int}).sort_values("step")
            known = [name for name in PANELS if name in frame]
            frame = frame[["step", *known]].astype(dict.fromkeys(known, float))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{file}: not a training's history; restore it, or remove it") from None
        found[file.parts[-3], file.parts[-2]] = frame
    return found


def draw_training(root: Path, looks: Mapping[str, LineStyle]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """The picture as (name, what it shows, figure), or why it is left out.

    Checkpoints are large and often stay behind: where an earlier build drew them, its picture stands, with
    figure None.
    """
    says = "Loss, gaps and prefixes while training"
    logged = read_histories(root)
    if logged:
        return [(NAME, says, draw_curves(logged, looks))], []
    if (root / FOLDER / f"{NAME}.svg").is_file():
        return [(NAME, f"{says}; drawn where the checkpoints were", None)], []
    return [], ["Training curves: the checkpoints, with their history.json, are not in this folder."]


def draw_curves(logged: Mapping[tuple[str, str], pd.DataFrame], looks: Mapping[str, LineStyle]) -> Any:
    """A panel a figure, a line a training; those that were not judged in grey behind."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(11, 5.8), layout="constrained", sharex=True)
    handles: dict[str, Any] = {}
    for (config, _), frame in sorted(logged.items(), key=lambda item: item[0][0] in looks):
        look = looks.get(config, OTHERS)
        for axes, name in zip(grid.flat, PANELS, strict=True):
            if name in frame:
                # By share: the shortest would be a speck beside the longest.
                done = 100 * frame.step / frame.step.max()
                (line,) = axes.plot(done, frame[name], look.dash, color=look.colour, lw=1, alpha=0.85)
                handles.setdefault(config if config in looks else "not judged", line)
    for axes, (name, title) in zip(grid.flat, PANELS.items(), strict=True):
        axes.set_title(title, fontsize=10)
        hide_spines(axes)
        if name.endswith("_gap"):
            axes.axhline(0, color="#000000", lw=0.8)
    if all((frame.loss > 0).all() for frame in logged.values() if "loss" in frame):
        grid[0, 0].set_yscale("log")
    steps = sorted({int(frame.step.max()) for frame in logged.values()})
    span = f"{steps[0]} to {steps[-1]}" if steps[1:] else str(steps[0])
    for axes in grid[1]:
        axes.set_xlabel(f"training done (% of {span} steps)")
    ordered = {name: handles[name] for name in [*looks, "not judged"] if name in handles}
    figure.legend(
        ordered.values(), ordered.keys(), loc="outside lower center", ncols=min(4, len(ordered)), frameon=False
    )
    figure.suptitle(f"On training batches, a line each of n = {pluralize(len(logged), 'training')}", fontsize=11)
    return figure
