"""Figure of the training runs: losses, gaps and signs of collapse, from the metrics that each run logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from m2ray.reporting.figures.judged_runs import FOLDER, DrawnFigure, LineStyle
from m2ray.util.errors import UserError
from m2ray.util.plotting import hide_spines
from m2ray.util.text import pluralize

NAME = "training"
PANELS = {
    "loss": "loss, all terms (log scale)",
    "nll": "NLL of the answer (nats per value)",
    "k": "k, prefix vectors",
    "shuffle_gap": "gap to a wrong message (nats)",
    "null_gap": "gap to zeros (nats)",
    "prefix_cosine": "cosine of two prefixes",
}
NOT_JUDGED = "not judged"
NOT_JUDGED_STYLE = LineStyle("#bbbbbb", "o", "-")

Histories = Mapping[tuple[str, str], pd.DataFrame]  # by configuration and seed folder


def read_histories(root: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the metrics that the training runs of a sweep logged, by configuration and seed folder.

    Runs whose files are not in the folder are left out.

    Raises:
        UserError: A file is damaged.
    """
    histories = {}
    for file in sorted((root / "checkpoints").glob("*/seed-*/history.json")):
        try:
            history = pd.DataFrame(json.loads(file.read_text(encoding="utf-8")))
            history = history.astype({"step": int}).sort_values("step")
            known = [name for name in PANELS if name in history]
            history = history[["step", *known]].astype(dict.fromkeys(known, float))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{file}: not a training's history; restore it, or remove it") from None
        histories[file.parts[-3], file.parts[-2]] = history
    return histories


def draw_training(root: Path, styles: Mapping[str, LineStyle]) -> tuple[list[DrawnFigure], list[str]]:
    """Return the figure of the training runs, or a line about why it is left out.

    Checkpoints are large and often not copied along with a results folder. If they are missing and an earlier
    build drew the figure, its file is kept, and `figure` is None.
    """
    caption = "Loss, gaps and prefixes during training"
    histories = read_histories(root)
    if histories:
        return [DrawnFigure(NAME, caption, draw_curves(histories, styles))], []
    if (root / FOLDER / f"{NAME}.svg").is_file():
        return [DrawnFigure(NAME, f"{caption}; drawn while the checkpoints were in this folder", None)], []
    return [], ["Training curves: the checkpoints, with their history.json, are not in this folder."]


def draw_curves(histories: Histories, styles: Mapping[str, LineStyle]) -> Any:
    """Draw a panel for each metric, a line for each run; runs that were not judged are gray and behind."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.8), layout="constrained", sharex=True)
    handles: dict[str, Any] = {}
    for (config, _), history in sorted(histories.items(), key=lambda item: item[0][0] in styles):
        style = styles.get(config, NOT_JUDGED_STYLE)
        for axes, name in zip(grid.flat, PANELS, strict=True):
            if name in history:
                # In percent of the run: in steps, the shortest would be a dot beside the longest.
                done = 100 * history.step / history.step.max()
                (line,) = axes.plot(done, history[name], style.dash, color=style.color, lw=1, alpha=0.85)
                handles.setdefault(config if config in styles else NOT_JUDGED, line)
    _label_panels(grid, histories)
    ordered = {name: handles[name] for name in [*styles, NOT_JUDGED] if name in handles}
    figure.legend(
        ordered.values(), ordered.keys(), loc="outside lower center", ncols=min(4, len(ordered)), frameon=False
    )
    figure.suptitle(
        f"On training batches, a line each of n = {pluralize(len(histories), 'training')}", fontsize=11
    )
    return figure


def _label_panels(grid: Any, histories: Histories) -> None:
    for axes, (name, title) in zip(grid.flat, PANELS.items(), strict=True):
        axes.set_title(title, fontsize=10)
        hide_spines(axes)
        if name.endswith("_gap"):
            axes.axhline(0, color="#000000", lw=0.8)
    if all((history.loss > 0).all() for history in histories.values() if "loss" in history):
        grid[0, 0].set_yscale("log")
    steps = sorted({int(history.step.max()) for history in histories.values()})
    span = f"{steps[0]} to {steps[-1]}" if steps[1:] else str(steps[0])
    for axes in grid[1]:
        axes.set_xlabel(f"training done (% of {span} steps)")
