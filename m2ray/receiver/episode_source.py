"""Where episodes come from: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from m2ray.config.trial import Splits, TaskConfig, TrialConfig
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.sender import Sender
from m2ray.tasks.episode_files import read_episodes
from m2ray.tasks.episodes import Episode, draw_episode
from m2ray.tasks.level import Fact
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError


class EpisodeSource:
    """The episodes of a task. A seed and a part name one episode, for ever."""

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
        """Episodes by seed; of a file, by line number counted from 0.

        Raises:
            UserError: a seed beyond the end of the file, or no sender LM where one is named.
        """
        if self.config.file is None:
            played = [draw_episode(self.level, seed, part) for seed in seeds]
        else:
            played = self._lines(seeds, f"splits.{part}")
        if self.config.messages == "template":
            return played
        return with_messages(played, self._sender.write(played))

    def _lines(self, seeds: Sequence[int], name: str) -> list[Episode]:
        if seeds and max(seeds) >= len(self._file):
            raise UserError(
                f"{self.config.file}: has lines 0 to {len(self._file) - 1}, {name} asks for line {max(seeds)}; "
                f"shorten {name}"
            )
        return [self._file[seed] for seed in seeds]

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a file in which two splits share a message.

        Drawn episodes need no check: their parts are disjoint by construction (`m2ray.task.part_of`).
        """
        self._check_apart({f"splits.{name}": splits.seeds(name) for name in type(splits).model_fields})

    def check_unseen(self, seeds: range, splits: Splits) -> None:
        """Refuse seeds that name lines of a file whose messages occur in training."""
        self._check_apart({"splits.train": splits.seeds("train"), "--seeds": seeds})

    def _check_apart(self, ranges: Mapping[str, range]) -> None:
        if self.config.file is None:
            return
        homes: dict[frozenset[Fact], tuple[str, int]] = {}
        for name, seeds in ranges.items():
            for episode in self._lines(seeds, name):
                home, line = homes.setdefault(episode.content, (name, episode.seed))
                if home != name:
                    raise UserError(
                        f"{self.config.file}: line {episode.seed + 1}: its message is in {name} and, from line "
                        f"{line + 1}, in {home}; remove one of the two"
                    )


def with_messages(played: Sequence[Episode], messages: Sequence[str]) -> list[Episode]:
    """The same episodes with A's message in other words."""
    return [replace(episode, message=text) for episode, text in zip(played, messages, strict=True)]


def check_receiver_seeds(config: TrialConfig, receiver: Receiver) -> None:
    """Refuse evaluation seeds that the receiver itself was trained on.

    Raises:
        UserError: a split overlaps the seeds on the receiver's card.
    """
    card = receiver.card.get("train_seeds")
    if card is None or receiver.card.get("level") != config.task.level:
        return
    start, stop = (int(part) for part in card.split(":"))
    for name in ("search", "select", "confirm"):
        seeds = config.splits.seeds(name)
        if seeds.start < stop and start < seeds.stop:
            raise UserError(f"splits.{name}: overlaps the receiver's own training seeds {card}; move it")
