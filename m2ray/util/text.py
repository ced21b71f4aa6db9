"""Numbers as text."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: `1 seed`, `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """Return a share in percent, with one decimal: `12.8%`."""
    return f"{100 * share:.1f}%"
