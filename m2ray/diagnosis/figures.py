"""Draw the pictures of a diagnosis: how similar messages are at each stage, and where they are lost.

Shapes: E episodes, S episodes that are shown, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2ray.codec.prefix_statistics import centered
from m2ray.diagnosis.findings import Diagnosis
from m2ray.diagnosis.probes import cosines
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.util.plotting import COLORS, hide_spines, save, use_file_backend

SHOWN = 80  # messages on a similarity map
# Stages with a similarity map, and the colors of their spectra.
MAP_STAGES = {"pooled": COLORS["P1"], "latent": COLORS["shuffle"], "prefix": COLORS["normal"]}


class FigureInputs(NamedTuple):
    """Inputs of the pictures beside the diagnosis."""

    features: dict[str, Tensor]  # [E, F] by stage
    shared_EE: Tensor  # number of facts that two messages share


def draw_diagnosis(folder: Path, diagnosis: Diagnosis, shown: FigureInputs) -> None:
    """Write maps.png and stages.png. Not as SVG: a sweep has many of them, and maps are pixels anyway."""
    use_file_backend()
    save(draw_maps(diagnosis, shown), folder / "maps.png")
    save(draw_stages(diagnosis), folder / "stages.png")


# --- similarity maps -----------------------------------------------------------------------------------------


def draw_maps(d: Diagnosis, shown: FigureInputs) -> Any:
    """Draw the facts that messages share beside their cosine at each stage, raw and centered, in one order."""
    import matplotlib.pyplot as plt  # slow to import

    count = min(SHOWN, len(shown.shared_EE))
    order_S = _similarity_order(shown.shared_EE[:count, :count].numpy())
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.6), layout="constrained")
    _draw_shared_facts(figure, axes[0, 0], shown.shared_EE[:count, :count].numpy(), order_S)
    _draw_spectra(axes[1, 0], d, shown)
    for column, name in enumerate(MAP_STAGES, start=1):
        rows_EF, found = shown.features[name], d.maps[name]
        raw, centered_ = f"raw: mean {found.cosine:.3f}", f"centered: mean size {found.cosine_centred:.3f}"
        _draw_cosines(axes[0, column], rows_EF, order_S, f"{name}, {raw}")
        image = _draw_cosines(axes[1, column], centered(rows_EF), order_S, f"{name}, {centered_}")
    figure.colorbar(image, ax=axes[:, 3], shrink=0.8, label="cosine of two messages")
    for axis in [axes[0, 0], *axes[:, 1:].flat]:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{count} messages, one order")
    figure.suptitle(f"How alike messages are at each stage: {_subject(d)}, figures over n = {d.about['n']}")
    return figure


def _similarity_order(shared_SS: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return an order of messages in which those that share facts stand together, by hierarchical clustering."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import
    from scipy.spatial.distance import squareform

    order_S: NDArray[np.int32] = leaves_list(
        linkage(squareform(shared_SS.max() - shared_SS, checks=False), "average")
    )
    return order_S


def _draw_shared_facts(figure: Any, axis: Any, shared_SS: NDArray[np.float32], order_S: NDArray[np.int32]) -> None:
    most = max(1, shared_SS.max())  # sentences in free text are often all different
    image = axis.imshow(shared_SS[np.ix_(order_S, order_S)], cmap="cividis", vmin=0, vmax=most)
    axis.set_title("facts that two messages share", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8, ticks=range(int(most) + 1), label="facts")


def _draw_spectra(axis: Any, d: Diagnosis, shown: FigureInputs) -> None:
    for name, color in MAP_STAGES.items():
        energy = torch.linalg.svdvals(centered(shown.features[name])).square().numpy()
        summed = 100 * energy.cumsum() / max(energy.sum(), 1e-12)
        label = f"{name}, effective rank {d.maps[name].effective_rank:.1f}"
        axis.plot(range(1, len(summed) + 1), summed, color=color, label=label)
    axis.set(xscale="log", ylim=(0, 102), xlabel="directions, largest first", ylabel="variance, summed (%)")
    axis.set_title("spectrum of the centered features", fontsize=10)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    hide_spines(axis)


def _draw_cosines(axis: Any, features_EF: Tensor, order_S: NDArray[np.int32], title: str) -> Any:
    order = order_S.tolist()
    image = axis.imshow(cosines(features_EF)[order][:, order], cmap="PuOr_r", vmin=-1, vmax=1)
    axis.set_title(title, fontsize=10)
    return image


# --- probes, gaps and success --------------------------------------------------------------------------------


def draw_stages(d: Diagnosis) -> Any:
    """Draw probes by stage, gaps by condition and success by condition, side by side."""
    import matplotlib.pyplot as plt  # slow to import

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    _draw_probes(axes[0], d)
    _draw_gaps(axes[1], d)
    _draw_success(axes[2], d)
    for axis in axes:
        hide_spines(axis)
    figure.suptitle(f"{_subject(d)}: n = {d.about['n']} unless said, 95 % intervals")
    return figure


def _draw_probes(axis: Any, d: Diagnosis) -> None:
    axis.set(title="What probes read at each stage")
    if not d.probes:
        axis.text(0.5, 0.5, "no probes: a task in free text", ha="center", va="center", transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
        return
    names, majority = list(d.path), 100 * d.probes["prefix"].majority
    facts = ("facts", "facts: balanced accuracy", 50.0, "chance, facts")
    values = ("values", "values left: accuracy", majority, "commonest, values left")
    styles = ((facts, COLORS["normal"], "o", ":"), (values, COLORS["constant"], "s", "--"))
    for (kind, label, chance, chance_label), color, marker, dash in styles:
        found = [getattr(d.probes[name], kind) for name in names]
        heights, spans = _error_bars([Estimate(*(100 * x for x in estimate)) for estimate in found])
        axis.errorbar(names, heights, yerr=spans, fmt=f"{marker}-", color=color, label=label, capsize=3)
        axis.axhline(chance, color=color, lw=0.8, ls=dash, label=chance_label)
    axis.set(ylim=(0, 100), ylabel="linear probe right (%)")
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _draw_gaps(axis: Any, d: Diagnosis) -> None:
    names = list(d.gaps)
    for offset, kind, color in ((-0.15, "digits", COLORS["normal"]), (0.15, "format", COLORS["null"])):
        widths, spans = _error_bars([getattr(d.gaps[name], kind) for name in names])
        heights = [i + offset for i in range(len(names))]
        axis.barh(heights, widths, 0.3, xerr=spans, color=color, label=kind, capsize=2)
    axis.axvline(0, color="#000000", lw=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, title="What the right message is worth")
    axis.set_xlabel("NLL less that of the right message (nats per token)\nabove 0: the right message does better")
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)


def _draw_success(axis: Any, d: Diagnosis) -> None:
    for i, (name, found) in enumerate(d.success.items()):
        low, high = stats.wilson(found.successes, found.n)
        width, span = _error_bars([Estimate(100 * found.share, 100 * low, 100 * high)])
        axis.errorbar(width, [i], xerr=span, fmt="o", color=COLORS.get(name, COLORS["random"]), capsize=3)
    labels = [f"free, at least, n = {found.n}" if name == "free" else name for name, found in d.success.items()]
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 100), title="Success by decoding")
    axis.set_xlabel("episodes solved (%)")
    axis.invert_yaxis()


def _error_bars(estimates: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Return values, and the distances down and up to their bounds, as matplotlib expects them."""
    down, up = [e.value - e.low for e in estimates], [e.high - e.value for e in estimates]
    return [e.value for e in estimates], [down, up]


def _subject(d: Diagnosis) -> str:
    return f"{d.about['encoder']}, k = {d.about['k']}, checkpoint {d.about['checkpoint']}"
