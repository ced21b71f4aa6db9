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

from m2ray.util.errors import UserError

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

    # --- optional: a family may leave these as they are ---

    @property
    def sent_facts(self) -> int | None:
        """Number of facts in A's half of every drawn episode; None if it varies."""
        return None

    @property
    def message_lengths(self) -> range:
        """Numbers of facts that `resplit` can give A's half; empty if the family does not define it."""
        return range(0)

    def resplit(self, drawn: Draw, length: int, below: Callable[[int], int]) -> Draw:
        """Return an episode with its facts split anew, `length` of them in A's half.

        Args:
            drawn: The episode, from `draw`.
            length: A number of `message_lengths`.
            below: The only source of randomness, as in `draw`.
        """
        raise NotImplementedError(f"level {self.name} does not define resplit")

    def agrees(self, fact: Any, receiver: Sequence[Any], values: Sequence[int]) -> bool:
        """Return True if an answer agrees with one fact of A's, by which B is seen to have read it.

        Override it if a single fact of A's can be checked only together with B's half.

        Args:
            fact: The fact, from A's half of this episode or of another one.
            receiver: B's half.
            values: B's answer; a value may lie outside the domain.
        """
        return all(self.checks([fact], values))

    def change_fact(
        self, sender: Sequence[Any], receiver: Sequence[Any], solution: Values, below: Callable[[int], int]
    ) -> tuple[Any, ...]:
        """Return A's half with exactly one fact changed so that the right answer becomes wrong.

        The order of the facts stays. Wherever the facts allow it, an answer satisfies the changed half together
        with B's, so that B can follow it, and each such answer is wrong by the original half.

        Args:
            sender: A's half.
            receiver: B's half.
            solution: A right answer to both.
            below: The only source of randomness, as in `draw`.

        Raises:
            UserError: the family does not define this method, or no fact can be changed so.
        """
        raise UserError(
            f"level {self.name} does not define change_fact, so condition near cannot run; leave near out, or "
            "define it as m2ray.api.Level describes"
        )


def shuffled(items: Iterable[T], below: Callable[[int], int]) -> list[T]:
    """Return the items in random order (Fisher-Yates), for `Level.draw`."""
    order = list(items)
    for i in range(len(order) - 1, 0, -1):
        j = below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def defines_change_fact(level: Level) -> bool:
    """Return True if the level's family defines `Level.change_fact`."""
    return type(level).change_fact is not Level.change_fact


def change_one_fact(
    level: Level,
    sender: Sequence[Any],
    receiver: Sequence[Any],
    below: Callable[[int], int],
    alternatives: Callable[[Any], Sequence[Any]],
) -> tuple[Any, ...]:
    """Return A's half with one fact replaced at random, for `Level.change_fact`.

    Facts are tried in random order. Best is a change with which both halves still have a solution, and all their
    solutions are wrong by the original half; next best, one with which they have a solution; else any.

    Args:
        level: The level, which counts solutions.
        sender: A's half.
        receiver: B's half.
        below: The only source of randomness, as in `Level.draw`.
        alternatives: Returns the facts that may replace a fact; those that A's half has already are left out.

    Raises:
        UserError: no fact has an alternative.
    """
    known = {fact.fact() for fact in sender}
    solvable: tuple[Any, ...] | None = None
    contradiction: tuple[Any, ...] | None = None
    for i in shuffled(range(len(sender)), below):
        for other in shuffled(alternatives(sender[i]), below):
            if other.fact() in known:
                continue
            changed = (*sender[:i], other, *sender[i + 1 :])
            if not level.count_solutions((*changed, *receiver)):
                contradiction = contradiction or changed
            elif level.count_solutions((*sender, other, *receiver)):
                solvable = solvable or changed
            else:
                return changed
    found = solvable or contradiction
    if found is None:
        raise UserError(
            f"condition near: no fact of this message of level {level.name} can be changed; leave near out"
        )
    return found


def parse_size(name: str, family: str, min_domain: int) -> tuple[int, int] | None:
    """Return V and D of a level name `family-VxD`, or None for another name or a size out of bounds.

    V, the number of variables, is even and from 2 to 26; D, the size of the domain, is from `min_domain` to 100.
    """
    match = re.fullmatch(rf"{family}-(\d{{1,3}})x(\d{{1,3}})", name)
    if match is None:
        return None
    variables, domain = int(match[1]), int(match[2])
    return (variables, domain) if variables in range(2, 27, 2) and min_domain <= domain <= 100 else None
