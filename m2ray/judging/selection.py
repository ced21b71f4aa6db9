# NEWDOC
"""The append-only row store. A row is one episode's outcome under one condition for one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from m2ray.evaluation.rows import outcomes


def paired_gain(rows: pd.DataFrame) -> float:
    """The search objective, `gain`, of one checkpoint's rows on one split."""
    return gain(*outcomes(rows, ["normal", "shuffle", "P0"], "nll"))


def gain(normal_E: np.ndarray, shuffle_E: np.ndarray, p0_E: np.ndarray) -> float:
    """Nats per answer value that the right message is worth, beyond the better rival.

    min(mean(NLL_P0 - NLL_normal), mean(NLL_shuffle - NLL_normal)) over the same episodes. A gain over P0 alone
    would reward priming, a gain over shuffle alone would reward making wrong messages worse; the smaller of the
    two rewards neither.
    """
    return float(min((p0_E - normal_E).mean(), (shuffle_E - normal_E).mean()))


def best_configs(gains: Mapping[str, Sequence[float]], count: int) -> list[str]:
    """The configurations of the highest mean gain over their training seeds, best first; ties by name."""
    ranked = sorted(gains, key=lambda name: (-sum(gains[name]) / len(gains[name]), name))
    return ranked[:count]


def with_baseline(own: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """A checkpoint's rows with the P0 rows they are paired with."""
    baseline = rows[(rows.condition == "P0") & (rows.decoding == own.decoding.iloc[0])]
    return pd.concat([own, baseline], ignore_index=True)
