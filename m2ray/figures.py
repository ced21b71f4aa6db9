"""The pictures of a report. Colours are Okabe and Ito's, which people with any colour vision tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from m2ray import stats
from m2ray.board import counted
from m2ray.gate import counts_of, share
from m2ray.rows import outcomes

if TYPE_CHECKING:
    from m2ray.report import Attempt

COLOURS = {
    "normal": "#0072B2",
    "null": "#999999",
    "random": "#56B4E9",
    "shuffle": "#D55E00",
    "P0": "#000000",
    "P1": "#009E73",
    "constant": "#E69F00",
    "matched": "#CC79A7",
    "mean": "#F0E442",
}


def quiet() -> None:
    """Draw into files only, the same bytes from the same figures."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "m2ray"


def draw_all(folder: Path, attempts: Sequence[Attempt], board: pd.DataFrame) -> None:
    """Draw every picture that the rows allow, as PNG and SVG, in the board's order."""
    quiet()
    ranked = list(zip(board.config, board.seed, strict=True))
    known = [a for a in attempts if a.verdict is not None]
    told = [a for a in known if a.split == "confirm"] or [a for a in known if a.split == known[0].split]
    told.sort(key=lambda attempt: ranked.index((attempt.config, attempt.seed)))
    if not told:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save(forest(told), *both(folder / "conditions"))
    if board.score.notna().any():
        save(scores(board), *both(folder / "scores"))
    if any("scale_gate=" in name for attempt in told for name in attempt.rows.condition.unique()):
        save(gate_curves(told), *both(folder / "scale_gate"))
    save(outcome_grid(told[0]), *both(folder / "outcomes"))


def save(figure: Any, *paths: Path) -> None:
    """Write a picture in the formats that the paths name, and close it."""
    import matplotlib.pyplot as plt

    for path in paths:
        # Dates and versions would make the same figures other files at every run.
        stamp = "Software" if path.suffix == ".png" else "Date"
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={stamp: None})
    plt.close(figure)


def both(path: Path) -> tuple[Path, Path]:
    """A picture's name as PNG and as SVG."""
    return path.with_suffix(".png"), path.with_suffix(".svg")


def label(attempt: Attempt) -> str:
    """A configuration and its seed."""
    return f"{attempt.config}\nseed {attempt.seed}, k = {attempt.k}"


def forest(attempts: Sequence[Attempt]) -> Any:
    """Every condition of every attempt with its Wilson interval."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.2 + 1.5 * len(attempts)), layout="constrained")
    for row, attempt in enumerate(attempts):
        counts = counts_of(attempt.rows)
        names = [name for name in COLOURS if name in counts]
        for i, name in enumerate(names):
            low, high = stats.wilson(*counts[name])
            at, height = 100 * share(counts[name]), row + 0.8 * (i + 0.5) / len(names) - 0.4
            span = [[at - 100 * low], [100 * high - at]]
            axes.errorbar(
                at, height, xerr=span, fmt="o", ms=5, lw=1.6, color=COLOURS[name], label=name if row == 0 else None
            )
        if row:
            axes.axhline(row - 0.5, color="#dddddd", lw=0.8)
    axes.set_yticks(range(len(attempts)), [label(attempt) for attempt in attempts])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("episodes solved (%), 95 % Wilson interval")
    n = sorted({int(counts_of(a.rows)["normal"][1]) for a in attempts})
    axes.set_title(f"Success under each condition, split {attempts[0].split}, n = {', '.join(map(str, n))}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def scores(board: pd.DataFrame) -> Any:
    """The searcher's score of every configuration by its k; those of one k stand side by side, best first."""
    import matplotlib.pyplot as plt

    shown = board[board.score.notna() & board.verdict.isin(["PASS", "FAIL", "not confirmed"])].astype({"k": int})
    sizes = sorted(shown.k.unique())
    turn = shown.groupby("k").score.rank(method="first", ascending=False)
    crowd = shown.groupby("k").score.transform("size")
    at = shown.k.map(sizes.index) + (turn - (crowd + 1) / 2) / np.maximum(crowd + 1, 6)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for verdict, marker, colour in (
        ("PASS", "o", "#009E73"),
        ("FAIL", "X", "#D55E00"),
        ("not confirmed", "o", "#bbbbbb"),
    ):
        part = shown.verdict == verdict
        if part.any():
            axes.scatter(at[part], shown.score[part], marker=marker, s=60, color=colour, label=verdict, zorder=3)
    axes.axhline(0, color="#000000", lw=0.8)
    axes.set_xlabel("k, prefix vectors")
    axes.set_ylabel("score on the search split (nats per answer value)")
    axes.set_title(f"What the right message is worth, {counted(len(shown), 'training')}")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def gate_curves(attempts: Sequence[Attempt]) -> Any:
    """Success against the scale of the prefix."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    palette = [COLOURS[name] for name in ("normal", "shuffle", "P1", "constant", "matched", "random")]
    sizes = set()
    for i, attempt in enumerate(attempts):
        counts = {n: c for n, c in counts_of(attempt.rows).items() if n.startswith("scale_gate=")}
        curve = sorted((float(name.partition("=")[2]), count) for name, count in counts.items())
        gates = [gate for gate, _ in curve]
        spans = np.array([stats.wilson(*count) for _, count in curve]) * 100
        shares = [100 * share(count) for _, count in curve]
        colour = palette[i % len(palette)]
        axes.plot(gates, shares, "o-", color=colour, label=label(attempt).replace("\n", ", "), ms=4)
        axes.fill_between(gates, spans[:, 0], spans[:, 1], color=colour, alpha=0.12, lw=0)
        sizes |= {count[1] for _, count in curve}
    axes.set_xlabel("scale_gate: prefix norm over mean token-embedding norm")
    axes.set_ylabel("episodes solved (%)")
    axes.set_title(f"Success against the prefix's scale, n = {', '.join(map(str, sorted(sizes)))}, 95 % bands")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def outcome_grid(attempt: Attempt) -> Any:
    """Which episodes each condition solves: one column an episode, sorted so that patterns show."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    names = [name for name in ("P1", "normal", "P0", "null", "shuffle") if (attempt.rows.condition == name).any()]
    solved = np.stack(outcomes(attempt.rows, names)).astype(int)
    order = np.lexsort(solved[::-1])[::-1]
    figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    axes.imshow(
        solved[:, order], aspect="auto", interpolation="nearest", cmap=ListedColormap(["#eeeeee", "#0072B2"])
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(
        f"episodes of split {attempt.split}, sorted by who solves them (blue: solved), n = {len(order)}"
    )
    axes.set_title(f"The same episodes under each condition: {label(attempt).replace(chr(10), ', ')}")
    ticks = math.ceil(len(order) / 5)
    axes.set_xticks(range(0, len(order), ticks))
    return figure
