"""Figures of the judged runs: success by condition, by k and by scale_gate, and the outcome of each episode.

Colors are Okabe and Ito's, which people with any color vision can distinguish.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap

from m2ray.config.condition_names import dropped_slot, scale_gate_of
from m2ray.config.split_names import is_confirm
from m2ray.evaluation.row_selection import outcomes
from m2ray.evaluation.rows import FAILED
from m2ray.judging import statistics as stats
from m2ray.judging.arms import success_rate
from m2ray.judging.row_arms import count_successes
from m2ray.judging.verdict_tables import scale_gate_curve
from m2ray.reporting.leaderboard import WITHDRAWN, JudgedRun
from m2ray.util.plotting import COLORS, hide_spines, legend_beside

FOLDER = "figures"
MAX_CONFIGS = 12  # in one figure; more styles would look alike


class DrawnFigure(NamedTuple):
    """A figure of the report: file name without suffix, caption, and the matplotlib figure.

    `figure` is None if the file of an earlier build is kept.
    """

    name: str
    caption: str
    figure: Any


class LineStyle(NamedTuple):
    """The style of a configuration's line, the same in every figure."""

    color: str
    marker: str
    dash: str


def runs_to_draw(runs: Sequence[JudgedRun], leaderboard: pd.DataFrame) -> list[JudgedRun]:
    """Return the runs that have a verdict and were not withdrawn, in the leaderboard's order.

    They are those of all looks at confirm, or of the first run's split if none was judged on confirm.
    """
    lines = leaderboard[leaderboard.seed.notna() & (leaderboard.verdict != WITHDRAWN)]
    ranked = list(zip(lines.config, lines.seed, strict=True))
    judged = [run for run in runs if run.verdict is not None and (run.config, run.seed) in ranked]
    chosen = [run for run in judged if is_confirm(run.split)]
    chosen = chosen or [run for run in judged if run.split == judged[0].split]
    return sorted(chosen, key=lambda run: ranked.index((run.config, run.seed)))


def by_config(runs: Sequence[JudgedRun]) -> dict[str, list[JudgedRun]]:
    """Return the runs of each of the first `MAX_CONFIGS` configurations, one run per training seed."""
    groups: dict[str, list[JudgedRun]] = {}
    for run in runs:
        groups.setdefault(run.config, []).append(run)
    return dict(list(groups.items())[:MAX_CONFIGS])


def line_styles(configs: Sequence[str]) -> dict[str, LineStyle]:
    """Return a different style for each of the first `MAX_CONFIGS` configurations."""
    # Not the colors of P0, P1 and constant, which are drawn in the same figure.
    colors = [COLORS[name] for name in ("normal", "shuffle", "matched", "random")]
    shapes = [("o", "-"), ("s", "--"), ("^", ":")]
    styles = [LineStyle(color, *shape) for shape in shapes for color in colors]
    return dict(zip(dict.fromkeys(configs), styles, strict=False))


def sample_sizes(runs: Sequence[JudgedRun]) -> str:
    """Return `split confirm, n = 1000`."""
    sizes = sorted({int(count_successes(run.rows)["normal"][1]) for run in runs})
    splits = ", ".join(dict.fromkeys(run.split for run in runs))
    return f"split {splits}, n = {', '.join(map(str, sizes))}"


