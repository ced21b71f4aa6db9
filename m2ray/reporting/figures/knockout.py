"""The knock-out map of a codec: which slot carries which fact.

Condition `drop-J` gives B the right prefix with slot J blanked. Column `facts` of the rows holds, for each fact of
the message in order, whether B's answer agrees with it. Where blanking a slot lowers that agreement, the slot
carries the fact.

Shapes: J blanked slots, F facts, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from m2ray.config.condition_names import drop_name, dropped_slot
from m2ray.evaluation.row_selection import outcomes
from m2ray.judging import statistics as stats
from m2ray.judging.contrasts import PairedBinary
from m2ray.reporting.document import Bullets, Figure, Section, Text
from m2ray.reporting.leaderboard import JudgedRun
from m2ray.util.plotting import png_and_svg, save

MAX_FACTS = 32  # further facts of a message are left out of the map


class KnockoutMap(NamedTuple):
    """Loss of agreement between B's answer and each fact by each blanked slot, for one training seed.

    Attributes:
        slots: The blanked slots, counted from 1.
        points_JF: Agreement under `normal` less that under `drop-J`, in percentage points; NaN where no episode
            leaves the fact to be read.
        p_JF: One-sided p-values of the score test, paired by episode, that the agreement is not lower.
        n_F: Number of episodes in which each fact can be read.
        episodes: Number of episodes.
    """

    slots: list[int]
    points_JF: np.ndarray
    p_JF: np.ndarray
    n_F: np.ndarray
    episodes: int

    @property
    def facts(self) -> int:
        """The number of facts."""
        return len(self.n_F)


def knockout_map(rows: pd.DataFrame) -> KnockoutMap | None:
    """Return the map of one checkpoint's rows on a split; None without `drop-J` or without readable facts.

    Raises:
        UserError: `drop-J` and `normal` were run on different episodes.
    """
    present = {slot for name in rows.condition.unique() if (slot := dropped_slot(name)) is not None}
    slots = sorted(present)
    if not slots or "facts" not in rows or not rows.facts.astype(bool).any():
        return None
    columns = outcomes(rows, ["normal", *map(drop_name, slots)], "facts")
    facts = min(MAX_FACTS, max(len(text) for column in columns for text in column))
    normal_EF, *dropped = (_characters(column, facts) for column in columns)
    points_JF, p_JF = np.full((len(slots), facts), np.nan), np.full((len(slots), facts), np.nan)
    for j, dropped_EF in enumerate(dropped):
        for f in range(facts):
            normal_E, dropped_E = normal_EF[:, f], dropped_EF[:, f]
            readable_E = np.isin(normal_E, ("0", "1")) & np.isin(dropped_E, ("0", "1"))
            if readable_E.any():
                contrast = PairedBinary.of(normal_E[readable_E], dropped_E[readable_E])
                points_JF[j, f], p_JF[j, f] = 100 * contrast.value, contrast.p_above(0.0)
    if np.isnan(points_JF).all():
        return None
    return KnockoutMap(slots, points_JF, p_JF, np.isin(normal_EF, ("0", "1")).sum(axis=0), len(normal_EF))


def _characters(column: np.ndarray, count: int) -> np.ndarray:
    """Return the first characters of each text, [E, count]; `-` beyond its end."""
    return np.array([list(text[:count].ljust(count, "-")) for text in column])


def knockout_sentence(found: KnockoutMap, alpha: float = stats.ALPHA) -> str:
    """Return a sentence that names, for each fact, the slot that carries most of it.

    A slot is named only if blanking it lowers the agreement significantly, with Bonferroni's correction over all
    slots and facts of the map.
    """
    level = alpha / np.isfinite(found.p_JF).sum()
    parts = []
    for f in range(found.facts):
        if np.isnan(found.points_JF[:, f]).all():
            parts.append(f"fact {f + 1} cannot be read in any episode")
            continue
        j = int(np.nanargmax(found.points_JF[:, f]))
        if found.p_JF[j, f] <= level:
            parts.append(
                f"fact {f + 1} is carried most by slot {found.slots[j]} ({found.points_JF[j, f]:.1f} points)"
            )
        else:
            parts.append(f"fact {f + 1} by no single slot")
    return "; ".join(parts)


# --- in the report -------------------------------------------------------------------------------------------


def run_maps(runs: Sequence[JudgedRun]) -> dict[int, KnockoutMap]:
    """Return the maps of a configuration by training seed; a seed without rows for one is left out."""
    maps = {run.seed: knockout_map(run.rows) for run in runs}
    return {seed: found for seed, found in maps.items() if found is not None}


def knockout_sections(runs: Sequence[JudgedRun]) -> list[Section]:
    """Return the section with a configuration's map; none if no training seed has one."""
    maps = run_maps(runs)
    if not maps:
        return []
    caption = (
        "Which slot carries which fact of the message: by how many points blanking a slot lowers the agreement "
        f"of B's answer with the fact, split {runs[0].split}"
    )
    text = (
        "Each slot of the right prefix is blanked in turn. A slot is named where that lowers the agreement of B's "
        "answer with a fact significantly (5 %, Bonferroni over the map)."
    )
    sentences = [f"Training seed {seed}: {knockout_sentence(found)}." for seed, found in maps.items()]
    return [
        Section(
            "Knock-out map", [Text(text), Bullets(sentences), Figure(caption, _figure(runs[0].config, ".svg"))]
        )
    ]


