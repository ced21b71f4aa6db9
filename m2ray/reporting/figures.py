"""The pictures of what was judged. Colours are Okabe and Ito's, which people with any colour vision tell apart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from m2ray.evaluation.rows import FAILED, outcomes
from m2ray.judging import statistics as stats
from m2ray.judging.gate import count_successes, success_rate
from m2ray.reporting.leaderboard import JudgedRun
from m2ray.util.plotting import COLOURS, hide_spines, legend_beside

FEW = 12  # configurations in one picture; more cannot be told apart


FOLDER = "figures"


class LineStyle(NamedTuple):
    """How a configuration is drawn, the same in every picture."""

    colour: str
    marker: str
    dash: str


def runs_to_draw(attempts: Sequence[JudgedRun], board: pd.DataFrame) -> list[JudgedRun]:
    """Those that the pictures tell of, in the board's order: of the confirm split, else of the first there is."""
    ranked = list(zip(board.config, board.seed, strict=True))
    known = [attempt for attempt in attempts if attempt.verdict is not None]
    told = [a for a in known if a.split == "confirm"] or [a for a in known if a.split == known[0].split]
    return sorted(told, key=lambda attempt: ranked.index((attempt.config, attempt.seed)))


def by_config(attempts: Sequence[JudgedRun]) -> dict[str, list[JudgedRun]]:
    """The training seeds of each configuration, of the first few."""
    groups: dict[str, list[JudgedRun]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.config, []).append(attempt)
    return dict(list(groups.items())[:FEW])


def line_styles(configs: Sequence[str]) -> dict[str, LineStyle]:
    """A look of its own for each of the first few configurations."""
    # Not those of P0, P1 and constant, which stand beside them.
    colours = [COLOURS[name] for name in ("normal", "shuffle", "matched", "random")]
    shapes = [("o", "-"), ("s", "--"), ("^", ":")]
    looks = [LineStyle(colour, *shape) for shape in shapes for colour in colours]
    return dict(zip(dict.fromkeys(configs), looks, strict=False))


def sample_sizes(attempts: Sequence[JudgedRun]) -> str:
    """`split confirm, n = 1000`."""
    n = sorted({int(count_successes(attempt.rows)["normal"][1]) for attempt in attempts})
    return f"split {attempts[0].split}, n = {', '.join(map(str, n))}"


