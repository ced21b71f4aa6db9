# NEWDOC
"""What people see while a sweep runs: a live table on a terminal, plain lines elsewhere; JSON where asked."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """`12.8%`."""
    return f"{100 * share:.1f}%"
