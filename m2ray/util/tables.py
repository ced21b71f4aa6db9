"""Text tables for Markdown files and terminals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from tabulate import tabulate

Table = list[list[str]]  # rows of cells; the first row is the header


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in table]
    return tabulate(escaped[1:], headers=escaped[0], tablefmt="github", disable_numparse=True)


def terminal_width() -> int:
    """Return the columns of the terminal, or those that COLUMNS names; 0 where nothing limits a line."""
    return shutil.get_terminal_size((0, 0)).columns


def fit_columns(table: Table, width: int, drop: Sequence[str], between: int = 2) -> Table:
    """Return a table not wider than a terminal: columns are dropped, then the first one's texts cut.

    Args:
        table: The table.
        width: Columns of the terminal; 0: no limit.
        drop: Columns by name, the first to go first.
        between: Characters between two columns.
    """
    shown = list(table[0])
    kept = table
    for name in [*drop, None]:
        wide = sum(max(len(line[i]) for line in kept) for i in range(len(shown))) + between * (len(shown) - 1)
        if not width or wide <= width or name is None:
            break
        if name in shown:
            place = shown.index(name)
            shown.remove(name)
            kept = [[*line[:place], *line[place + 1 :]] for line in kept]
    if not width or wide <= width:
        return kept
    longest = max(len(line[0]) for line in kept)
    room = max(8, longest - (wide - width))
    return [[keep_end(line[0], room), *line[1:]] for line in kept]


def terminal_text(table: Table, drop: Sequence[str]) -> str:
    """Return a table as text not wider than the terminal; see `fit_columns`."""
    header, *lines = fit_columns(table, terminal_width(), drop)
    rule = ["-" * max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    return tabulate([header, rule, *lines], tablefmt="plain", disable_numparse=True)


def keep_end(text: str, room: int) -> str:
    """Return a text cut to a number of characters; its end stays, which tells names apart."""
    return text if len(text) <= room else "…" + text[-(room - 1) :]


def print_table(table: Table, title: str) -> None:
    """Print a table below its title."""
    print(f"\n{title}\n")
    print(tabulate(table[1:], headers=table[0], tablefmt="github", disable_numparse=True))
