"""Episodes of a level: drawn by seed, written as text, and assigned to a split.

Splits are disjoint in two ways. By seed: every split has its own range. By content: every possible message (the
*set* of A's facts) belongs to exactly one part, by hash, and a seed of a split only yields messages of that part.
So a message judged on confirm was never seen in training, whichever seeds are chosen.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from m2ray.tasks.held_out import DrawnTask, HeldOut
from m2ray.tasks.level import Draw, Fact, Level, Values
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError

# Parts of all possible messages, in twentieths of the hash of their content.
PARTS: dict[str, range] = {
    "train": range(0, 14),
    "search": range(14, 16),
    "select": range(16, 18),
    "confirm": range(18, 20),
}
_MAX_DRAWS = 100_000
# With held-out items, a part is refused where fewer of so many draws suit it: drawing episodes would take long.
_TRIED_DRAWS, _LEAST_SUITED = 20_000, 20


@dataclass(frozen=True)
class Episode:
    """Task of one seed: A's half as facts and as message text, B's half as facts, and one solution."""

    level: Level
    seed: int
    sender: tuple[Any, ...]
    receiver: tuple[Any, ...]
    solution: Values
    message: str
    held_out: HeldOut | None = None

    @property
    def task(self) -> str:
        """Name of the task, for rows."""
        return task_name(self.level, self.held_out)

    @property
    def family(self) -> str:
        """Name under which looks at the messages are recorded."""
        return self.level.name

    @property
    def context(self) -> str:
        """B's half as text, for B's prompt."""
        return write_facts(self.receiver)

    @property
    def content(self) -> frozenset[Any]:
        """The message's facts, whatever their wording or order: the unit that splits keep apart."""
        return frozenset(fact.fact() for fact in self.sender)

    @property
    def cluster(self) -> str:
        """The message's content as text, or the message where it states no facts.

        Intervals and tests count it as one unit: episodes with the same message are not independent.
        """
        return write_facts(sorted(self.content)) if self.content else self.message


AnyEpisode = Episode | TextEpisode


def episode_name(episode: AnyEpisode) -> str:
    """Return what errors call an episode: its id and, in a file, its line; a seed where it has nothing else."""
    if isinstance(episode, Episode):
        return str(episode.seed)
    drawn = episode.id.endswith(f"/{episode.seed}")
    return f"{episode.id!r:.60}" + ("" if drawn else f" (line {episode.seed + 1})")


def task_name(level: DrawnTask, held_out: HeldOut | None) -> str:
    """Return the name of a level, with a digest of what is held out, so that different tasks are never paired."""
    return level.name if held_out is None else f"{level.name}+held_out-{held_out.digest}"


def write_facts(facts: Iterable[Fact]) -> str:
    """Return facts as text: `x1 = 2; x1 + x3 = 3`."""
    return "; ".join(str(fact) for fact in facts)


def read_facts(text: str, level: Level, read: Callable[[str], Any] | None = None) -> tuple[Any, ...]:
    """Return the facts that a text states: the inverse of `write_facts`.

    Args:
        text: The text.
        level: Its level.
        read: `level.read`, kept in a cache where many texts are read.

    Raises:
        ValueError: a part of the text is not a fact of this level.
    """
    read = read or level.read
    return tuple(read(part.strip()) for part in text.split(";"))


def part_of(content: Iterable[Fact]) -> str:
    """Return the one part (train, search, select, confirm) that a message's content belongs to."""
    key = write_facts(sorted({fact.fact() for fact in content})).encode()
    return part_of_hash(zlib.crc32(key))


def part_of_hash(number: int) -> str:
    """Return the part that a hash chooses, by its remainder modulo 20."""
    return next(name for name, share in PARTS.items() if number % 20 in share)


def draw_episode(level: Level, seed: int, part: str = "confirm", held_out: HeldOut | None = None) -> Episode:
    """Draw the episode of a seed, the same on every machine and Python.

    It uses only `Random.random`, the one method with a sequence that Python promises to keep.

    Args:
        level: The task.
        seed: Any integer >= 0.
        part: The part its message must belong to. Draws are repeated until it does and each half alone leaves
            at least two solutions.
        held_out: What only messages of confirm contain; then all messages of confirm contain some of it.

    Raises:
        UserError: the level has no message in that part (its message space is too small), or next to none with
            these held-out items.
    """
    if held_out is not None:
        check_held_out(level, held_out, part)
    rng = random.Random(seed)
    for _ in range(_MAX_DRAWS):
        drawn = _suited(level, part, held_out, rng)
        if drawn is not None:
            return Episode(level, seed, *drawn, write_facts(drawn.sender), held_out)
    raise UserError(f"task: level {level.name} has no message in part {part!r}; use a larger level")


def _suited(level: Level, part: str, held_out: HeldOut | None, rng: random.Random) -> Draw | None:
    """Draw an episode at random; return None if it is not in the part, or one half alone gives the answer."""

    def below(n: int) -> int:
        return int(rng.random() * n)

    drawn = level.draw(below)
    if held_out is not None and (lengths := held_out.drawn_lengths(level, part)):
        drawn = level.resplit(drawn, lengths[below(len(lengths))], below)
    if part_of(drawn.sender) != part:
        return None
    if held_out is not None and held_out.holds(drawn.sender) != (part == "confirm"):
        return None
    ambiguous = level.count_solutions(drawn.sender) >= 2 and level.count_solutions(drawn.receiver) >= 2
    return drawn if ambiguous else None


@lru_cache
def check_held_out(level: Level, held_out: HeldOut, part: str) -> None:
    """Refuse held-out items with which a part has no messages, or so few that drawing them would take too long.

    Raises:
        UserError: names what to change.
    """
    rng, suited = random.Random(0), 0
    for _ in range(_TRIED_DRAWS):
        suited += _suited(level, part, held_out, rng) is not None
        if suited == _LEAST_SUITED:
            return
    fix = "raise" if part == "confirm" else "lower"
    raise UserError(
        f"held_out: only {suited} of {_TRIED_DRAWS:,} drawn messages of level {level.name} suit part {part!r}; "
        f"{fix} the shares, or use other lengths or another level"
    )


def episodes(
    level: Level, seeds: Iterable[int], part: str = "confirm", held_out: HeldOut | None = None
) -> list[Episode]:
    """Draw the episodes of a range of seeds, in order; the arguments are those of `draw_episode`.

    Raises:
        UserError: `level` is not a level, or has no message in that part.
    """
    if not isinstance(level, Level):
        raise UserError(f"{level!r:.60} is not a level; give m2ray.level({level!r:.60})")
    return [draw_episode(level, seed, part, held_out) for seed in seeds]


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
