# NEWDOC
"""Where episodes come from: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

import json
import re
from pathlib import Path

from m2ray.tasks.answers import read_answer, verify
from m2ray.tasks.episodes import Episode, read_facts
from m2ray.tasks.level import Level
from m2ray.util.errors import UserError

_FIELDS = ("receiver_context", "sender_message", "receiver_output")


def _is_text(value: object) -> bool:
    """Whether a tokenizer can read it: lone surrogates, which JSON can spell, are no characters."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def read_episodes(path: Path, level: Level) -> list[Episode]:
    """Episodes from a JSONL file in the reference attempt's fields, checked line by line.

    `receiver_context` (B's half) and `sender_message` are facts as the template writes them; a message in free
    words needs A's half beside it in the optional `sender_context`. `receiver_output` is a correct answer in
    JSON. A line's number, counted from 0, is its seed.

    Raises:
        UserError: names the file, line, key and fix of the first fault.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    found = []
    # Bytes end lines at \n and \r alone; text would also at characters that JSON allows inside a string.
    for number, line in enumerate(path.read_bytes().splitlines()):
        where = f"{path}: line {number + 1}"
        try:
            data = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
        if not isinstance(data, dict):
            raise UserError(f"{where}: expected an object, found {type(data).__name__}; write one object a line")
        for field in (*_FIELDS, *(("sender_context",) if "sender_context" in data else ())):
            if not _is_text(data.get(field)):
                raise UserError(f"{where}: {field}: missing, empty or not text; add it")
        unknown = set(data) - {*_FIELDS, "sender_context"}
        if unknown:
            raise UserError(f"{where}: {min(unknown)}: unknown key; remove it")
        halves = []
        for field in ("sender_context" if "sender_context" in data else "sender_message", "receiver_context"):
            try:
                halves.append(read_facts(data[field], level))
            except ValueError as error:
                raise UserError(f"{where}: {field}: {error}") from None
        values = read_answer(level, data["receiver_output"], "json")
        if values is None:
            raise UserError(f"{where}: receiver_output: not a JSON answer of level {level.name}; fix it")
        episode = Episode(level, number, halves[0], halves[1], values, data["sender_message"])
        if not verify(episode, data["receiver_output"], "json").success:
            raise UserError(f"{where}: receiver_output: breaks a constraint of its own line; fix it")
        found.append(episode)
    if not found:
        raise UserError(f"{path}: no episodes; write one JSON object a line")
    return found
