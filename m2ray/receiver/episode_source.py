"""Episodes of a task: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from m2ray.config.task import EVALUATION_SPLITS, Splits, TaskConfig, parse_seeds
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.sender import Sender
from m2ray.receiver.text_source import TextSource
from m2ray.tasks.episode_files import read_episodes
from m2ray.tasks.episodes import AnyEpisode, Episode, draw_episode, part_of
from m2ray.tasks.level import Fact
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.files import line_of
from m2ray.util.text import pluralize


class Source(Protocol):
    """The episodes of a task. A seed and a split always give the same episode."""

    def seeds(self, splits: Splits, name: str) -> Sequence[int]:
        """Return the seeds of a split; in a file, line numbers counted from 0."""

    def unused_seeds(self, splits: Splits, after: int) -> Iterable[int]:
        """Return seeds that no split names, in order: from `after` on, or all such lines of a file."""

    @property
    def name(self) -> str:
        """The level or file, for messages to the user."""

    def get(self, seeds: Sequence[int], part: str) -> Sequence[AnyEpisode]:
        """Return episodes by seed. Drawn messages belong to `part`."""

    def without_sender(self, seeds: Sequence[int], part: str) -> Sequence[AnyEpisode]:
        """Return the episodes of `get` without loading a sender LM."""

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse splits that share a message, or are empty."""

    def check_unseen(self, seeds: Sequence[int], splits: Splits) -> None:
        """Refuse lines of a file whose messages occur in training."""

    def check_not_trained_on(self, episodes: Sequence[Any], splits: Splits) -> None:
        """Refuse episodes with messages that a codec of this task was trained on."""

    def check_receiver(self, receiver: Receiver, splits: Splits) -> None:
        """Refuse evaluation splits that the receiver itself was trained on."""

    def check_receiver_lines(self, receiver: Receiver, ranges: Mapping[str, Sequence[int]]) -> None:
        """Refuse lines of a file with messages that the receiver itself may have been trained on."""


def open_source(config: TaskConfig) -> Source:
    """Return the source of a task's episodes."""
    return TextSource(config) if config.is_text else EpisodeSource(config)


