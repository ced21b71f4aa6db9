"""Configuration of a task: its episodes, how they are split, and how free-text answers are scored."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from m2ray.tasks.episodes import PARTS, check_held_out, task_name
from m2ray.tasks.held_out import HeldOut
from m2ray.tasks.level import defines_change_fact
from m2ray.tasks.registry import level as puzzle_level
from m2ray.tasks.scorers import Choice, Scorer, scorer
from m2ray.tasks.sentences.family import DEFAULT as DEFAULT_SENTENCES
from m2ray.tasks.sentences.family import MAX_SENTENCES, SentencesLevel
from m2ray.tasks.sentences.family import level_of as sentences_level
from m2ray.tasks.sentences.relations import RELATIONS
from m2ray.tasks.text_episodes import TextEpisode, TextSetting, read_text_episodes
from m2ray.util.errors import UserError
from m2ray.util.files import file_digest
from m2ray.util.strict_yaml import SEED_RANGE, StrictModel

ALL = "all"  # a split: all episodes of its part of a text file
EVALUATION_SPLITS = ("search", "select", "confirm")


def parse_seeds(text: str) -> range:
    """Return the range of episode seeds that a text such as `42:542` names, end excluded.

    Raises:
        ValueError: the text is not of that form, or the range is empty.
    """
    match = SEED_RANGE.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"{text!r} is not a range of seeds; write it as 1000:1100 (end excluded)")
    return range(int(match[1]), int(match[2]))


def _check_seeds(text: str) -> str:
    if text != ALL:
        parse_seeds(text)
    return text


Seeds = Annotated[str, AfterValidator(_check_seeds)]


class Splits(StrictModel):
    """The episodes of each split.

    Of drawn episodes these are disjoint ranges of seeds; `m2ray.tasks.episodes` also keeps their messages apart by
    content. Of a text file each split has its own part, chosen by the hash of an episode's group, and A:B are the
    numbers of episodes within the part.
    """

    train: Seeds = "100000:1000000"
    search: Seeds = "1000:1200"
    select: Seeds = "4000:4500"
    confirm: Seeds = "2000:3000"

    def check_ranges(self) -> None:
        """Refuse ranges of seeds that overlap.

        Raises:
            ValueError: two splits overlap, or one is `all`, which only a text file has.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, value in values.items():
            if value == ALL:
                raise ValueError(f"splits.{name}: {ALL} is for text files; write seeds A:B")
        ranges = {name: parse_seeds(value) for name, value in values.items()}
        for (name, seeds), (other_name, other) in itertools.combinations(ranges.items(), 2):
            if seeds.start < other.stop and other.start < seeds.stop:
                raise ValueError(
                    f"splits: {name} {seeds.start}:{seeds.stop} overlaps {other_name} {other.start}:{other.stop}; "
                    "keep them apart"
                )

    def seeds(self, name: str) -> range:
        """Return the seeds of a split of drawn episodes, or of lines of a puzzle file."""
        return parse_seeds(getattr(self, name))


def is_text_file(task: Mapping[str, Any]) -> bool:
    """Return whether the keys of a task name a file of episodes in free text."""
    return task.get("file") is not None and any(task.get(key) is not None for key in ("fields", "scorer"))


