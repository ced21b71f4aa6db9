# NEWDOC
"""Tasks: from seeds to episodes that two agents can only solve together, with their verifier.

Agent A holds one half of what must be known, agent B the other; neither alone pins the answer down. What the
halves say, and what answers them, is the business of a family of levels: `m2ray.constraints`, `m2ray.arithmetic`,
or a plug. What all families share is here.

Splits are disjoint twice over. By seed: every split has its own range. By content: every possible message (the
*set* of A's facts) belongs to exactly one part, by hash, and a seed of a split only yields messages of that part.
So a message judged on confirm was never seen in training, whichever seeds anybody picks.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m2ray.tasks.level import Fact, Level, Values
from m2ray.util.errors import UserError

# Twentieths of all possible messages, by hash of their content.
PARTS: dict[str, range] = {
    "train": range(0, 14),
    "search": range(14, 16),
    "select": range(16, 18),
    "confirm": range(18, 20),
}


_MAX_DRAWS = 100_000


@dataclass(frozen=True)
class Episode:
    """One seed's task: A's half as facts and as the message, B's half, and one solution."""

    level: Level
    seed: int
    sender: tuple[Any, ...]
    receiver: tuple[Any, ...]
    solution: Values
    message: str

    @property
    def context(self) -> str:
        """B's half, as B's prompt holds it."""
        return write_facts(self.receiver)

    @property
    def content(self) -> frozenset[Any]:
        """What the message says, whatever its wording or order: the unit that splits keep apart."""
        return frozenset(fact.fact() for fact in self.sender)


def write_facts(facts: Iterable[Fact]) -> str:
    """The template: `x1 = 2; x1 + x3 = 3`."""
    return "; ".join(str(fact) for fact in facts)


def read_facts(text: str, level: Level) -> tuple[Any, ...]:
    """The inverse of `write_facts`.

    Raises:
        ValueError: a part of the text is no fact of this level.
    """
    return tuple(level.read(part.strip()) for part in text.split(";"))


def part_of(content: Iterable[Fact]) -> str:
    """The one part (train, search, select, confirm) that a message's content belongs to."""
    key = write_facts(sorted({fact.fact() for fact in content})).encode()
    twentieth = zlib.crc32(key) % 20
    return next(name for name, share in PARTS.items() if twentieth in share)


def draw_episode(level: Level, seed: int, part: str = "confirm") -> Episode:
    """The episode of a seed: the same on every machine and Python.

    Only `Random.random` is used, the one method whose sequence Python promises to keep.

    Args:
        level: The task.
        seed: Any integer >= 0.
        part: The part its message must come from; draws are repeated until it does and until each half alone
            leaves at least two solutions.

    Raises:
        UserError: the level has no message in that part (its message space is too small).
    """
    rng = random.Random(seed)

    def below(n: int) -> int:
        return int(rng.random() * n)

    for _ in range(_MAX_DRAWS):
        sender, receiver, solution = level.draw(below)
        if part_of(sender) != part:
            continue
        if level.count_solutions(sender) >= 2 and level.count_solutions(receiver) >= 2:
            return Episode(level, seed, sender, receiver, solution, write_facts(sender))
    raise UserError(f"task: level {level.name} has no message in part {part!r}; use a larger level")


def episodes(level: Level, seeds: Iterable[int], part: str = "confirm") -> list[Episode]:
    """The episodes of a range of seeds, in order.

    Raises:
        UserError: no level, or one without a message in that part.
    """
    if not isinstance(level, Level):
        raise UserError(f"{level!r:.60} is no level; give m2ray.level({level!r:.60})")
    return [draw_episode(level, seed, part) for seed in seeds]


def solutions(level: Level, facts: Sequence[Any]) -> list[Values]:
    """All answers that are right by these facts, in the order of their values."""
    begun: list[Values] = [()]
    for i in range(level.variables):
        begun = [
            (*values, value)
            for values in begun
            for value, chance in enumerate(level.value_probabilities(facts, (*values, 0))[i])
            if chance > 0
        ]
    return begun
