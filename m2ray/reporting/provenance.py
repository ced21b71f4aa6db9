"""Provenance of a sweep's rows, for its reports: command, date, machine, receiver, and changes at a resume."""

from __future__ import annotations

from typing import Any

from m2ray.util.tables import Table
from m2ray.util.text import list_some

MAX_VALUE_CHARACTERS = 80  # of a changed setting in a table; sweep.yaml has the whole value


def provenance(record: dict[str, Any]) -> list[str]:
    """Return lines about where the rows came from, from the sweep's record; none for an empty record."""
    if not record:
        return []
    receiver = record.get("receiver", {})
    return [
        f"Command: `{record.get('command')}`",
        f"Date: {record.get('date')}; machine: {record.get('machine')}; commit: {record.get('git')}",
        f"Receiver: {receiver.get('name')} (digest {receiver.get('digest')})",
        *resume_lines(record),
        *extension_lines(record),
        *([f"Budget: {record['budget']}"] if "budget" in record else []),
    ]


def extension_lines(record: dict[str, Any]) -> list[str]:
    """Return a line for each extension of the sweep."""
    lines = []
    for entry in record.get("extensions", []):
        seeds = f"training seeds {', '.join(map(str, entry['seeds']))} of what is judged" if entry["seeds"] else ""
        added = " and ".join(text for text in (f"{entry['trials']} trials" * bool(entry["trials"]), seeds) if text)
        lines.append(f"Extended on {entry['date']} by {added}: `{entry['command']}`")
    return lines


def resume_lines(record: dict[str, Any]) -> list[str]:
    """Return a line for each day on which the sweep was resumed with changed settings."""
    settings: dict[str, list[str]] = {}
    for date, key, _, _ in recorded_changes(record):
        settings.setdefault(date, []).append(key)
    return [
        f"Resumed on {date} with changed settings: {list_some(keys)}"
        "; their values before and after are in sweep.yaml, under changes"
        for date, keys in settings.items()
    ]


def recorded_changes(record: dict[str, Any]) -> Table:
    """Return date, setting, value before and value now of each change at a resume; long values are cut."""
    limit = MAX_VALUE_CHARACTERS
    return [
        [str(change["date"]), str(change["key"]), f"{change['before']!s:.{limit}}", f"{change['now']!s:.{limit}}"]
        for change in record.get("changes", [])
    ]
