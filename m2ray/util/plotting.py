"""Shared style of the figures: colors, legend, and files that are the same on every run.

The colors are those of Okabe and Ito, which can be told apart with any color vision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {
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
    """Set up matplotlib to draw to files only, and to write the same bytes for the same figure."""
    import matplotlib  # on first use: slow to import, and many commands draw nothing

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "m2ray"


def save(figure: Any, *paths: Path) -> None:
    """Write a figure to each path, in the format of its suffix, and close it."""
    import matplotlib.pyplot as plt  # on first use, as above

    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A date or version in the file would change it on every run.
        changing_key = "Software" if path.suffix == ".png" else "Date"
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={changing_key: None})
        figure.set_layout_engine("none")  # keep the layout of the first format for the next one
    plt.close(figure)


def png_and_svg(path: Path) -> tuple[Path, Path]:
    """Return a path with `.png` and with `.svg` added."""
    return path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")


def hide_spines(axes: Any) -> None:
    """Hide the top and right borders of a plot."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes: Any, **settings: Any) -> None:
    """Draw the legend to the right of a plot, where it covers no data."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, **settings)
