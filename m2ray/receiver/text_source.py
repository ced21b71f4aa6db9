"""Episodes of a task in free text: drawn sentences, or the lines of a file.

It has the methods of `m2ray.receiver.episode_source.EpisodeSource`. Splits need few checks: each message
belongs to one part, by the hash of its facts or of its group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from m2ray.config.task import ALL, Splits, TaskConfig, parse_seeds
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.text_episodes import TextEpisode, TextSetting
from m2ray.tasks.text_splits import parts_of_file
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

EXAMPLE_SEED = 50_000  # of the first drawn episode that is shown, solved, before every prompt


class TextSource:
    """The episodes of a task in free text. A seed (a line number, in a file) always gives the same episode."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @cached_property
    def _file(self) -> list[TextEpisode]:
        return self.config.file_episodes()

    @cached_property
    def _parts(self) -> Sequence[str]:
        """The part of each line."""
        return parts_of_file(str(self.config.file_digest), self.config.fields or {}, self._file)

    @cached_property
    def _setting(self) -> TextSetting:
        """The task's settings, with the solved examples before every prompt."""
        shown = [_solved(episode) for episode in self._examples()]
        return self.config.text_setting("".join(f"{text}\n\n" for text in shown))

    def _examples(self) -> list[TextEpisode]:
        """Return the training episodes that are shown, solved; they are not trained on."""
        count, level = self.config.examples, self.config.sentences
        if count == 0:
            return []
        if level is not None:
            return [level.draw(EXAMPLE_SEED + i, "train", self.config.held_out).text for i in range(count)]
        lines = self._lines_of("train")[:count]
        if len(lines) < count:
            raise UserError(
                f"{self.config.file}: has {pluralize(len(lines), 'episode')} of part train, but task.examples is "
                f"{count}; lower it"
            )
        return [self._file[line] for line in lines]

    def shown_lines(self) -> set[int]:
        """Return the lines of a file that are shown, solved, before every prompt."""
        return set() if self.config.file is None else {episode.seed for episode in self._examples()}

    def _lines_of(self, part: str) -> list[int]:
        return [line for line, name in enumerate(self._parts) if name == part]

    def seeds(self, splits: Splits, name: str) -> Sequence[int]:
        """Return the seeds of a split: of drawn episodes, or line numbers of the episodes of its part.

        Raises:
            UserError: the file has no such episodes.
        """
        text = getattr(splits, name)
        if self.config.file is None:
            return parse_seeds(text)
        lines = self._lines_of(name)
        if name == "train":
            lines = lines[self.config.examples :]
        wanted = range(len(lines)) if text == ALL else parse_seeds(text)
        if not lines or wanted.stop > len(lines):
            raise UserError(
                f"splits.{name}: {text}: {self.config.file} has {pluralize(len(lines), 'episode')} of this part "
                f"({pluralize(len(set(self._groups)), 'group')} in all; those with alike messages count as one); "
                f"use a larger file, or {'fewer' if lines else 'more groups'}"
            )
        return lines[wanted.start : wanted.stop]

    @cached_property
    def _groups(self) -> list[str]:
        return [episode.group for episode in self._file]

    def unused_seeds(self, splits: Splits, after: int) -> Iterable[int]:
        """Return seeds that no split names: drawn ones from `after` on, or the other lines of the confirm part."""
        if self.config.file is None:
            return itertools.count(max(after, *(self.seeds(splits, name)[-1] + 1 for name in Splits.model_fields)))
        named = set(self.seeds(splits, "confirm"))
        return [line for line in self._lines_of("confirm") if line not in named]

    @property
    def name(self) -> str:
        """The level or file, for messages to the user."""
        return self.config.file or f"level {self.config.name}"

    def get(self, seeds: Sequence[int], part: str) -> list[TextEpisode]:
        """Return episodes by seed; in a file, by line number counted from 0, whatever the part.

        Raises:
            UserError: a seed is beyond the end of the file.
        """
        level = self.config.sentences
        if level is not None:
            drawn = [level.draw(seed, part, self.config.held_out).text for seed in seeds]
            return [replace(episode, setting=self._setting) for episode in drawn]
        if seeds and max(seeds) >= len(self._file):
            raise UserError(
                f"{self.config.file}: has lines 0 to {len(self._file) - 1}, but line {max(seeds)} is needed; use "
                "lower numbers"
            )
        return [replace(self._file[seed], setting=self._setting) for seed in seeds]

    def without_sender(self, seeds: Sequence[int], part: str) -> list[TextEpisode]:
        """Return `get`: no sender writes these messages."""
        return self.get(seeds, part)

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a split without episodes. Two splits share no message: the parts are disjoint.

        Raises:
            UserError: a split of a file is empty.
        """
        for name in Splits.model_fields:
            self.seeds(splits, name)

    def check_unseen(self, seeds: Sequence[int], splits: Splits) -> None:
        """Refuse lines of a file whose messages are of the training part.

        Raises:
            UserError: names the first.
        """
        if self.config.file is None:
            return
        self.get(seeds, "confirm")
        for seed in seeds:
            if self._parts[seed] == "train":
                raise UserError(
                    f"{self.config.file}: line {self._file[seed].line}: belongs to part train, which --episodes "
                    "must not hold; name other lines, or --split confirm"
                )

    def check_not_trained_on(self, episodes: Sequence[TextEpisode], splits: Splits) -> None:
        """Refuse episodes with messages that a codec of this task was trained on; a file that is gone tells none.

        Raises:
            UserError: the codec may have been trained on one of the messages.
        """
        if self.config.file is None:
            trained = {e.content for e in episodes if "/train/" in e.id}
        elif not Path(self.config.file).is_file():
            return
        else:
            known = {self._file[line].content for line in self._lines_of("train")}
            trained = known & {episode.content for episode in episodes}
        found = [episode for episode in episodes if episode.content in trained]
        if found:
            raise UserError(
                f"episodes: {found[0].id}: {pluralize(len(found), 'message')} of the part that the codec was "
                "trained on; use episodes of another part"
            )

    def check_receiver(self, receiver: Receiver, splits: Splits) -> None:
        """Accept any receiver: none was trained on free text here."""

    def check_receiver_lines(self, receiver: Receiver, ranges: Mapping[str, Sequence[int]]) -> None:
        """Accept any receiver: see `check_receiver`."""


def _solved(episode: TextEpisode) -> str:
    """Return an episode's prompt with its message and the first right answer."""
    prompt = episode.prompt_with(episode.message)
    return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{episode.targets[0]}"
