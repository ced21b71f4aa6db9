"""Tasks: from seeds to episodes that two agents can only solve together, with their verifier.

Agent A holds one half of what must be known, agent B the other; neither alone pins the answer down. What the
halves say, and what answers them, is the business of a family of levels: `m2ray.constraints`, `m2ray.arithmetic`,
or a plug. What all families share is here.

Splits are disjoint twice over. By seed: every split has its own range. By content: every possible message (the
*set* of A's facts) belongs to exactly one part, by hash, and a seed of a split only yields messages of that part.
So a message judged on confirm was never seen in training, whichever seeds anybody picks.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

from m2ray import plugs
from m2ray.command import UserError

T = TypeVar("T")
AnswerForm = Literal["json", "values"]
Values = tuple[int, ...]

# Twentieths of all possible messages, by hash of their content.
PARTS: dict[str, range] = {
    "train": range(0, 14),
    "search": range(14, 16),
    "select": range(16, 18),
    "confirm": range(18, 20),
}
_MAX_DRAWS = 100_000


# --- families ------------------------------------------------------------------------------------------------


class Fact(Protocol):
    """One thing that a half says: a hashable and ordered value, such as a named tuple, that `str` writes."""

    def fact(self) -> Fact:
        """The one wording of what it says; itself, where there is only one."""

    def __lt__(self, other: Any, /) -> bool: ...


class Draw(NamedTuple):
    """Both halves of an episode and one answer that is right by both."""

    sender: tuple[Any, ...]  # of `Fact`
    receiver: tuple[Any, ...]
    solution: Values


@dataclass(frozen=True)
class Level(ABC):
    """A task of some size. A family of them is a subclass, its facts a type of its own (`Any` below).

    An answer is a whole number from 0 to `domain` - 1 for each of `variables` names.
    """

    name: str
    variables: int
    domain: int

    @property
    def names(self) -> tuple[str, ...]:
        """The variables as the answer writes them."""
        return tuple(f"x{i + 1}" for i in range(self.variables))

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """All words, between spaces, that halves and answers are written with, `;` aside."""

    @property
    @abstractmethod
    def possible_facts(self) -> int:
        """How many different facts A can state."""

    @abstractmethod
    def draw(self, below: Callable[[int], int]) -> Draw:
        """One draw. All chance is `below(n)`, a whole number from 0 to n - 1. Draws are repeated until A's half
        belongs to the part asked for and each half alone leaves at least two solutions.
        """

    @abstractmethod
    def read(self, part: str) -> Any:
        """The inverse of a fact's `str`.

        Raises:
            ValueError: the text is no fact of this level.
        """

    @abstractmethod
    def checks(self, facts: Sequence[Any], values: Sequence[int]) -> list[bool]:
        """What an answer is judged by, given both halves: right if all hold, in part by the share that does."""

    @abstractmethod
    def count_solutions(self, facts: Sequence[Any]) -> int:
        """How many answers are possible by these facts; 0 if they contradict each other."""

    @abstractmethod
    def value_probabilities(self, facts: Sequence[Any], answer: Sequence[int]) -> list[list[float]]:
        """What a perfect reasoner would write, value by value; of an answer that is only begun, up to its end.

        Returns:
            [variables][domain]: P(value i = v | the values before it as in `answer`), uniform over the
            solutions left. As a training target it is the exact expectation of a sampled solution's one-hot.

        Raises:
            ValueError: no solution begins like `answer`, its last value aside.
        """

    @abstractmethod
    def left(self, facts: Sequence[Any]) -> list[int]:
        """What A's facts leave open: for each field that probes read from a message a set of values, as bits."""


def shuffled(items: Iterable[T], below: Callable[[int], int]) -> list[T]:
    """The items in an order of chance (Fisher-Yates), for `Level.draw`."""
    order = list(items)
    for i in range(len(order) - 1, 0, -1):
        j = below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def size_of(name: str, family: str, least: int) -> tuple[int, int] | None:
    """V and D of a level `family-VxD`, None of another name; V is even and from 2 to 26, D from `least` to 100."""
    match = re.fullmatch(rf"{family}-(\d{{1,3}})x(\d{{1,3}})", name)
    if match is None:
        return None
    variables, domain = int(match[1]), int(match[2])
    return (variables, domain) if variables in range(2, 27, 2) and least <= domain <= 100 else None


