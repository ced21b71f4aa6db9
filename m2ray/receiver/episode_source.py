"""Episodes of a task: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from m2ray.config.trial import EVALUATION_SPLITS, Splits, TaskConfig, TrialConfig
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.sender import Sender
from m2ray.tasks.episode_files import read_episodes
from m2ray.tasks.episodes import Episode, draw_episode
from m2ray.tasks.level import Fact
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError


class EpisodeSource:
    """The episodes of a task. A seed and a split always give the same episode."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.level = level(config.level)

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
        if self.config.file is None:
            episodes = [draw_episode(self.level, seed, part, self.config.held_out) for seed in seeds]
        else:
            episodes = self._lines(seeds, f"splits.{part}")
        if self.config.messages == "template":
            return episodes
        return with_messages(episodes, self._sender.write(episodes))

    def _lines(self, seeds: Sequence[int], option: str) -> list[Episode]:
        if seeds and max(seeds) >= len(self._file):
            raise UserError(
                f"{self.config.file}: has lines 0 to {len(self._file) - 1}, but {option} needs line {max(seeds)}; "
                f"shorten {option}"
            )
        return [self._file[seed] for seed in seeds]

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a file in which two splits share a message.

        Drawn episodes need no check: each message belongs to one split (`m2ray.tasks.episodes.part_of`).

        Raises:
            UserError: two splits share a message.
        """
        self._check_contents({f"splits.{name}": splits.seeds(name) for name in type(splits).model_fields})

    def check_unseen(self, seeds: range, splits: Splits) -> None:
        """Refuse lines of a file whose messages occur in training.

        Raises:
            UserError: a message of these lines is a training message.
        """
        self._check_contents({"splits.train": splits.seeds("train"), "--seeds": seeds})

    def _check_contents(self, ranges: Mapping[str, range]) -> None:
        """Refuse a message that occurs in two of the named ranges of lines."""
        if self.config.file is None:
            return
        first_use: dict[frozenset[Fact], tuple[str, int]] = {}
        for option, seeds in ranges.items():
            for episode in self._lines(seeds, option):
                other, line = first_use.setdefault(episode.content, (option, episode.seed))
                if other != option:
                    raise UserError(
                        f"{self.config.file}: line {episode.seed + 1}: its message is in {option} and, from line "
                        f"{line + 1}, in {other}; remove one of the two"
                    )


def with_messages(episodes: Sequence[Episode], messages: Sequence[str]) -> list[Episode]:
    """Return the episodes with other wordings of A's message."""
    return [replace(episode, message=text) for episode, text in zip(episodes, messages, strict=True)]


def check_receiver_seeds(config: TrialConfig, receiver: Receiver) -> None:
    """Refuse evaluation seeds that the receiver itself was trained on.

    Raises:
        UserError: a split overlaps the seeds on the receiver's card.
    """
    card = receiver.card.get("train_seeds")
    if card is None or receiver.card.get("level") != config.task.level:
        return
    start, stop = (int(part) for part in card.split(":"))
    for name in EVALUATION_SPLITS:
        seeds = config.splits.seeds(name)
        if seeds.start < stop and start < seeds.stop:
            raise UserError(f"splits.{name}: overlaps the receiver's own training seeds {card}; move it")
