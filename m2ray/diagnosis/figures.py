"""The pictures of a diagnosis: how alike messages are at each stage, and where they are lost.

Shapes: E episodes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray.codec.prefix_statistics import centred
from m2ray.diagnosis.findings import STAGE, Diagnosis
from m2ray.diagnosis.probes import cosines
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.util.plotting import COLOURS, save

SHOWN = 80  # messages on a similarity map


class FigureInputs(NamedTuple):
    """What the pictures need beside the figures."""

    features: dict[str, Tensor]  # [E, F] by stage
    shared_EE: Tensor


def draw_diagnosis(folder: Path, diagnosis: Diagnosis, shown: FigureInputs) -> None:
    """Write maps.png and stages.png. Not as SVG: a sweep has many of them, and maps are pixels anyway."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    save(draw_maps(diagnosis, shown), folder / "maps.png")
    save(draw_stages(diagnosis), folder / "stages.png")


def draw_maps(d: Diagnosis, shown: FigureInputs) -> Any:
    """Facts that messages share beside their cosine at each stage, raw and centred, in one order."""
    import matplotlib.pyplot as plt
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    few = min(SHOWN, len(shown.shared_EE))
    shared = shown.shared_EE[:few, :few].numpy()
    order = leaves_list(linkage(squareform(shared.max() - shared, checks=False), "average"))
    names = [name for name in STAGE if name != "tokens"]
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.6), layout="constrained")
    first = axes[0, 0].imshow(shared[np.ix_(order, order)], cmap="cividis", vmin=0, vmax=shared.max())
    axes[0, 0].set_title("facts that two messages share", fontsize=10)
    figure.colorbar(first, ax=axes[0, 0], shrink=0.8, ticks=range(int(shared.max()) + 1), label="facts")
    spectrum = axes[1, 0]
    for name, colour in zip(names, (COLOURS["P1"], COLOURS["shuffle"], COLOURS["normal"]), strict=True):
        rows_EF, found = shown.features[name], d.maps[name]
        energy = torch.linalg.svdvals(centred(rows_EF)).square().numpy()
        part = 100 * energy.cumsum() / max(energy.sum(), 1e-12)
        spectrum.plot(
            range(1, len(part) + 1), part, color=colour, label=f"{name}, effective rank {found.effective_rank:.1f}"
        )
    spectrum.set(xscale="log", ylim=(0, 102), xlabel="directions, largest first", ylabel="variance, summed (%)")
    spectrum.set_title("spectrum of the centred features", fontsize=10)
    spectrum.xaxis.set_major_formatter("{x:.0f}")
    spectrum.legend(frameon=False, fontsize=8, loc="lower right")
    spectrum.spines[["top", "right"]].set_visible(False)
    for column, name in enumerate(names, start=1):
        rows_EF, found = shown.features[name], d.maps[name]
        for row, (form, kind, figure_text) in enumerate(
            (
                (rows_EF, "raw", f"mean {found.cosine:.3f}"),
                (centred(rows_EF), "centred", f"mean size {found.cosine_centred:.3f}"),
            )
        ):
            picture = axes[row, column].imshow(
                cosines(form)[order.tolist()][:, order.tolist()], cmap="PuOr_r", vmin=-1, vmax=1
            )
            axes[row, column].set_title(f"{name}, {kind}: {figure_text}", fontsize=10)
    figure.colorbar(picture, ax=axes[:, 3], shrink=0.8, label="cosine of two messages")
    for axis in [axes[0, 0], *axes[:, 1:].flat]:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{few} messages, one order")
    figure.suptitle(f"How alike messages are at each stage: {_subject(d)}, figures over n = {d.about['n']}")
    return figure


def draw_stages(d: Diagnosis) -> Any:
    """Probes by stage, gaps and success by condition, side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    _probes(axes[0], d)
    _gaps(axes[1], d)
    _success(axes[2], d)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{_subject(d)}: n = {d.about['n']} unless said, 95 % intervals")
    return figure


def _probes(axis: Any, d: Diagnosis) -> None:
    names, majority = list(d.path), 100 * d.probes["prefix"].majority
    facts = ("facts", "facts: balanced accuracy", 50.0, "chance, facts")
    values = ("values", "values left: accuracy", majority, "commonest, values left")
    looks = ((facts, COLOURS["normal"], "o", ":"), (values, COLOURS["constant"], "s", "--"))
    for (kind, label, floor, floor_label), colour, marker, dash in looks:
        found = [getattr(d.probes[name], kind) for name in names]
        at, spans = _spans([Estimate(*(100 * x for x in estimate)) for estimate in found])
        axis.errorbar(names, at, yerr=spans, fmt=f"{marker}-", color=colour, label=label, capsize=3)
        axis.axhline(floor, color=colour, lw=0.8, ls=dash, label=floor_label)
    axis.set(ylim=(0, 100), ylabel="linear probe right (%)", title="What probes read at each stage")
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _gaps(axis: Any, d: Diagnosis) -> None:
    names = list(d.gaps)
    for offset, kind, colour in ((-0.15, "digits", COLOURS["normal"]), (0.15, "format", COLOURS["null"])):
        at, spans = _spans([getattr(d.gaps[name], kind) for name in names])
        heights = [i + offset for i in range(len(names))]
        axis.barh(heights, at, 0.3, xerr=spans, color=colour, label=kind, capsize=2)
    axis.axvline(0, color="#000000", lw=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, title="What the right message is worth")
    axis.set_xlabel("NLL less that of the right message (nats a token)\nabove 0: the right message does better")
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)


def _success(axis: Any, d: Diagnosis) -> None:
    for i, (name, found) in enumerate(d.success.items()):
        low, high = stats.wilson(found.successes, found.n)
        at, span = _spans([Estimate(100 * found.share, 100 * low, 100 * high)])
        axis.errorbar(at, [i], xerr=span, fmt="o", color=COLOURS.get(name, COLOURS["random"]), capsize=3)
    labels = [f"{name}, n = {found.n}" if name == "free" else name for name, found in d.success.items()]
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 100), title="Success by decoding")
    axis.set_xlabel("episodes solved (%)")
    axis.invert_yaxis()


def _spans(estimates: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Values, and the distances down and up to their bounds, as matplotlib wants them."""
    down, up = [e.value - e.low for e in estimates], [e.high - e.value for e in estimates]
    return [e.value for e in estimates], [down, up]


def _subject(d: Diagnosis) -> str:
    return f"{d.about['encoder']}, k = {d.about['k']}, checkpoint {d.about['checkpoint']}"
