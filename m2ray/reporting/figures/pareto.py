"""Figure of success against bytes: codecs as they are and rounded to fewer bits, the text, and the text cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from m2ray.config.condition_names import bits_count, text_limit
from m2ray.judging.arms import success_rate
from m2ray.judging.row_arms import count_successes
from m2ray.reporting.figures.judged_runs import LineStyle, by_config, percent_with_bounds, sample_sizes
from m2ray.reporting.leaderboard import JudgedRun
from m2ray.util.plotting import COLORS, hide_spines, legend_beside

SIZES = ("bytes", "text_bytes")  # columns of a run whose size is known


class SizedSuccess(NamedTuple):
    """Success with messages of a size."""

    sender: str
    sent: str  # what is sent: the condition
    bytes: float
    solved: int
    n: int

    @property
    def rate(self) -> float:
        """Share of episodes solved."""
        return self.solved / self.n


def sized_successes(runs: Sequence[JudgedRun]) -> list[SizedSuccess]:
    """Return the points of the figure: those of each run whose size is known, and those of the text."""
    sized = [run for run in runs if all(isinstance(run.params.get(key), (int, float)) for key in SIZES)]
    points = [point for run in sized for point in _codec_points(run)]
    return [*points, *(_text_points(sized[0]) if sized else ())]


def _codec_points(run: JudgedRun) -> Iterator[SizedSuccess]:
    counts = count_successes(run.rows)
    yield SizedSuccess(run.config, "normal", run.params["bytes"], *counts["normal"])
    for name, count in counts.items():
        if (bits := bits_count(name)) and "numbers" in run.params:
            yield SizedSuccess(run.config, name, run.params["numbers"] * bits / 8, *count)


def _text_points(run: JudgedRun) -> Iterator[SizedSuccess]:
    whole = run.params["text_bytes"]
    for name, count in count_successes(run.rows).items():
        limit = text_limit(name)
        if name == "P1" or limit:
            yield SizedSuccess("text", name, min(limit or whole, whole), *count)


def front(points: Sequence[SizedSuccess]) -> list[SizedSuccess]:
    """Return the points that no smaller or equally small one reaches, by size: the Pareto front."""
    kept: list[SizedSuccess] = []
    for point in sorted(points, key=lambda point: (point.bytes, -point.rate)):
        if not kept or point.rate > kept[-1].rate:
            kept.append(point)
    return kept


def draw_pareto(runs: Sequence[JudgedRun], styles: Mapping[str, LineStyle]) -> Any:
    """Draw success against bytes per message, a mark for each run and size, and a line along the front."""
    shown = [run for seeds in by_config(runs).values() for run in seeds]
    points = sized_successes(shown)
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for sender in dict.fromkeys(point.sender for point in points):
        style = styles.get(sender, LineStyle(COLORS["P1"], "D", "-"))
        own = [point for point in points if point.sender == sender]
        rates, bounds = percent_with_bounds([(point.solved, point.n) for point in own])
        sizes = [point.bytes for point in own]
        axes.errorbar(sizes, rates, bounds, fmt=style.marker, color=style.color, ms=5, lw=1.2, label=sender)
    best = front(points)
    axes.step(
        [point.bytes for point in best],
        [100 * point.rate for point in best],
        where="post",
        color=COLORS["null"],
        lw=1,
        ls=":",
        label="best for its size",
    )
    counts = count_successes(shown[0].rows)
    if "P0" in counts:
        axes.axhline(100 * success_rate(counts["P0"]), color=COLORS["P0"], lw=1, ls="--", label="P0, none")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(ylim=(0, 100), xlabel="bytes per message", ylabel="episodes solved (%), 95 % Wilson interval")
    axes.set_title(f"Success against bytes per message, {sample_sizes(shown)}", fontsize=11)
    legend_beside(axes)
    hide_spines(axes)
    return figure
