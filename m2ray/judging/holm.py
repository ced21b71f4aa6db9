"""Holm's correction over the tests of all verdicts that are judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from m2ray.judging.statistics import ALPHA
from m2ray.judging.verdict import FAIL, PASS, Verdict


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (Holm 1979), each to be compared with alpha itself.

    As statsmodels' `multipletests`, which collects garbage at each call: seconds where many rows are in memory.
    """
    values_N = np.asarray(p_values, dtype=float)
    order_N = values_N.argsort()
    factors_N = np.arange(len(values_N), 0, -1)
    adjusted_N = np.empty_like(values_N)
    adjusted_N[order_N] = np.maximum.accumulate(values_N[order_N] * factors_N).clip(max=1.0)
    return adjusted_N.tolist()


def holm_corrected(verdicts: Sequence[Verdict], alpha: float = ALPHA) -> list[Verdict]:
    """Apply Holm's correction to every p-value of all verdicts; a criterion above alpha then fails.

    For gates without grades, in which each test is a claim of its own.

    Pass all verdicts of a split: a smaller family is corrected less.
    """
    tests = [
        (v, r)
        for v, verdict in enumerate(verdicts)
        for r, result in enumerate(verdict.results)
        if result.p_value is not None
    ]
    adjusted = holm([verdicts[v].results[r].p_value or 0.0 for v, r in tests])
    corrected = [list(verdict.results) for verdict in verdicts]
    for (v, r), p_value in zip(tests, adjusted, strict=True):
        result = corrected[v][r]
        sentence = result.sentence.removesuffix(")") + f", Holm {p_value:.2g})"
        corrected[v][r] = replace(
            result,
            measured=p_value,
            threshold=alpha,
            status=PASS if p_value <= alpha else FAIL,
            p_value=p_value,
            sentence=sentence,
        )
    return [replace(verdict, results=tuple(row)) for verdict, row in zip(verdicts, corrected, strict=True)]