def _of(module: str) -> Callable[[str], Level | None]:
    """The levels of a module, which needs this one: it is imported when it is asked."""
    return lambda name: cast(Level | None, import_module(module).named(name))


# By what a level's name has before its first `-`: what makes the level of a name, None where it has none such.
FAMILIES: dict[str, Callable[[str], Level | None]] = {
    **dict.fromkeys(("easy", "medium", "hard", "lookup"), _of("m2ray.constraints")),
    "arithmetic": _of("m2ray.arithmetic"),
}
EXAMPLES = (*FAMILIES, "lookup-6x10", "arithmetic-6x10")


@lru_cache
def level(name: str) -> Level:
    """A level by name: easy, medium, hard, lookup, `lookup-VxD` or `arithmetic-VxD` (V variables of D values), or
    one of a plug's family.

    Raises:
        UserError: no such level, or out of bounds (2 to 26 variables, even; 2, of arithmetic 3, to 100 values).
    """
    family, added, found = name.partition("-")[0], plugs.installed(plugs.TASKS), None
    if family in FAMILIES or family in added:
        make = plugs.find(plugs.TASKS, FAMILIES, family)
        with plugs.blamed(plugs.TASKS, family):
            found = make(name)
        if not isinstance(found, Level | None):
            raise plugs.fault(plugs.TASKS, family, f"made {found!r:.60} of {name!r:.60}, which is no Level")
    if found is None:
        known = ", ".join([*EXAMPLES, *added])
        raise UserError(f"task: level {name!r:.60} does not exist; use one of {known}")
    return found


# --- episodes ------------------------------------------------------------------------------------------------


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


def draw(level: Level, seed: int, part: str = "confirm") -> Episode:
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
    return [draw(level, seed, part) for seed in seeds]


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


# --- answers -------------------------------------------------------------------------------------------------


def write_answer(level: Level, values: Sequence[int], form: AnswerForm) -> str:
    """An answer as B should write it: `{"x1": 0, "x2": 2}` or `0 2`."""
    if form == "json":
        return json.dumps(dict(zip(level.names, values, strict=True)))
    return " ".join(str(value) for value in values)


def read_answer(level: Level, text: str, form: AnswerForm) -> Values | None:
    """The values in B's text, or None where there are none.

    In the json form the first object in the text counts and must name every variable, and no other, with whole
    numbers; in the values form the text must be one whole number per variable and nothing else. A value outside
    the domain parses: it is a wrong answer, not an unreadable one.
    """
    if form == "values":
        words = text.split()
        if len(words) != level.variables or not all(re.fullmatch(r"-?[0-9]{1,9}", word) for word in words):
            return None
        return tuple(int(word) for word in words)
    match = re.search(r"\{[^{}]*\}", text)
    if match is None:
        return None
    try:
        data = json.loads(match[0])
    except (ValueError, RecursionError):
        # Besides faulty JSON: a number of thousands of digits.
        return None
    if set(data) != set(level.names) or not all(type(value) is int for value in data.values()):
        return None
    return tuple(data[name] for name in level.names)


class Outcome(NamedTuple):
    """What the verifier says: success is all checks of the level; partial is the share that holds."""

    success: bool
    parsed: bool
    partial: float


def verify(episode: Episode, text: str, form: AnswerForm) -> Outcome:
    """Judge B's text. An answer that does not parse is a failure with no partial credit."""
    values = read_answer(episode.level, text, form)
    if values is None:
        return Outcome(False, False, 0.0)
    held = episode.level.checks(episode.sender + episode.receiver, values)
    in_domain = all(0 <= value < episode.level.domain for value in values)
    return Outcome(in_domain and all(held), True, sum(held) / len(held))
