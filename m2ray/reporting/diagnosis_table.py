"""Comparison of a sweep's diagnoses: one table and one figure of all arms, in the folder `diagnoses/`.

An arm is a configuration; its values are means over its training seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from m2ray.config.sweep_record import read_sweep_record
from m2ray.diagnosis.store import FOLDER, read_diagnosis
from m2ray.util.files import write_atomic
from m2ray.util.plotting import COLORS, png_and_svg, save, use_file_backend
from m2ray.util.tables import Table, markdown

CONDITIONS = ("normal", "null", "shuffle", "constant", "P0", "P1")
STAGE_COLORS = {"tokens": "#000000", "pooled": "#56B4E9", "latent": "#E69F00", "prefix": "#0072B2"}
PROBES = tuple(f"probe_{stage}" for stage in STAGE_COLORS)
SHARES = (*CONDITIONS, *PROBES)  # columns from 0 to 1, shown in percent
BEHAVIOR = (*CONDITIONS, "shuffle_gap_digits", "shuffle_gap_format")
CONTENT = (*PROBES, "prefix_cosine", "effective_rank", "prefix_norm")
TITLES = {
    **{name: f"{name} %" for name in CONDITIONS},
    "shuffle_gap_digits": "shuffle gap, digits",
    "shuffle_gap_format": "shuffle gap, format",
    **{f"probe_{stage}": f"probe, {stage} %" for stage in STAGE_COLORS},
    "prefix_cosine": "prefix cosine",
    "effective_rank": "effective rank",
    "prefix_norm": "prefix norm",
}
LEGEND = (
    "Means over training seeds, [minimum, maximum]. Conditions: success in percent of n held-out messages, "
    "decoded. Shuffle gap: the nats per digit, and per format token, that a wrong message costs. Probe: accuracy "
    "of linear probes for the message's facts (chance 50 %), on all of the receiver's token states, on the one "
    "pooled state, on the encoder's latent, and on the prefix. Prefix cosine: between prefixes of different "
    "messages. Prefix norm: 1 is the norm of a token embedding."
)


# --- tables --------------------------------------------------------------------------------------------------


def write_arms(root: Path) -> None:
    """Write table.csv, table.md and a figure of all arms; nothing if the sweep has no diagnoses."""
    seeds, failed = seed_table(root)
    if seeds.empty:
        return
    arms, folder = arm_table(seeds), root / FOLDER
    write_atomic(folder / "table.csv", arms.to_csv(index=False).encode())
    text = [
        f"# {root.resolve().name}: comparison of the arms",
        LEGEND,
        "## Behavior of the receiver\n\n" + markdown(arm_cells(arms, BEHAVIOR)),
        "## Content of the prefix\n\n" + markdown(arm_cells(arms, CONTENT, ["findings"])),
        *(["\n".join(f"- {line}" for line in failed)] if failed else []),
        "![all arms](table.png)",
    ]
    write_atomic(folder / "table.md", ("\n\n".join(text) + "\n").encode())
    use_file_backend()
    save(draw_arms(seeds), *png_and_svg(folder / "table"))


def seed_table(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the diagnoses of a sweep as a table, and lines about those that failed.

    The table has one row per diagnosis: arms in the order of the space's points, then by name; then by seed.
    """
    diagnoses = [read_diagnosis(file.parent) for file in sorted((root / FOLDER).glob("*/diagnosis.json"))]
    points = list(read_sweep_record(root).get("points", {}))
    rows, failed = [], []
    for diagnosis in diagnoses:
        about = diagnosis["about"]
        arm, seed = about["config"], about["seed"]
        if cause := diagnosis.get("failed"):
            failed.append(f"{arm}, seed {seed}: failed: {cause}")
            continue
        place = points.index(arm) if arm in points else len(points)
        findings = [finding["name"] for finding in diagnosis["findings"]]
        row = {"place": place, "arm": arm, "seed": seed, "n": about["n"], "findings": findings}
        rows.append(row | seed_values(diagnosis))
    table = pd.DataFrame(rows)
    if len(table):
        table = table.sort_values(["place", "arm", "seed"], ignore_index=True).drop(columns="place")
    return table, failed


def seed_values(diagnosis: dict[str, Any]) -> dict[str, float]:
    """Return the values of one training seed's diagnosis, by column."""
    success, gap, prefix = diagnosis["success"], diagnosis["gaps"]["shuffle"], diagnosis["maps"]["prefix"]
    values = {
        name: success[name]["successes"] / success[name]["n"] if name in success else float("nan")
        for name in CONDITIONS
    }
    values |= {f"shuffle_gap_{tokens}": gap[tokens]["value"] for tokens in ("digits", "format")}
    values |= {f"probe_{stage}": diagnosis["probes"][stage]["facts"]["value"] for stage in STAGE_COLORS}
    return values | {
        "prefix_cosine": prefix["cosine"],
        "effective_rank": prefix["effective_rank"],
        "prefix_norm": diagnosis["norms"]["mean"],
    }


