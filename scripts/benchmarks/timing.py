"""Median times of calls that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def median_times(calls: Mapping[str, Callable[[], Any]], seconds: float = 0.0) -> dict[str, float]:
    """Return each call's median time in seconds, from at least three turns each and `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while min(map(len, times.values())) < 3 or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            call_start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - call_start)
    return {name: statistics.median(values) for name, values in times.items()}
