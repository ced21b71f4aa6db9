"""The diagnoses of a sweep, read back: a section of each attempt's report, and one table of all arms.

An arm is a configuration; its figures are means over its training seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.config.record import read_sweep_record
from m2ray.diagnosis.store import FOLDER, read_diagnosis
from m2ray.util.files import write_atomic
from m2ray.util.plotting import COLOURS, png_and_svg, save, use_file_backend
from m2ray.util.tables import Table, markdown

CONDITIONS = ("normal", "null", "shuffle", "constant", "P0", "P1")


STAGES = ("tokens", "pooled", "latent", "prefix")


STAGE_COLOURS = ("#000000", "#56B4E9", "#E69F00", "#0072B2")


SHARES = (*CONDITIONS, *(f"probe_{stage}" for stage in STAGES))  # in 0..1; all others as they are


BEHAVIOUR = (*CONDITIONS, "shuffle_gap_digits", "shuffle_gap_format")


CONTENT = (*(f"probe_{stage}" for stage in STAGES), "prefix_cosine", "effective_rank", "prefix_norm")


TITLES = {
    **{name: f"{name} %" for name in CONDITIONS},
    "shuffle_gap_digits": "shuffle gap, digits",
    "shuffle_gap_format": "shuffle gap, format",
    **{f"probe_{stage}": f"probe, {stage} %" for stage in STAGES},
    "prefix_cosine": "prefix cosine",
    "effective_rank": "effective rank",
    "prefix_norm": "prefix norm",
}


LEGEND = (
    "Means over training seeds, [least, most]. Success in percent of n held-out messages, decoded. Shuffle gap: "
    "nats a digit, and a format token, that a wrong message costs. Probe: how often linear probes are right about "
    "the message's facts (chance 50 %), from all of the receiver's token states, the one pooled state, the latent "
    "of the encoder, the prefix. Prefix cosine: between different messages. Prefix norm: 1 is a token embedding's."
)


def seed_row(found: dict[str, Any]) -> dict[str, float]:
    """A diagnosis's row of the table, one training seed."""
    success, gap = found["success"], found["gaps"]["shuffle"]
    row = {
        name: success[name]["successes"] / success[name]["n"] if name in success else float("nan")
        for name in CONDITIONS
    }
    row |= {f"shuffle_gap_{kind}": gap[kind]["value"] for kind in ("digits", "format")}
    row |= {f"probe_{stage}": found["probes"][stage]["facts"]["value"] for stage in STAGES}
    prefix = found["maps"]["prefix"]
    return row | {
        "prefix_cosine": prefix["cosine"],
        "effective_rank": prefix["effective_rank"],
        "prefix_norm": found["norms"]["mean"],
    }


