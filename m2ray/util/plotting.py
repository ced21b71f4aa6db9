# NEWDOC
"""The pictures of what was judged. Colours are Okabe and Ito's, which people with any colour vision tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def use_file_backend() -> None:
    """Draw into files only, the same bytes from the same figures."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "m2ray"


def save(figure: Any, *paths: Path) -> None:
    """Write a picture in the formats that the paths name, and close it."""
    import matplotlib.pyplot as plt

    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Dates and versions would make the same figures other files at every run.
        stamp = "Software" if path.suffix == ".png" else "Date"
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={stamp: None})
        figure.set_layout_engine("none")  # the next format keeps what was laid out for the first
    plt.close(figure)


def png_and_svg(path: Path) -> tuple[Path, Path]:
    """A picture's name as PNG and as SVG."""
    return path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")


def hide_spines(axes: Any) -> None:
    """Take the lines away that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes: Any, **settings: Any) -> None:
    """The legend at the right of a picture, over no data."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, **settings)
