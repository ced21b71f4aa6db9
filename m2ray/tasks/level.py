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

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


Values = tuple[int, ...]


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


def parse_size(name: str, family: str, least: int) -> tuple[int, int] | None:
    """V and D of a level `family-VxD`, None of another name; V is even and from 2 to 26, D from `least` to 100."""
    match = re.fullmatch(rf"{family}-(\d{{1,3}})x(\d{{1,3}})", name)
    if match is None:
        return None
    variables, domain = int(match[1]), int(match[2])
    return (variables, domain) if variables in range(2, 27, 2) and least <= domain <= 100 else None
