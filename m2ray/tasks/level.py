"""Interface of a task family: a level draws episodes and reasons about them exactly.

Agent A gets one half of the facts, agent B the other, and neither half alone determines the answer. A family
(`m2ray.tasks.constraints`, `m2ray.tasks.arithmetic` or a plugin) defines the facts and the answers.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

Values = tuple[int, ...]  # an answer: one whole number per variable


class Fact(Protocol):
    """One statement of a half: a hashable and ordered value, such as a named tuple, with its wording as `str`."""

    def fact(self) -> Fact:
        """Return the canonical form of the statement, which is the same for all its wordings."""

    def __lt__(self, other: Any, /) -> bool: ...


class Draw(NamedTuple):
    """Both halves of an episode, as facts, and one answer that is right for both."""

    sender: tuple[Any, ...]
    receiver: tuple[Any, ...]
    solution: Values


@dataclass(frozen=True)
class Level(ABC):
    """A task of a given size. A family is a subclass with its own type of fact (`Any` below).

    An answer is a whole number from 0 to `domain` - 1 for each of `variables` names.
    """

    name: str
    variables: int
    domain: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables in an answer."""
        return tuple(f"x{i + 1}" for i in range(self.variables))

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """All words, separated by spaces, that halves and answers consist of, except `;`."""

    @property
    @abstractmethod
    def possible_facts(self) -> int:
        """Number of different facts that A can state."""

    @abstractmethod
    def draw(self, below: Callable[[int], int]) -> Draw:
        """Draw an episode at random.

        The caller repeats draws until A's half belongs to the required part and each half alone leaves at least
        two solutions.

        Args:
            below: The only source of randomness: `below(n)` is a whole number from 0 to n - 1.
        """

    @abstractmethod
    def read(self, part: str) -> Any:
        """Return the fact that `str` writes as `part`.

        Raises:
            ValueError: the text is not a fact of this level.
        """

    @abstractmethod
    def checks(self, facts: Sequence[Any], values: Sequence[int]) -> list[bool]:
        """Check an answer against the facts of both halves.

        Returns:
            One result per check. The answer is right if all hold; the partial score is the share that holds.
        """

    @abstractmethod
    def count_solutions(self, facts: Sequence[Any]) -> int:
        """Return the number of answers that the facts allow; 0 if they contradict each other."""

    @abstractmethod
    def value_probabilities(self, facts: Sequence[Any], answer: Sequence[int]) -> list[list[float]]:
        """Return a perfect reasoner's distribution of each value of an answer, given the values before it.

        Args:
            facts: The facts that the reasoner knows.
            answer: The answer, which may be incomplete.

        Returns:
            [values in `answer`][domain]: P(value i = v | the values before it as in `answer`), uniform over the
            solutions left. As a training target it is the exact expectation of a sampled solution's one-hot.

        Raises:
            ValueError: no solution begins like `answer`, its last value aside.
        """

    @abstractmethod
    def left(self, facts: Sequence[Any]) -> list[int]:
        """Return what A's facts leave open: the possible values, as bits, of each field that probes read."""


def shuffled(items: Iterable[T], below: Callable[[int], int]) -> list[T]:
    """Return the items in random order (Fisher-Yates), for `Level.draw`."""
    order = list(items)
    for i in range(len(order) - 1, 0, -1):
        j = below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def parse_size(name: str, family: str, min_domain: int) -> tuple[int, int] | None:
    """Return V and D of a level name `family-VxD`, or None for another name or a size out of bounds.

    V, the number of variables, is even and from 2 to 26; D, the size of the domain, is from `min_domain` to 100.
    """
    match = re.fullmatch(rf"{family}-(\d{{1,3}})x(\d{{1,3}})", name)
    if match is None:
        return None
    variables, domain = int(match[1]), int(match[2])
    return (variables, domain) if variables in range(2, 27, 2) and min_domain <= domain <= 100 else None
