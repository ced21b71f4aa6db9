# NEWDOC
"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple
from urllib.parse import quote

from m2ray.util.tables import Table, markdown


def section_markdown(section: Section, level: int = 1) -> str:
    """A section as Markdown, links relative to `attempts/`."""
    parts = ["#" * level + " " + section.title]
    for block in section.blocks:
        if isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {line}" for line in block.lines))
        elif isinstance(block, Grid):
            parts.append(markdown(block.table))
        elif isinstance(block, Commands):
            parts.append("```\n" + "\n".join(block.lines) + "\n```")
        else:
            mark = "!" if isinstance(block, Picture) else ""
            parts.append(f"{mark}[{block.says}](../{quote(block.path)})")
    return "\n\n".join([*parts, *(section_markdown(part, level + 1) for part in section.parts)])


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    lines: Sequence[str]
    kind: ClassVar = "bullets"


@dataclass(frozen=True)
class Grid:
    """A table, its first row the headers."""

    table: Table
    kind: ClassVar = "grid"


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: Sequence[str]
    kind: ClassVar = "commands"


@dataclass(frozen=True)
class Picture:
    """A picture in the results folder, and what it shows."""

    says: str
    path: str
    kind: ClassVar = "picture"


@dataclass(frozen=True)
class Link:
    """Another file of the results folder, and what it holds."""

    says: str
    path: str
    kind: ClassVar = "link"


Block = Text | Bullets | Grid | Commands | Picture | Link


class Section(NamedTuple):
    """A heading, what stands below it, and the sections within."""

    title: str
    blocks: Sequence[Block] = ()
    parts: Sequence[Section] = ()
