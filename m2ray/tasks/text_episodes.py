"""Text episodes from JSON Lines files: A's message, B's prompt and the right answers.

A line is an object with the keys `id`, `message`, `prompt`, `target` and, if wanted, `choices` and `group`. Other
keys are ignored, so that a file made for another program can be read as it is: `fields` names the columns that
hold these keys there.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from m2ray.util.errors import UserError
from m2ray.util.files import numbered_lines, write_atomic
from m2ray.util.json_objects import LineFault, read_object
from m2ray.util.text import is_text, with_progress

MESSAGE = "{message}"  # the place of A's message in B's prompt
REQUIRED = ("id", "message", "prompt", "target")
OPTIONAL = ("choices", "group", "near")
_MEANT = re.compile(r"\{+\s*message\s*\}+", re.IGNORECASE)  # where no `MESSAGE` is
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


class Judge(Protocol):
    """Score of an answer; `m2ray.tasks.scorers` has them."""

    @property
    def threshold(self) -> float:
        """Least score of a success."""

    def score(self, answer: str, targets: Sequence[str]) -> float:
        """Return the score of B's answer, from 0 to 1: the best over the answers that count as right."""


@dataclass(frozen=True)
class TextSetting:
    """Settings of a task in free text: its name for rows, and how its episodes are prompted and scored."""

    task: str
    family: str  # name under which looks at the messages are recorded
    scorer: Judge
    choose: bool = False  # B picks the likeliest of the choices and does not write
    stop: tuple[str, ...] | None = None  # texts that end an answer; None: a line break, except in a chat
    system: str = ""  # the system turn of a chat
    opening: str = ""  # text before every prompt, such as solved examples


@dataclass(frozen=True)
class TextEpisode:
    """A task in free text: A's message, B's prompt with one place for it, and the answers that count as right.

    Episodes of one group are not independent of each other (for example, questions about one text): a split, or
    the partner that `shuffle` takes a message from, never cuts through a group.
    """

    id: str
    message: str
    prompt: str  # holds `{message}` exactly once
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()  # the answers to choose from; empty where the answer is free
    group: str = ""
    near: str = ""  # the message with one fact changed, so that the right answer changes; empty if unknown
    seed: int = field(default=0, compare=False)  # of a drawn episode; in a file its place, counted from 0
    units: tuple[str, ...] = ()  # the facts of the message as text; empty if unknown
    setting: TextSetting | None = field(default=None, repr=False)
    line: int = field(default=0, compare=False)  # in its file, counted from 1, blank ones included
    shares_group: bool = field(default=False, compare=False)  # other lines of its file name the same group

    @property
    def task(self) -> str:
        """Name of the task, for rows."""
        return self.rules.task

    @property
    def family(self) -> str:
        """Name under which looks at the messages are recorded."""
        return self.rules.family

    @property
    def rules(self) -> TextSetting:
        """How the episode is prompted and scored."""
        assert self.setting is not None, "the episode belongs to no task yet"
        return self.setting

    @property
    def content(self) -> str:
        """The message as `simplify` leaves it: what counts as the same message."""
        return simplify(self.message)

    @property
    def cluster(self) -> str:
        """The unit that intervals and tests count: a group, or without one the episodes of one message."""
        return self.group if self.has_group else self.content

    @property
    def has_group(self) -> bool:
        """False for an episode that is a group by itself."""
        # A group may be named after one of its episodes, such as the first question about a text.
        return self.shares_group or self.group not in ("", self.id)

    def sentences(self) -> tuple[str, ...]:
        """Return the facts of the message, or its sentences where they are unknown."""
        return self.units or tuple(part for part in _SENTENCE_END.split(self.message.strip()) if part)

    def prompt_parts(self) -> tuple[str, str]:
        """Return B's prompt before and after the message's place."""
        before, _, after = self.prompt.partition(MESSAGE)
        return before, after

    def prompt_with(self, message: str) -> str:
        """Return B's prompt with a text in the message's place."""
        return message.join(self.prompt_parts())