class TaskConfig(StrictModel):
    """The episodes, and the wording of A's messages.

    Episodes are drawn by seed (`level`) or read from a file: of a puzzle level, or in free text where `scorer` or
    `fields` is set.
    """

    added_later: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys(("held_out", "fields", "scorer", "threshold", "split_by", "stop", "system")),
        "examples": 0,
    }

    level: str = "easy"
    messages: Annotated[str, Field(description="template, or the name of a receiver that writes the messages")] = (
        "template"
    )
    file: Annotated[str | None, Field(description="JSONL file of episodes, instead of drawn ones")] = None
    held_out: Annotated[
        HeldOut | None, Field(description="facts, pairs or lengths that only messages of confirm contain")
    ] = None
    fields: Annotated[
        dict[str, str] | None,
        Field(description="text file: the columns that hold id, message, prompt, target, choices, group and near"),
    ] = None
    scorer: Annotated[
        str | dict[str, Any] | None,
        Field(
            description="free text: exact, contains, regex, f1, choice or rouge_l; or an object with its name and "
            "options, such as {name: exact, normalize: false}"
        ),
    ] = None
    threshold: Annotated[
        float | None, Field(gt=0, le=1, description="free text: least score of a success; left out: the scorer's")
    ] = None
    split_by: Annotated[
        Literal["group"] | None,
        Field(description="text file: what decides an episode's split; groups with alike messages count as one"),
    ] = None
    stop: Annotated[
        list[str] | None,
        Field(description="free text: texts that end an answer; left out: a line break, except in a chat"),
    ] = None
    system: Annotated[str | None, Field(min_length=1, description="free text: the system turn of a chat")] = None
    examples: Annotated[
        int, Field(ge=0, le=64, description="free text: solved episodes of train before every prompt")
    ] = 0

    @field_validator("level")
    @classmethod
    def _exists(cls, name: str) -> str:
        found = sentences_level(name)
        if found is None and name.partition("-")[0] == DEFAULT_SENTENCES.partition("-")[0]:
            raise ValueError(
                f"level {name!r:.60} does not exist; write sentences-NxM with N from 2 to {MAX_SENTENCES} and M "
                f"from 1 to {len(RELATIONS)}, such as {DEFAULT_SENTENCES}"
            )
        return found.name if found is not None else puzzle_level(name).name

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, texts: list[str] | None) -> list[str] | None:
        if texts is not None and not all(texts):
            raise ValueError("holds an empty text; remove it")
        return texts

    @model_validator(mode="after")
    def _fits(self) -> TaskConfig:
        if self.is_text:
            try:
                self.answer_scorer()
            except UserError as error:
                raise ValueError(str(error)) from None
            if self.messages != "template":
                raise ValueError("messages: a sender writes the messages of puzzles only; remove it")
            if self.split_by is not None and self.file is None:
                raise ValueError("split_by: drawn episodes are split by seed and content; remove it")
        else:
            for key in ("fields", "threshold", "split_by", "stop", "system", "examples"):
                if getattr(self, key):
                    raise ValueError(f"{key}: only for tasks in free text; set scorer as well, or remove it")
            if self.scorer is not None:
                raise ValueError(f"scorer: level {self.level} checks its answers itself; remove it, or set file")
        return self

    @model_validator(mode="after")
    def _can_be_drawn(self) -> TaskConfig:
        if self.held_out is None:
            return self
        if self.file is not None:
            raise ValueError("held_out: needs drawn episodes, not those of a file; remove held_out or file")
        for part in PARTS:
            if self.sentences is not None:
                self.sentences.draw(0, part, self.held_out)
            else:
                check_held_out(puzzle_level(self.level), self.held_out, part)
        return self

    @property
    def sentences(self) -> SentencesLevel | None:
        """The level, if it is one of sentences and its episodes are drawn."""
        return None if self.file is not None else sentences_level(self.level)

    @property
    def is_text_file(self) -> bool:
        """True for a file of episodes in free text."""
        return is_text_file({"file": self.file, "fields": self.fields, "scorer": self.scorer})

    @property
    def is_text(self) -> bool:
        """True for a task in free text."""
        return self.is_text_file or self.sentences is not None

    @property
    def family(self) -> str:
        """Name under which looks at confirm are recorded: the level, or `text` for any file of free text."""
        return "text" if self.is_text_file else self.level

    @property
    def name(self) -> str:
        """Name of the task, for rows: of free text with a digest of its file and of how it is scored."""
        if not self.is_text:
            return task_name(puzzle_level(self.level), self.held_out)
        settings = self.model_dump(include={"scorer", "threshold", "stop", "system", "examples", "fields"})
        settings = {key: value for key, value in settings.items() if value}
        if self.sentences is not None:
            base = task_name(self.sentences, self.held_out)
        else:
            base = Path(str(self.file)).stem
            settings["file"] = self.file_digest
        if not settings:
            return base
        return f"{base}+{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"

    def answer_scorer(self) -> Scorer:
        """Return the scorer of free-text answers.

        Raises:
            UserError: it does not exist, or has no such option.
        """
        # Small models answer in a sentence as often as in a word.
        default = "contains" if self.sentences is not None else "exact"
        options: dict[str, Any] = (
            dict(self.scorer) if isinstance(self.scorer, dict) else {"name": self.scorer or default}
        )
        if self.threshold is not None:
            if options.get("threshold", self.threshold) != self.threshold:
                raise UserError(
                    f"threshold: scorer.threshold is {options['threshold']!r:.60}; keep one of the two"
                )
            options["threshold"] = self.threshold
        return scorer(options.pop("name", default), **options)

    def text_setting(self, opening: str = "") -> TextSetting:
        """Return how episodes in free text are prompted and scored; `opening` is text before every prompt."""
        found = self.answer_scorer()
        stop = None if self.stop is None else tuple(self.stop)
        return TextSetting(
            self.name, self.family, found, isinstance(found, Choice), stop, self.system or "", opening
        )

    def file_episodes(self) -> list[TextEpisode]:
        """Return the episodes of a text file, which is read once.

        Raises:
            UserError: the file has a fault, or the scorer cannot score one of its episodes.
        """
        found = read_text_episodes(Path(str(self.file)), self.fields)
        judge = self.answer_scorer()
        for episode in found:
            judge.check_episode(episode, f"{self.file}: line {episode.line}")
        return found

    @property
    def file_digest(self) -> str | None:
        """Digest of the content of `file`; None for drawn episodes.

        Raises:
            UserError: the file is gone.
        """
        return None if self.file is None else file_digest(Path(self.file))

    def shortest_message(self, part: str) -> int | None:
        """Return the smallest number of facts in a drawn message of a part, in the template's wording.

        None for messages in a sender's words, for those of a file, and where a level does not state the number.
        """
        if self.file is not None or self.messages != "template":
            return None
        level = self.sentences or puzzle_level(self.level)
        drawn = self.held_out.drawn_lengths(level, part) if self.held_out else ()
        return min(drawn, default=level.sent_facts)

    @property
    def has_near_messages(self) -> bool:
        """False if the condition `near` can never run: no message of the task can be changed in one fact."""
        if self.is_text_file:
            return all(episode.near for episode in self.file_episodes())
        if self.sentences is not None:
            return True
        return self.messages == "template" and defines_change_fact(puzzle_level(self.level))
