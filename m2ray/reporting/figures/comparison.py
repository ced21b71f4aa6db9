"""Figure of a comparison: success of both systems under each condition, and the difference with its interval."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt

from m2ray.judging.comparison import RETENTION, Comparison
from m2ray.util.plotting import COLORS, hide_spines

FIRST, SECOND = COLORS["normal"], COLORS["constant"]


def draw_comparison(comparison: Comparison, first: str, second: str) -> Any:
    """Draw one line per condition: both success rates at the left, the difference A - B at the right."""
    shown = [d for d in (*comparison.conditions, *comparison.derived) if d.name != RETENTION]
    height = 1.4 + 0.32 * max(len(shown), 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, height), sharey=True, layout="constrained")
    for row, d in enumerate(shown):
        left.plot([100 * d.first, 100 * d.second], [row, row], color="#bbbbbb", lw=1.5, zorder=1)
        left.plot(100 * d.first, row, "o", ms=6, color=FIRST, zorder=3, label="A" if row == 0 else None)
        left.plot(100 * d.second, row, "s", ms=6, color=SECOND, zorder=2, label="B" if row == 0 else None)
        value, bounds = 100 * d.value, [[100 * (d.value - d.low)], [100 * (d.high - d.value)]]
        right.errorbar(value, row, xerr=bounds, fmt="o", ms=4, lw=1.4, color="#000000")
    left.set_yticks(range(len(shown)), [d.name for d in shown])
    left.set_ylim(len(shown) - 0.5, -0.5)
    left.set_xlabel("episodes solved (%)")
    right.set_xlabel("A - B (points), 95 % interval")
    right.axvline(0, color="#000000", lw=0.8, ls=":")
    for axes in (left, right):
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        hide_spines(axes)
    if shown:
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    pairing = "paired" if comparison.paired else "not paired"
    figure.suptitle(f"A: {first}\nB: {second} ({pairing})", fontsize=9, x=0.01, ha="left")
    return figure