def _figure(config: str, suffix: str) -> str:
    return f"figures/knockout-{config}{suffix}"


def draw_knockouts(root: Path, runs: Sequence[JudgedRun]) -> None:
    """Draw the map of each configuration that has one into `figures/`."""
    for config in dict.fromkeys(run.config for run in runs):
        own = [run for run in runs if run.config == config]
        if maps := run_maps(own):
            save(draw_knockout(own[0], maps), *png_and_svg(root / _figure(config, "")))


def draw_knockout(run: JudgedRun, maps: dict[int, KnockoutMap]) -> Any:
    """Draw a configuration's maps side by side, one per training seed; rows are slots and columns facts."""
    slots = max(len(found.slots) for found in maps.values())
    facts = max(found.facts for found in maps.values())
    figure, grid = plt.subplots(
        1,
        len(maps),
        figsize=(2.2 + len(maps) * (0.9 + 0.55 * facts), 1.8 + 0.28 * slots),
        squeeze=False,
        layout="constrained",
    )
    highest = max(10.0, *(float(np.nanmax(found.points_JF)) for found in maps.values()))
    for axes, (seed, found) in zip(grid.flat, maps.items(), strict=True):
        image = axes.imshow(found.points_JF, aspect="auto", cmap="Blues", vmin=0, vmax=highest)
        for (j, f), points in np.ndenumerate(found.points_JF):
            if not np.isnan(points):
                color = "#ffffff" if points > 0.6 * highest else "#000000"
                axes.annotate(f"{points:.0f}", (f, j), ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(found.facts), [str(f + 1) for f in range(found.facts)])
        axes.set_yticks(range(len(found.slots)), [str(slot) for slot in found.slots])
        axes.set_title(f"seed {seed}", fontsize=10)
    figure.supxlabel("fact, in the message's order", fontsize=10)
    grid[0, 0].set_ylabel("slot that is blanked")
    figure.colorbar(image, ax=list(grid.flat), label="agreement lowered by (points)")
    n = max(found.episodes for found in maps.values())
    readable = min(int(found.n_F[found.n_F > 0].min()) for found in maps.values())
    figure.suptitle(
        f"{run.config}: which slot carries which fact\n"
        f"split {run.split}, n = {n}, each fact can be read in {readable} or more",
        fontsize=11,
    )
    return figure
