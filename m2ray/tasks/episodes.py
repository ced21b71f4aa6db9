"""Episodes of a level: drawn by seed, written as text, and assigned to a split.

Splits are disjoint in two ways. By seed: every split has its own range. By content: every possible message (the
*set* of A's facts) belongs to exactly one part, by hash, and a seed of a split only yields messages of that part.
So a message judged on confirm was never seen in training, whichever seeds are chosen.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m2ray.tasks.level import Fact, Level, Values
from m2ray.util.errors import UserError

# Parts of all possible messages, in twentieths of the hash of their content.
PARTS: dict[str, range] = {
    "train": range(0, 14),
    "search": range(14, 16),
    "select": range(16, 18),
    "confirm": range(18, 20),
}
_MAX_DRAWS = 100_000


@dataclass(frozen=True)
class Episode:
    """Task of one seed: A's half as facts and as message text, B's half as facts, and one solution."""

    level: Level
    seed: int
    sender: tuple[Any, ...]
    receiver: tuple[Any, ...]
    solution: Values
    message: str

    @property
    def context(self) -> str:
        """B's half as text, for B's prompt."""
        return write_facts(self.receiver)

    @property
    def content(self) -> frozenset[Any]:
        """The message's facts, whatever their wording or order: the unit that splits keep apart."""
        return frozenset(fact.fact() for fact in self.sender)


def write_facts(facts: Iterable[Fact]) -> str:
    """Return facts as text: `x1 = 2; x1 + x3 = 3`."""
    return "; ".join(str(fact) for fact in facts)


def read_facts(text: str, level: Level) -> tuple[Any, ...]:
    """Return the facts that a text states: the inverse of `write_facts`.

    Raises:
        ValueError: a part of the text is not a fact of this level.
    """
    return tuple(level.read(part.strip()) for part in text.split(";"))


def part_of(content: Iterable[Fact]) -> str:
    """Return the one part (train, search, select, confirm) that a message's content belongs to."""
    key = write_facts(sorted({fact.fact() for fact in content})).encode()
    twentieth = zlib.crc32(key) % 20
    return next(name for name, share in PARTS.items() if twentieth in share)


def draw_episode(level: Level, seed: int, part: str = "confirm") -> Episode:
    """Draw the episode of a seed, the same on every machine and Python.

    It uses only `Random.random`, the one method with a sequence that Python promises to keep.

    Args:
        level: The task.
        seed: Any integer >= 0.
        part: The part its message must belong to. Draws are repeated until it does and each half alone leaves
            at least two solutions.

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
    """Draw the episodes of a range of seeds, in order.

    Raises:
        UserError: `level` is not a level, or has no message in that part.
    """
    if not isinstance(level, Level):
        raise UserError(f"{level!r:.60} is not a level; give m2ray.level({level!r:.60})")
    return [draw_episode(level, seed, part) for seed in seeds]


def solutions(level: Level, facts: Sequence[Any]) -> list[Values]:
    """Return all answers that satisfy these facts, in the order of their values."""
    prefixes: list[Values] = [()]
    for i in range(level.variables):
        prefixes = [
            (*values, value)
            for values in prefixes
            for value, probability in enumerate(level.value_probabilities(facts, (*values, 0))[i])
            if probability > 0
        ]
    return prefixes
