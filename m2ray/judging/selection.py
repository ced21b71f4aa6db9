"""Select configurations: the gain that they are ranked by, and the best of them.

Shapes: E episodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from m2ray.evaluation.row_selection import outcomes


def paired_gain(rows: pd.DataFrame) -> float:
    """Return the search objective, `gain`, from one checkpoint's rows on one split."""
    return gain(*outcomes(rows, ["normal", "shuffle", "P0"], "nll"))


def gain(normal_E: np.ndarray, shuffle_E: np.ndarray, p0_E: np.ndarray) -> float:
    """Return how many nats per answer value the right message gains over P0 or shuffle, whichever is less.

    It is min(mean(NLL_P0 - NLL_normal), mean(NLL_shuffle - NLL_normal)) over the same episodes. A gain over P0
    alone would reward priming, and a gain over shuffle alone would reward making wrong messages worse; the smaller
    of the two rewards neither.
    """
    return float(min((p0_E - normal_E).mean(), (shuffle_E - normal_E).mean()))


def gains_of_rows(
    rows: pd.DataFrame, keys: Collection[tuple[str, int, str]] | None = None
) -> dict[tuple[str, int, str], float]:
    """Return the gain of each checkpoint that has rows on a split, by configuration, training seed and digest.

    Args:
        rows: All rows of the split. They are divided once: a filter per checkpoint would read all for each.
        keys: The checkpoints that count; default: all.
    """
    own = rows[rows.config != ""]
    baselines = rows[rows.condition == "P0"]
    groups = own.groupby(["config", "seed", "checkpoint"], sort=False)
    return {
        key: paired_gain(with_baseline(part, baselines)) for key, part in groups if keys is None or key in keys
    }


def best_configs(gains: Mapping[str, Sequence[float]], count: int) -> list[str]:
    """Return the configurations with the highest mean gain over training seeds, best first; ties go by name."""
    ranked = sorted(gains, key=lambda name: (-sum(gains[name]) / len(gains[name]), name))
    return ranked[:count]


def with_baseline(own: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return a checkpoint's rows with the P0 rows that they are paired with."""
    baseline = rows[(rows.condition == "P0") & (rows.decoding == own.decoding.iloc[0])]
    return pd.concat([own, baseline], ignore_index=True)