# ASCII punctuation that carries no meaning; not a minus sign, a decimal point, `!=` and symbols such as + and <.
_ASCII_PUNCTUATION = re.compile(
    r"""(?:[\x00-\x20"#%&'()*,/:;?@\[\\\]_`{}\x7f]|!(?!=)|(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?!\d))+"""
)
_OTHER = re.compile(r"[^\w\x00-\x7f]")
_MEANINGFUL = ("Mn", "Mc", "Me", "Sm", "Sc", "So")  # categories: vowel signs and accents, symbols, emoji


def simplify(text: str) -> str:
    """Return text without case, spaces and punctuation; the text itself where nothing else is in it.

    What changes the meaning stays: a minus sign, a decimal point, symbols, emoji, and the combining vowel signs
    of scripts such as Devanagari and Thai.
    """
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFC", folded)
        folded = _OTHER.sub(lambda found: _if_meaningful(found[0]), folded)
    return _ASCII_PUNCTUATION.sub("", folded) or text.strip()


@lru_cache(maxsize=10_000)
def _if_meaningful(character: str) -> str:
    """Return a character that changes what a text says; for any other nothing, or a space."""
    category = unicodedata.category(character)
    return character if category in _MEANINGFUL else " " if category[0] == "Z" else ""


def read_text_episodes(path: Path, fields: Mapping[str, str] | None = None) -> list[TextEpisode]:
    """Read the episodes of a JSON Lines file and check every line; a file that has not changed is read once.

    A byte order mark, CRLF line ends and blank lines are accepted. A prompt without `{message}` gets
    the message before it, on a line of its own. `target` is a right answer or a list of them. An episode without
    a group is a group by itself.

    Args:
        path: The file, in UTF-8.
        fields: The file's column for each key that has another name there: `{"message": "prompt_A"}`.

    Raises:
        UserError: names the file, line, key and fix of the first fault.
    """
    _columns(fields or {})  # faults of `fields` come before those of the file
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return list(_read(path, tuple(sorted((fields or {}).items())), changed))


@lru_cache(maxsize=4)
def _read(path: Path, fields: tuple[tuple[str, str], ...], changed: int) -> list[TextEpisode]:
    columns = _columns(dict(fields))
    episodes: list[TextEpisode] = []
    lines_of: dict[str, int] = {}
    for number, line in with_progress(numbered_lines(path), f"{path}: {{}} lines"):
        try:
            episode = replace(_episode(read_object(line), columns), seed=len(episodes), line=number)
            first = lines_of.setdefault(episode.id, number)
            if first != number:
                raise LineFault(
                    f"{columns['id'].label}: {episode.id[:60]!r} is also in line {first}; use another id"
                )
        except LineFault as fault:
            raise UserError(f"{path}: line {number}: {fault}") from None
        episodes.append(episode)
    if not episodes:
        raise UserError(f"{path}: no episodes; write one JSON object per line")
    sizes = Counter(episode.group for episode in episodes)
    return [replace(e, shares_group=True) if sizes[e.group] > 1 else e for e in episodes]


def write_text_episodes(path: Path, episodes: Iterable[TextEpisode]) -> None:
    """Write a file that `read_text_episodes` reads back, without loss."""
    lines = []
    for episode in episodes:
        record: dict[str, Any] = {
            "id": episode.id,
            "message": episode.message,
            "prompt": episode.prompt,
            "target": list(episode.targets),
        }
        if episode.choices:
            record["choices"] = list(episode.choices)
        if episode.near:
            record["near"] = episode.near
        record["group"] = episode.group
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines).encode())


class _Column(NamedTuple):
    """The name of a column, and the name that errors give it."""

    name: str
    label: str
    renamed: bool