def seed_table(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row a diagnosis, arms in the order of the space's points, then by name; and what failed, as lines."""
    found = [read_diagnosis(file.parent) for file in sorted((root / FOLDER).glob("*/diagnosis.json"))]
    points = list(read_sweep_record(root).get("points", {}))
    rows, failed = [], []
    for one in found:
        about = one["about"]
        if cause := one.get("failed"):
            failed.append(f"{about['config']}, seed {about['seed']}: failed: {cause}")
            continue
        place = points.index(about["config"]) if about["config"] in points else len(points)
        names = [finding["name"] for finding in one["findings"]]
        row = {"place": place, "arm": about["config"], "seed": about["seed"], "n": about["n"], "names": names}
        rows.append(row | seed_row(one))
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values(["place", "arm", "seed"], ignore_index=True).drop(columns="place")
    return frame, failed


def arm_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: of each figure the mean over seeds and the range, of each finding how many seeds show it."""
    rows = []
    for arm, group in seeds.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": arm, "seeds": " ".join(map(str, group.seed)), "n": group.n.min()}
        for name in (*BEHAVIOUR, *CONTENT):
            for kind, value in (
                ("", group[name].mean()),
                ("_min", group[name].min()),
                ("_max", group[name].max()),
            ):
                row[name + kind] = round(value, 4)
        counts = Counter(name for names in group.names for name in names)
        row["findings"] = ", ".join(f"{name} {times}/{len(group)}" for name, times in counts.items())
        rows.append(row)
    return pd.DataFrame(rows)


def arm_cells(arms: pd.DataFrame, names: Sequence[str], last: Sequence[str] = ()) -> Table:
    """Some columns for people."""

    def text(line: dict[Any, Any], name: str) -> str:
        scale, form = (
            (100, "{:.1f}") if name in SHARES else (1, "{:.1f}" if name == "effective_rank" else "{:.3f}")
        )
        if pd.isna(line[name]):
            return ""
        mean, low, high = (form.format(scale * line[name + kind]) for kind in ("", "_min", "_max"))
        return mean if low == high else f"{mean} [{low}, {high}]"

    table = [["arm", "seeds", "n", *(TITLES[name] for name in names), *last]]
    for line in arms.to_dict("records"):
        table.append([str(line[key]) for key in ("arm", "seeds", "n")])
        table[-1] += [*(text(line, name) for name in names), *(line[name] for name in last)]
    return table


def write_arms(root: Path) -> None:
    """Write table.csv, table.md and a picture of all arms; nothing where a sweep has no diagnoses."""
    seeds, failed = seed_table(root)
    if not len(seeds):
        return
    arms, folder = arm_table(seeds), root / FOLDER
    write_atomic(folder / "table.csv", arms.to_csv(index=False).encode())
    text = [
        f"# {root.resolve().name}: what moves what",
        LEGEND,
        "## What the receiver does\n\n" + markdown(arm_cells(arms, BEHAVIOUR)),
        "## What the prefix holds\n\n" + markdown(arm_cells(arms, CONTENT, ["findings"])),
        *(["\n".join(f"- {line}" for line in failed)] if failed else []),
        "![all arms](table.png)",
    ]
    write_atomic(folder / "table.md", ("\n\n".join(text) + "\n").encode())
    use_file_backend()
    save(draw_arms(seeds), *png_and_svg(folder / "table"))


def draw_arms(seeds: pd.DataFrame) -> Any:
    """Every figure of every arm: the mean, each training seed, and where the first arm stands."""
    import matplotlib.pyplot as plt

    colours = COLOURS
    panels: list[tuple[str, str, dict[str, str]]] = [
        ("Success by decoding", "episodes solved (%)", {name: colours[name] for name in CONDITIONS}),
        (
            "What a wrong message costs",
            "shuffle gap (nats a token)",
            {"shuffle_gap_digits": colours["normal"], "shuffle_gap_format": colours["null"]},
        ),
        (
            "What linear probes read",
            "right about facts (%), chance 50",
            {f"probe_{stage}": colour for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True)},
        ),
        ("How alike prefixes are", "mean cosine of two messages", {"prefix_cosine": colours["normal"]}),
        ("How many ways they differ", "effective rank", {"effective_rank": colours["normal"]}),
        ("How large they are", "norm, 1 = a token embedding's", {"prefix_norm": colours["normal"]}),
    ]
    arms = list(seeds.arm.unique())
    figure, axes = plt.subplots(
        2, 3, figsize=(14, 2 * (1.7 + 0.55 * len(arms))), layout="constrained", sharey=True
    )
    for axis, (title, unit, series) in zip(axes.flat, panels, strict=True):
        for turn, (name, colour) in enumerate(series.items()):
            scale = 100 if name in SHARES else 1
            shift = 0.7 * ((turn + 0.5) / len(series) - 0.5)
            first = scale * seeds[seeds.arm == arms[0]][name].mean()
            axis.axvline(first, color=colour, lw=0.8, ls=":", alpha=0.7)
            for row, arm in enumerate(arms):
                values = scale * seeds[seeds.arm == arm][name]
                own = [row + shift] * len(values)
                axis.plot([values.min(), values.max()], own[:1] * 2, "-", color=colour, lw=1.5)
                axis.plot(values, own, "|", color=colour, ms=7)
                label = TITLES[name].removesuffix(" %") if row == 0 and len(series) > 1 else None
                axis.plot([values.mean()], own[:1], "o", color=colour, ms=5, label=label)
        for row in range(1, len(arms)):
            axis.axhline(row - 0.5, color="#dddddd", lw=0.8)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axis.legend(
                frameon=False,
                fontsize=8,
                ncols=3,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.28 / (0.5 + 0.16 * len(arms))),
            )
    for axis, limits in zip(
        axes.flat, ((0, 100), None, (45, 102), (-0.05, 1.05), (0, None), (0, None)), strict=True
    ):
        axis.set_xlim(limits)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    n, times = int(seeds.n.min()), seeds.groupby("arm").size().max()
    figure.suptitle(
        f"What moves what: means (dots) and training seeds (ticks, at most {times}), n = {n} messages each; "
        f"dotted: {arms[0]}"
    )
    return figure