def percent_with_bounds(counts: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return success rates in percent, and the distances to their Wilson bounds as matplotlib's error bars.

    Args:
        counts: (successes, n) of C cases.

    Returns:
        Rates [C], and distances to the lower and the upper bound [2, C].
    """
    rates = np.array([100 * success_rate(count) for count in counts])
    low, high = 100 * np.array([stats.wilson(*count) for count in counts]).T
    return rates, np.stack([rates - low, high - rates])


def drawn_conditions(runs: Sequence[JudgedRun]) -> list[str]:
    """Return the conditions without figures of their own: those with a color first, then others, by length.

    Scale gates and blanked slots have figures of their own.
    """
    present = {name for run in runs for name in run.rows.condition.unique()} - {FAILED}
    others = sorted(
        (n for n in present if n not in COLORS and scale_gate_of(n) is None and dropped_slot(n) is None),
        key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name),
    )
    return [name for name in COLORS if name in present] + others


# --- success by condition ------------------------------------------------------------------------------------


def draw_conditions(runs: Sequence[JudgedRun]) -> Any:
    """Draw a panel per configuration: success under each condition with its interval, a dot per training seed."""
    groups, names = by_config(runs), drawn_conditions(runs)
    columns = 2 if len(groups) == 4 else min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(1.2 + 3.6 * columns, 0.9 + rows * (0.9 + 0.27 * len(names))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, seeds in zip(grid.flat, groups.values(), strict=False):
        _draw_condition_panel(axes, seeds, names)
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "episodes solved (%), 95 % Wilson intervals; one dot per training seed; dotted: P0 and P1", fontsize=10
    )
    total = len({run.config for run in runs})
    cut = f", the first {MAX_CONFIGS} of {total} configurations" if total > MAX_CONFIGS else ""
    figure.suptitle(f"Success under each condition, {sample_sizes(runs)}{cut}", fontsize=11)
    return figure


def _draw_condition_panel(axes: Any, seeds: Sequence[JudgedRun], names: Sequence[str]) -> None:
    """Draw the panel of one configuration, with the conditions `names` from top to bottom."""
    counts_by_seed = [count_successes(run.rows) for run in seeds]
    for name in ("P0", "P1"):
        if name in counts_by_seed[0]:
            axes.axvline(100 * success_rate(counts_by_seed[0][name]), color=COLORS[name], lw=0.8, ls=":")
    for row, name in enumerate(names):
        counts = [counts[name] for counts in counts_by_seed if name in counts]
        if not _depends_on_checkpoint(seeds[0], name):
            counts = counts[:1]  # the same rows for every seed: one dot
        if counts:
            rates, bounds = percent_with_bounds(counts)
            heights = row + 0.6 * ((np.arange(len(counts)) + 0.5) / len(counts) - 0.5)
            axes.errorbar(rates, heights, xerr=bounds, fmt="o", ms=4, lw=1.4, color=COLORS.get(name, "#555555"))
    axes.set_title(f"{seeds[0].config}\nk = {seeds[0].k}{_verdict_text(seeds)}", fontsize=9)
    axes.set_xlim(0, 100)
    axes.tick_params(labelbottom=True)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    hide_spines(axes)


def _verdict_text(seeds: Sequence[JudgedRun]) -> str:
    """Return `, PASS, 2 of 3 seeds pass`: the configuration's verdict, if it was judged on confirm."""
    judged = seeds[0].configuration
    if judged is None or not is_confirm(seeds[0].split):
        return ""
    passed = sum(verdict.passed for verdict in judged.seeds.values())
    counts = f", {passed} of {len(judged.seeds)} seeds pass" if len(judged.seeds) > 1 else ""
    return f", {judged.verdict.verdict}{counts}"


# --- success by k --------------------------------------------------------------------------------------------


def _depends_on_checkpoint(run: JudgedRun, name: str) -> bool:
    """Return whether a condition's rows belong to the run's checkpoint, rather than being shared by all seeds."""
    return bool((run.rows.config[run.rows.condition == name] != "").any())


def draw_by_k(runs: Sequence[JudgedRun], styles: dict[str, LineStyle]) -> Any:
    """Draw success under normal by k, over the bands of no message, full text and the content-free prefix."""
    shown = [run for seeds in by_config(runs).values() for run in seeds]
    ks = sorted({run.k for run in shown})
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    counts = count_successes(shown[0].rows)
    for name, label in (("P1", "P1, full text"), ("P0", "P0, no message")):
        if name in counts:
            low, high = stats.wilson(*counts[name])
            axes.axhspan(100 * low, 100 * high, color=COLORS[name], alpha=0.2, lw=0, label=label)
    for x, k in enumerate(ks):
        _draw_runs_of_k(axes, x, [run for run in shown if run.k == k], styles)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set(xlim=(-0.6, len(ks) - 0.4), ylim=(0, 100))
    axes.set_xlabel("k, prefix vectors")
    axes.set_ylabel("episodes solved (%), 95 % Wilson interval")
    axes.set_title(f"Success against k, {sample_sizes(shown)}, one dot per training seed", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    first = {label: handles[labels.index(label)] for label in labels}  # each label once
    legend_beside(axes, handles=first.values(), labels=first.keys())
    hide_spines(axes)
    return figure


def _draw_runs_of_k(axes: Any, x: int, runs: Sequence[JudgedRun], styles: dict[str, LineStyle]) -> None:
    """Draw the runs with one k side by side around `x`, over the band of the best content-free prefix."""
    counts_by_run = [count_successes(run.rows) for run in runs]
    if constants := [counts["constant"] for counts in counts_by_run if "constant" in counts]:
        low, high = stats.wilson(*max(constants, key=success_rate))
        ends, color = [x - 0.4, x + 0.4], COLORS["constant"]
        label = "constant, priming alone"
        axes.fill_between(ends, 100 * low, 100 * high, color=color, alpha=0.5, lw=0, label=label)
    for i, (run, counts) in enumerate(zip(runs, counts_by_run, strict=True)):
        style, at = styles[run.config], x + 0.7 * ((i + 0.5) / len(runs) - 0.5)
        rates, bounds = percent_with_bounds([counts["normal"]])
        axes.errorbar(at, rates, bounds, fmt=style.marker, color=style.color, ms=5, lw=1.4, label=run.config)


# --- success by scale_gate -----------------------------------------------------------------------------------


def draw_scale_gates(runs: Sequence[JudgedRun], styles: dict[str, LineStyle]) -> Any:
    """Draw success against the scale of the prefix: one line per training run, one color per configuration."""
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for config, seeds in by_config(runs).items():
        style = styles[config]
        for i, run in enumerate(seeds):
            curve = scale_gate_curve(count_successes(run.rows))
            if not curve:
                continue
            gates, (rates, bounds) = [gate for gate, _ in curve], percent_with_bounds([c for _, c in curve])
            label = f"{config}, k = {run.k}" if i == 0 else None
            axes.plot(gates, rates, f"{style.marker}{style.dash}", color=style.color, label=label, ms=4, lw=1.2)
            axes.fill_between(gates, rates - bounds[0], rates + bounds[1], color=style.color, alpha=0.1, lw=0)
    axes.set_xlabel("scale_gate: prefix norm over mean token-embedding norm")
    axes.set_ylabel("episodes solved (%), 95 % Wilson bands")
    axes.set_title(
        f"Success against the prefix's scale, {sample_sizes(runs)}, one line per training seed", fontsize=11
    )
    axes.set_ylim(0, 100)
    legend_beside(axes)
    hide_spines(axes)
    return figure


# --- outcomes ------------------------------------------------------------------------------------------------


def draw_outcomes(runs: Sequence[JudgedRun]) -> Any:
    """Draw which episodes each condition solves, for the first run and for the first that failed the gate.

    Each column is an episode; columns are sorted by outcomes, so that equal patterns are next to each other.
    """
    failed = [run for run in runs if run.verdict is not None and not run.verdict.passed]
    shown = list(dict.fromkeys([runs[0], *failed[:1]]))
    figure, grid = plt.subplots(
        len(shown), 1, figsize=(9, 0.5 + 2.4 * len(shown)), squeeze=False, layout="constrained"
    )
    for axes, run in zip(grid.flat, shown, strict=True):
        names = [n for n in ("P1", "normal", "P0", "null", "shuffle") if (run.rows.condition == n).any()]
        solved = np.stack(outcomes(run.rows, names)).astype(int)  # [conditions, episodes]
        order = np.lexsort(solved[::-1])[::-1]
        colors = ListedColormap(["#eeeeee", COLORS["normal"]])
        axes.imshow(solved[:, order], aspect="auto", interpolation="nearest", cmap=colors, vmin=0, vmax=1)
        rates = 100 * solved.mean(axis=1)
        axes.set_yticks(range(len(names)), [f"{n}, {rate:.0f} %" for n, rate in zip(names, rates, strict=True)])
        axes.set_title(f"{run.config}, seed {run.seed}, k = {run.k}", fontsize=10)
        axes.set_xlabel(
            f"episodes of split {run.split}, sorted by the conditions that solve them, n = {len(order)}"
        )
    figure.suptitle("The same episodes under each condition (blue: solved)", fontsize=11)
    return figure
