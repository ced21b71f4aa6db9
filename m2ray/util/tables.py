"""Text tables for Markdown files and terminals."""

from __future__ import annotations

from tabulate import tabulate

Table = list[list[str]]  # rows of cells; the first row is the header


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in table]
    return tabulate(escaped[1:], headers=escaped[0], tablefmt="github", disable_numparse=True)


def print_table(table: Table, title: str) -> None:
    """Print a table below its title."""
    print(f"\n{title}\n")
    print(tabulate(table[1:], headers=table[0], tablefmt="github", disable_numparse=True))