def _columns(fields: Mapping[str, str]) -> dict[str, _Column]:
    """Return the column of each key.

    Raises:
        UserError: `fields` holds an unknown key, or names one column twice.
    """
    known = (*REQUIRED, *OPTIONAL)
    for key, name in fields.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean `{close[0]}`?" if close else f"use {', '.join(known)}"
            raise UserError(f"fields.{key!s:.60}: unknown key; {fix}")
        if not is_text(name):
            raise UserError(f"fields.{key}: {name!r:.60} is not the name of a column; write text")
    columns = {key: fields.get(key, key) for key in known}
    used = [key for key in known if key in REQUIRED or key in fields]
    for i, key in enumerate(used):
        for other in used[:i]:
            if columns[key] == columns[other] and {key, other} != {"id", "group"}:
                raise UserError(
                    f"fields.{key}: column {columns[key]!r:.60} is {other} already; name another column"
                )
    return {
        key: _Column(name, name if name == key else f"{name} (fields.{key})", key in fields)
        for key, name in columns.items()
    }


# --- keys ----------------------------------------------------------------------------------------------------


def _episode(record: dict[str, Any], columns: Mapping[str, _Column]) -> TextEpisode:
    """Return the episode of a line."""
    name = _name(_required(record, columns["id"]), columns["id"].label)
    message = _text(_required(record, columns["message"]), columns["message"].label)
    prompt = _text(_required(record, columns["prompt"]), columns["prompt"].label)
    places = prompt.count(MESSAGE)
    if places > 1:
        raise LineFault(f"{columns['prompt'].label}: holds {MESSAGE} {places} times; keep one")
    if not places and (meant := _MEANT.search(prompt)):
        raise LineFault(f"{columns['prompt'].label}: holds {meant[0]}; write {MESSAGE}, the place of the message")
    targets = _texts(_required(record, columns["target"]), columns["target"].label)
    choices = _optional(record, columns["choices"])
    group = _optional(record, columns["group"])
    near = _optional(record, columns["near"])
    return TextEpisode(
        name,
        message,
        prompt if places else f"{MESSAGE}\n{prompt}",
        tuple(dict.fromkeys(targets)),
        () if choices is None else _choices(choices, columns["choices"].label),
        name if group is None else _name(group, columns["group"].label),
        "" if near is None else _near(near, message, columns["near"].label),
    )


def _near(value: Any, message: str, label: str) -> str:
    near = _text(value, label)
    if near == message:
        raise LineFault(f"{label}: equals the message; change one fact of it, or remove the key")
    return near


def _required(record: dict[str, Any], column: _Column) -> Any:
    if column.name in record:
        return record[column.name]
    close = difflib.get_close_matches(column.name, record, n=1)
    if close:
        raise LineFault(f"{column.label}: missing; did you mean `{close[0]}`?")
    fix = (
        "add it, or name another column" if column.renamed else f"add it, or name its column: fields.{column.name}"
    )
    raise LineFault(f"{column.label}: missing; {fix}")


def _optional(record: dict[str, Any], column: _Column) -> Any:
    """Return a value, or None where it is null, or missing under its usual name."""
    return _required(record, column) if column.renamed else record.get(column.name)


def _name(value: Any, label: str) -> str:
    """Return the name of an episode or a group, which may be a whole number."""
    return str(value) if type(value) is int else _text(value, label)


def _text(value: Any, label: str) -> str:
    if is_text(value):
        return value
    if isinstance(value, str):
        fault = (
            "holds a lone surrogate, which is not a character; remove it" if value.strip() else "empty; write it"
        )
        raise LineFault(f"{label}: {fault}")
    raise LineFault(f"{label}: {_shown(value)} is not text; write it in quotes")


def _texts(value: Any, label: str) -> list[str]:
    if not isinstance(value, list):
        return [_text(value, label)]
    if not value:
        raise LineFault(f"{label}: an empty list; write a right answer")
    return [_text(item, label) for item in value]


def _choices(value: Any, label: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise LineFault(f"{label}: {_shown(value)} is not a list of two or more answers; write one, or remove it")
    choices = tuple(_texts(value, label))
    if len(set(choices)) < len(choices):
        raise LineFault(f"{label}: holds an answer twice; keep one")
    return choices


def _shown(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters."""
    return json.dumps(value, ensure_ascii=False)[:60]
