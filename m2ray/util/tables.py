# NEWDOC
"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations


def markdown(table: Table) -> str:
    """A table in Markdown."""
    from tabulate import tabulate

    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in table]
    return tabulate(escaped[1:], headers=escaped[0], tablefmt="github", disable_numparse=True)


Table = list[list[str]]


def print_table(table: Table, title: str) -> None:
    """A table on the terminal, plain text elsewhere."""
    from tabulate import tabulate

    print(f"\n{title}\n")
    print(tabulate(table[1:], headers=table[0], tablefmt="github", disable_numparse=True))
