# NEWDOC
"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

from typing import Any

from m2ray.util.tables import Table

MOST = 80  # characters of a changed setting that the page shows; sweep.yaml has all of it


NAMED = 8  # changed settings that a line names


def provenance(about: dict[str, Any]) -> list[str]:
    """Where the rows came from, as lines."""
    if not about:
        return []
    receiver = about.get("receiver", {})
    return [
        f"Command: `{about.get('command')}`",
        f"Date: {about.get('date')}; machine: {about.get('machine')}; commit: {about.get('git')}",
        f"Receiver: {receiver.get('name')} (digest {receiver.get('digest')})",
        *resumed(about),
    ]


def resumed(about: dict[str, Any]) -> list[str]:
    """A line for each day on which settings were changed when the sweep was resumed."""
    days: dict[str, list[str]] = {}
    for date, key, _, _ in recorded_changes(about):
        days.setdefault(date, []).append(key)
    return [
        f"Resumed on {date} with a change of {', '.join(keys[:NAMED])}"
        + (f" and {len(keys) - NAMED} more" if keys[NAMED:] else "")
        + "; what each was and is stands in sweep.yaml, under changes"
        for date, keys in days.items()
    ]


def recorded_changes(about: dict[str, Any]) -> Table:
    """Date, setting, before and since of what was changed when a sweep was resumed; whole in sweep.yaml only."""
    return [
        [str(c["date"]), str(c["key"]), f"{c['before']!s:.{MOST}}", f"{c['now']!s:.{MOST}}"]
        for c in about.get("changes", [])
    ]
