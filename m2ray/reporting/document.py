"""Parts of a report, independent of its format: sections of text, lists, tables, commands, figures and links.

A section is written as Markdown (`section_markdown`) and as HTML (`m2ray.reporting.html`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple
from urllib.parse import quote

from m2ray.util.tables import Table, markdown

# Names that are safe as the name of a file or folder: each configuration has a report with its name.
PLAIN_NAME = re.compile(r"[\w][\w .+=@-]{0,127}")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Bullets:
    """A bullet list."""

    lines: Sequence[str]
    kind: ClassVar = "bullets"


@dataclass(frozen=True)
class Grid:
    """A table with the headers in its first row."""

    table: Table
    kind: ClassVar = "grid"


@dataclass(frozen=True)
class Commands:
    """Command lines for a shell."""

    lines: Sequence[str]
    kind: ClassVar = "commands"


@dataclass(frozen=True)
class Figure:
    """A figure in the results folder, with its caption; `path` is relative to the folder."""

    caption: str
    path: str
    kind: ClassVar = "figure"


@dataclass(frozen=True)
class Link:
    """A link to another file of the results folder; `path` is relative to the folder."""

    text: str
    path: str
    kind: ClassVar = "link"


Block = Text | Bullets | Grid | Commands | Figure | Link


class Section(NamedTuple):
    """A heading, the blocks below it, and its subsections."""

    title: str
    blocks: Sequence[Block] = ()
    parts: Sequence[Section] = ()


def section_markdown(section: Section, level: int = 1) -> str:
    """Return a section as Markdown, with links relative to `attempts/`."""
    blocks = [_block_markdown(block) for block in section.blocks]
    parts = [section_markdown(part, level + 1) for part in section.parts]
    return "\n\n".join(["#" * level + " " + section.title, *blocks, *parts])


def _block_markdown(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Bullets):
        return "\n".join(f"- {line}" for line in block.lines)
    if isinstance(block, Grid):
        return markdown(block.table)
    if isinstance(block, Commands):
        return "```\n" + "\n".join(block.lines) + "\n```"
    if isinstance(block, Figure):
        return f"![{block.caption}](../{quote(block.path)})"
    return f"[{block.text}](../{quote(block.path)})"