class EpisodeSource:
    """The episodes of a puzzle level."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.level = level(config.level)

    def seeds(self, splits: Splits, name: str) -> range:
        """Implement `Source.seeds`."""
        return splits.seeds(name)

    @cached_property
    def _file(self) -> list[Episode]:
        assert self.config.file is not None
        return read_episodes(Path(self.config.file), self.level)

    @cached_property
    def _sender(self) -> Sender:
        return Sender(load_receiver(self.config.messages))

    def get(self, seeds: Sequence[int], part: str) -> list[Episode]:
        """Return episodes by seed; in a file, by line number counted from 0.

        Args:
            seeds: Seeds or line numbers.
            part: The split that drawn messages belong to: train, search, select or confirm.

        Raises:
            UserError: a seed is beyond the end of the file, or the sender LM cannot be used.
        """
        episodes = self.without_sender(seeds, part)
        if self.config.messages == "template":
            return episodes
        return with_messages(episodes, self._sender.write(episodes))

    def without_sender(self, seeds: Sequence[int], part: str) -> list[Episode]:
        """Return the episodes of `get` in the template's wording: their content, without loading a sender LM."""
        if self.config.file is None:
            return [draw_episode(self.level, seed, part, self.config.held_out) for seed in seeds]
        return self._lines(seeds, f"splits.{part}")

    def _lines(self, seeds: Sequence[int], option: str) -> list[Episode]:
        if seeds and max(seeds) >= len(self._file):
            raise UserError(
                f"{self.config.file}: has lines 0 to {len(self._file) - 1}, but {option} needs line {max(seeds)}; "
                f"shorten {option}"
            )
        return [self._file[seed] for seed in seeds]

    def unused_seeds(self, splits: Splits, after: int) -> Iterable[int]:
        """Return seeds that no split names, in order: from `after` on, or all such lines of a file."""
        ranges = [splits.seeds(name) for name in type(splits).model_fields]
        if self.config.file is None:
            return itertools.count(max(after, *(seeds.stop for seeds in ranges)))
        return [line for line in range(len(self._file)) if not any(line in seeds for seeds in ranges)]

    @property
    def name(self) -> str:
        """The level or file, for messages to the user."""
        return self.config.file or f"level {self.config.name}"

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a file in which two splits share a message.

        Drawn episodes need no check: each message belongs to one split (`m2ray.tasks.episodes.part_of`).

        Raises:
            UserError: two splits share a message.
        """
        self._check_contents({f"splits.{name}": splits.seeds(name) for name in type(splits).model_fields})

    def check_unseen(self, seeds: Sequence[int], splits: Splits) -> None:
        """Refuse lines of a file whose messages occur in training.

        Raises:
            UserError: a message of these lines is a training message.
        """
        self._check_contents({"splits.train": splits.seeds("train"), "--episodes": seeds})

    def check_not_trained_on(self, episodes: Sequence[Episode], splits: Splits) -> None:
        """Refuse episodes with messages that a codec of this task was trained on.

        Drawn training messages all belong to the part `train`, so a message of that part may have been one of
        them. For a file, the messages of its training lines count; a file that is gone cannot be checked.

        Args:
            episodes: The episodes to evaluate.
            splits: The splits that the codec was trained with.

        Raises:
            UserError: the codec may have been trained on one of the messages.
        """
        if not episodes or episodes[0].level.name != self.level.name:
            return
        if self.config.file is None:
            trained = _of_training_part(episodes)
        elif Path(self.config.file).is_file():
            contents = {episode.content for episode in self._lines(splits.seeds("train"), "splits.train")}
            trained = [episode for episode in episodes if episode.content in contents]
        else:
            return
        _refuse(trained, "the codec")

    def check_receiver(self, receiver: Receiver, splits: Splits) -> None:
        """Refuse evaluation splits that the receiver itself was trained on.

        `m2ray.train_receiver` draws messages of the part `train` only, and its card names their seeds. Drawn
        evaluation messages belong to other parts, so that only their seeds are compared.

        Raises:
            UserError: a split overlaps the seeds on the receiver's card, or a line of a file has a message that
                the receiver may have been trained on.
        """
        if self.config.file is not None:
            self.check_receiver_lines(
                receiver, {f"splits.{name}": splits.seeds(name) for name in EVALUATION_SPLITS}
            )
            return
        if not _is_trained_on(receiver, self.level.name):
            return
        card = receiver.card["train_seeds"]
        trained = parse_seeds(card)
        for name in EVALUATION_SPLITS:
            seeds = splits.seeds(name)
            if seeds.start < trained.stop and trained.start < seeds.stop:
                raise UserError(f"splits.{name}: overlaps the receiver's own training seeds {card}; move it")

    def check_receiver_lines(self, receiver: Receiver, ranges: Mapping[str, Sequence[int]]) -> None:
        """Refuse lines of a file with messages that the receiver itself may have been trained on.

        These are all messages of the part `train`: which of them a training drew would take minutes to find out,
        and a long training draws nearly all.

        Args:
            receiver: The receiver.
            ranges: The lines to evaluate, by the option that names them.

        Raises:
            UserError: names the first such line.
        """
        if self.config.file is None or not _is_trained_on(receiver, self.level.name):
            return
        for option, seeds in ranges.items():
            trained = _of_training_part(self._lines(seeds, option))
            if trained:
                raise UserError(
                    f"{self.config.file}: line {self._line_of(trained[0])}: {_and_others(trained)} in the part of "
                    f"level {self.level.name} that receiver {receiver.name} was trained on; remove such lines "
                    f"from {option}, or use another receiver"
                )

    def _check_contents(self, ranges: Mapping[str, Sequence[int]]) -> None:
        """Refuse a message that occurs in two of the named ranges of lines."""
        if self.config.file is None:
            return
        first_use: dict[frozenset[Fact], tuple[str, Episode]] = {}
        for option, seeds in ranges.items():
            for episode in self._lines(seeds, option):
                other, first = first_use.setdefault(episode.content, (option, episode))
                if other != option:
                    raise UserError(
                        f"{self.config.file}: line {self._line_of(episode)}: its message is in {option} and, from "
                        f"line {self._line_of(first)}, in {other}; remove one of the two"
                    )

    def _line_of(self, episode: Episode) -> int:
        """Return the line of the file, counted from 1, that an episode is in."""
        return line_of(Path(str(self.config.file)), episode.seed)


def with_messages(episodes: Sequence[Episode], messages: Sequence[str]) -> list[Episode]:
    """Return the episodes with other wordings of A's message."""
    return [replace(episode, message=text) for episode, text in zip(episodes, messages, strict=True)]


def check_not_of_receiver(receiver: Receiver, episodes: Sequence[AnyEpisode]) -> None:
    """Refuse episodes with messages that the receiver itself may have been trained on; never those in free text.

    Raises:
        UserError: there is one.
    """
    puzzles = [episode for episode in episodes if isinstance(episode, Episode)]
    if puzzles and _is_trained_on(receiver, puzzles[0].level.name):
        _refuse(_of_training_part(puzzles), f"receiver {receiver.name}")


def _refuse(trained: Sequence[Episode], what: str) -> None:
    if trained:
        raise UserError(
            f"episodes: seed {trained[0].seed}: {_and_others(trained)} in the part that {what} was trained on; "
            "use episodes of another part, such as those that m2ray.episodes draws"
        )


def _of_training_part(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if part_of(episode.content) == "train"]


def _is_trained_on(receiver: Receiver, level_name: str) -> bool:
    """Return whether `m2ray.train_receiver` made a receiver on a level, by its card."""
    return "train_seeds" in receiver.card and receiver.card.get("level") == level_name


def _and_others(episodes: Sequence[Episode]) -> str:
    """Return the subject of an error about the first of these episodes."""
    others = len(episodes) - 1
    return f"its message and those of {pluralize(others, 'other')} are" if others else "its message is"