def percent_with_bounds(counts: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Success in percent, and the distances to the bounds of its Wilson interval as matplotlib wants them."""
    at = np.array([100 * success_rate(count) for count in counts])
    low, high = 100 * np.array([stats.wilson(*count) for count in counts]).T
    return at, np.stack([at - low, high - at])


def drawn_conditions(attempts: Sequence[JudgedRun]) -> list[str]:
    """All conditions but the scales, in the order of the tables; texts by their length."""
    present = {name for attempt in attempts for name in attempt.rows.condition.unique()} - {FAILED}
    rest = sorted(
        (name for name in present if name not in COLOURS and not name.startswith("scale_gate=")),
        key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name),
    )
    return [name for name in COLOURS if name in present] + rest


def draw_conditions(attempts: Sequence[JudgedRun]) -> Any:
    """A panel a configuration: every condition with its interval, a dot each training seed."""
    import matplotlib.pyplot as plt

    groups, names = by_config(attempts), drawn_conditions(attempts)
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
    for axes, (config, seeds) in zip(grid.flat, groups.items(), strict=False):
        every = [count_successes(attempt.rows) for attempt in seeds]
        for name in ("P0", "P1"):
            if name in every[0]:
                axes.axvline(100 * success_rate(every[0][name]), color=COLOURS[name], lw=0.8, ls=":")
        for row, name in enumerate(names):
            # What depends on no checkpoint is the same for every seed.
            counts = list(dict.fromkeys(found[name] for found in every if name in found))
            if counts:
                at, spans = percent_with_bounds(counts)
                heights = row + 0.6 * ((np.arange(len(counts)) + 0.5) / len(counts) - 0.5)
                axes.errorbar(at, heights, xerr=spans, fmt="o", ms=4, lw=1.4, color=COLOURS.get(name, "#555555"))
        passed = sum(attempt.verdict is not None and attempt.verdict.passed for attempt in seeds)
        verdict = f", {passed} of {len(seeds)} passed" if attempts[0].split == "confirm" else ""
        axes.set_title(f"{config}\nk = {seeds[0].k}{verdict}", fontsize=9)
        axes.set_xlim(0, 100)
        axes.tick_params(labelbottom=True)
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        hide_spines(axes)
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "episodes solved (%), 95 % Wilson intervals; a dot a training seed; dotted: P0 and P1", fontsize=10
    )
    figure.suptitle(f"Success under each condition, {sample_sizes(attempts)}{_cut(attempts)}", fontsize=11)
    return figure


def _cut(attempts: Sequence[JudgedRun]) -> str:
    total = len({attempt.config for attempt in attempts})
    return f", the first {FEW} of {total} configurations" if total > FEW else ""


def draw_by_k(attempts: Sequence[JudgedRun], looks: dict[str, LineStyle]) -> Any:
    """Success of the right message by k, over the bands of no message, full text and content-free prefixes."""
    import matplotlib.pyplot as plt

    shown = [attempt for seeds in by_config(attempts).values() for attempt in seeds]
    slots = sorted({attempt.k for attempt in shown})
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    free = count_successes(shown[0].rows)
    for name in ("P1", "P0"):
        if name in free:
            low, high = stats.wilson(*free[name])
            label = {"P0": "P0, no message", "P1": "P1, full text"}[name]
            axes.axhspan(100 * low, 100 * high, color=COLOURS[name], alpha=0.2, lw=0, label=label)
    priming: str | None = "constant, priming alone"
    for at, k in enumerate(slots):
        mine = [attempt for attempt in shown if attempt.k == k]
        if primed := [count["constant"] for a in mine if "constant" in (count := count_successes(a.rows))]:
            low, high = stats.wilson(*max(primed, key=success_rate))
            ends, colour = [at - 0.4, at + 0.4], COLOURS["constant"]
            axes.fill_between(ends, 100 * low, 100 * high, color=colour, alpha=0.5, lw=0, label=priming)
            priming = None
        for turn, attempt in enumerate(mine):
            look, place = looks[attempt.config], at + 0.7 * ((turn + 0.5) / len(mine) - 0.5)
            found, spans = percent_with_bounds([count_successes(attempt.rows)["normal"]])
            axes.errorbar(
                place, found, spans, fmt=look.marker, color=look.colour, ms=5, lw=1.4, label=attempt.config
            )
    axes.set_xticks(range(len(slots)), [str(k) for k in slots])
    axes.set(xlim=(-0.6, len(slots) - 0.4), ylim=(0, 100))
    axes.set_xlabel("k, prefix vectors")
    axes.set_ylabel("episodes solved (%), 95 % Wilson interval")
    axes.set_title(f"Success against k, {sample_sizes(shown)}, a dot a training seed", fontsize=11)
    once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend_beside(axes, handles=once.values(), labels=once.keys())
    hide_spines(axes)
    return figure


def draw_scale_gates(attempts: Sequence[JudgedRun], looks: dict[str, LineStyle]) -> Any:
    """Success against the scale of the prefix: a line each training, a colour each configuration."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for config, seeds in by_config(attempts).items():
        look = looks[config]
        for turn, attempt in enumerate(seeds):
            counts = count_successes(attempt.rows)
            curve = sorted(
                (float(n.partition("=")[2]), c) for n, c in counts.items() if n.startswith("scale_gate=")
            )
            if not curve:
                continue
            gates, (at, spans) = [gate for gate, _ in curve], percent_with_bounds([count for _, count in curve])
            label = f"{config}, k = {attempt.k}" if turn == 0 else None
            axes.plot(gates, at, f"{look.marker}{look.dash}", color=look.colour, label=label, ms=4, lw=1.2)
            axes.fill_between(gates, at - spans[0], at + spans[1], color=look.colour, alpha=0.1, lw=0)
    axes.set_xlabel("scale_gate: prefix norm over mean token-embedding norm")
    axes.set_ylabel("episodes solved (%), 95 % Wilson bands")
    axes.set_title(
        f"Success against the prefix's scale, {sample_sizes(attempts)}, a line a training seed", fontsize=11
    )
    axes.set_ylim(0, 100)
    legend_beside(axes)
    hide_spines(axes)
    return figure


def draw_outcomes(attempts: Sequence[JudgedRun]) -> Any:
    """Which episodes each condition solves, of the first on the board and of the first that failed.

    One column an episode, sorted so that patterns show.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    failed = [attempt for attempt in attempts if attempt.verdict is not None and not attempt.verdict.passed]
    shown = list(dict.fromkeys([attempts[0], *failed[:1]]))
    figure, grid = plt.subplots(
        len(shown), 1, figsize=(9, 0.5 + 2.4 * len(shown)), squeeze=False, layout="constrained"
    )
    for axes, attempt in zip(grid.flat, shown, strict=True):
        names = [n for n in ("P1", "normal", "P0", "null", "shuffle") if (attempt.rows.condition == n).any()]
        solved = np.stack(outcomes(attempt.rows, names)).astype(int)
        order = np.lexsort(solved[::-1])[::-1]
        colours = ListedColormap(["#eeeeee", COLOURS["normal"]])
        axes.imshow(solved[:, order], aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=1)
        shares = solved.mean(axis=1)
        axes.set_yticks(range(len(names)), [f"{n}, {100 * s:.0f} %" for n, s in zip(names, shares, strict=True)])
        axes.set_title(f"{attempt.config}, seed {attempt.seed}, k = {attempt.k}", fontsize=10)
        axes.set_xlabel(f"episodes of split {attempt.split}, sorted by who solves them, n = {len(order)}")
    figure.suptitle("The same episodes under each condition (blue: solved)", fontsize=11)
    return figure