def arm_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm: mean and range of each value over seeds, and how many seeds have each finding."""
    rows = []
    for arm, group in seeds.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": arm, "seeds": " ".join(map(str, group.seed)), "n": group.n.min()}
        for name in (*BEHAVIOR, *CONTENT):
            values = group[name]
            row[name] = round(values.mean(), 4)
            row |= {f"{name}_min": round(values.min(), 4), f"{name}_max": round(values.max(), 4)}
        counts = Counter(finding for findings in group.findings for finding in findings)
        row["findings"] = ", ".join(f"{finding} {count}/{len(group)}" for finding, count in counts.items())
        rows.append(row)
    return pd.DataFrame(rows)


def arm_cells(arms: pd.DataFrame, names: Sequence[str], last: Sequence[str] = ()) -> Table:
    """Return the columns `names` for display, `mean [minimum, maximum]`, and the columns `last` as they are."""
    table = [["arm", "seeds", "n", *(TITLES[name] for name in names), *last]]
    for line in arms.to_dict("records"):
        cells = [str(line[key]) for key in ("arm", "seeds", "n")]
        table.append([*cells, *(_range_text(line, name) for name in names), *(line[name] for name in last)])
    return table


def _range_text(line: dict[Any, Any], name: str) -> str:
    if pd.isna(line[name]):
        return ""
    scale = 100 if name in SHARES else 1
    form = "{:.1f}" if name in (*SHARES, "effective_rank") else "{:.3f}"
    mean, low, high = (form.format(scale * line[name + suffix]) for suffix in ("", "_min", "_max"))
    return mean if low == high else f"{mean} [{low}, {high}]"


# --- figure --------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """A panel of the figure: title, label and limits of the horizontal axis, and the color of each column."""

    title: str
    unit: str
    colors: dict[str, str]
    limits: tuple[float | None, float | None]


PANELS = (
    Panel("Success by decoding", "episodes solved (%)", {name: COLORS[name] for name in CONDITIONS}, (0, 100)),
    Panel(
        "Cost of a wrong message",
        "shuffle gap (nats per token)",
        {"shuffle_gap_digits": COLORS["normal"], "shuffle_gap_format": COLORS["null"]},
        (None, None),
    ),
    Panel(
        "Accuracy of linear probes",
        "facts right (%), chance 50",
        {f"probe_{stage}": color for stage, color in STAGE_COLORS.items()},
        (45, 102),
    ),
    Panel(
        "Similarity of prefixes",
        "mean cosine of two messages",
        {"prefix_cosine": COLORS["normal"]},
        (-0.05, 1.05),
    ),
    Panel("Dimensions they vary in", "effective rank", {"effective_rank": COLORS["normal"]}, (0, None)),
    Panel("Size of prefix vectors", "norm, 1 = a token embedding's", {"prefix_norm": COLORS["normal"]}, (0, None)),
)


def draw_arms(seeds: pd.DataFrame) -> Any:
    """Draw every value of every arm: the mean, each training seed, and the first arm's mean as a dotted line."""
    arms = list(seeds.arm.unique())
    figure, grid = plt.subplots(
        2, 3, figsize=(14, 2 * (1.7 + 0.55 * len(arms))), layout="constrained", sharey=True
    )
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        _draw_panel(axes, panel, seeds, arms)
    grid[0, 0].set_yticks(range(len(arms)), arms)
    grid[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    n, seed_count = int(seeds.n.min()), seeds.groupby("arm").size().max()
    figure.suptitle(
        f"Comparison of the arms: means (dots) and training seeds (ticks, at most {seed_count}), n = {n} messages "
        f"each; dotted: {arms[0]}"
    )
    return figure


def _draw_panel(axes: Any, panel: Panel, seeds: pd.DataFrame, arms: Sequence[str]) -> None:
    """Draw the columns of a panel: a row for each arm, the columns side by side within it."""
    several = len(panel.colors) > 1
    for i, (name, color) in enumerate(panel.colors.items()):
        scale = 100 if name in SHARES else 1
        shift = 0.7 * ((i + 0.5) / len(panel.colors) - 0.5)
        first = scale * seeds[seeds.arm == arms[0]][name].mean()
        axes.axvline(first, color=color, lw=0.8, ls=":", alpha=0.7)
        for row, arm in enumerate(arms):
            values, height = scale * seeds[seeds.arm == arm][name], row + shift
            axes.plot([values.min(), values.max()], [height, height], "-", color=color, lw=1.5)
            axes.plot(values, [height] * len(values), "|", color=color, ms=7)
            label = TITLES[name].removesuffix(" %") if row == 0 and several else None
            axes.plot([values.mean()], [height], "o", color=color, ms=5, label=label)
    for row in range(1, len(arms)):
        axes.axhline(row - 0.5, color="#dddddd", lw=0.8)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.unit)
    axes.set_xlim(panel.limits)
    axes.spines[["top", "right"]].set_visible(False)
    if several:
        below = (0.5, -0.28 / (0.5 + 0.16 * len(arms)))
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=below)
