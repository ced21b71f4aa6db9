"""Times of calls that take turns, and ratios of their speeds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def times_in_turns(calls: Mapping[str, Callable[[], Any]], seconds: float = 0.0) -> dict[str, list[float]]:
    """Return each call's times in seconds, from at least three turns each and `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while min(map(len, times.values())) < 3 or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            call_start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - call_start)
    return times


def median_times(calls: Mapping[str, Callable[[], Any]], seconds: float = 0.0) -> dict[str, float]:
    """Return each call's median time in seconds; see `times_in_turns`."""
    return {name: statistics.median(values) for name, values in times_in_turns(calls, seconds).items()}


def speed_ratio(
    times: Sequence[float], others: Sequence[float], items: float = 1, other_items: float = 1
) -> float:
    """Return how many times as fast as another call a call is: the median of the ratios turn by turn.

    Args:
        times: Its times in turns.
        others: The other's times in the same turns.
        items: What it handles, such as samples.
        other_items: What the other handles.
    """
    ratios = [other / own for own, other in zip(times, others, strict=True)]
    return statistics.median(ratios) * items / other_items
