"""Episodes from JSON Lines files, in the fields of the reference attempt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2ray.tasks.answers import read_answer, verify
from m2ray.tasks.episodes import Episode, read_facts
from m2ray.tasks.level import Level
from m2ray.util.errors import UserError
from m2ray.util.files import numbered_lines
from m2ray.util.json_objects import LineFault, read_object
from m2ray.util.text import is_text, with_progress

_REQUIRED = ("receiver_context", "sender_message", "receiver_output")
_OPTIONAL = "sender_context"


def read_episodes(path: Path, level: Level) -> list[Episode]:
    """Read the episodes of a JSON Lines file and check every line.

    `receiver_context` (B's half) and `sender_message` are facts in the wording of the template. A message in free
    text needs A's half beside it in the optional `sender_context`. `receiver_output` is a right answer in JSON. An
    episode's seed is its line number, counted from 0; blank lines do not count.

    Raises:
        UserError: names the file, line, key and fix of the first fault.
    """
    read_fact = functools.cache(level.read)  # a level has few facts, and a large file states each very often
    lines = with_progress(numbered_lines(path), f"{path}: {{}} lines")
    episodes = [
        _read_episode(line, level, read_fact, seed, f"{path}: line {number}")
        for seed, (number, line) in enumerate(lines)
    ]
    if not episodes:
        raise UserError(f"{path}: no episodes; write one JSON object per line")
    return episodes


def _read_episode(line: bytes, level: Level, read_fact: Callable[[str], Any], seed: int, where: str) -> Episode:
    """Return the episode of a line; errors start with `where`."""
    fields = _read_fields(line, where)
    halves = []
    for field in (_OPTIONAL if _OPTIONAL in fields else "sender_message", "receiver_context"):
        try:
            halves.append(read_facts(fields[field], level, read_fact))
        except ValueError as error:
            raise UserError(f"{where}: {field}: {error}") from None
    values = read_answer(level, fields["receiver_output"], "json")
    if values is None:
        raise UserError(f"{where}: receiver_output: not a JSON answer of level {level.name}; fix it")
    episode = Episode(level, seed, halves[0], halves[1], values, fields["sender_message"])
    if not verify(episode, fields["receiver_output"], "json").success:
        raise UserError(f"{where}: receiver_output: wrong answer to the facts of this line; fix it")
    return episode


def _read_fields(line: bytes, where: str) -> dict[str, str]:
    """Return the fields of a line, all of them known and not empty."""
    try:
        data = read_object(line)
    except LineFault as error:
        raise UserError(f"{where}: {error}") from None
    if not data.keys() & set(_REQUIRED):
        raise UserError(
            f"{where}: {_REQUIRED[0]}: missing, as the other keys of a puzzle; for a file in free text set "
            "task.scorer, such as scorer: exact"
        )
    for field in (*_REQUIRED, *((_OPTIONAL,) if _OPTIONAL in data else ())):
        if not is_text(data.get(field)):
            raise UserError(f"{where}: {field}: missing, empty or not text; add it")
    if unknown := set(data) - {*_REQUIRED, _OPTIONAL}:
        raise UserError(f"{where}: {min(unknown)}: unknown key; remove it")
    return data
