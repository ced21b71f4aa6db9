"""The constraint-satisfaction family of tasks: `easy`, `medium`, `hard`, `lookup` and `lookup-VxD`.

A hidden assignment of small integers is drawn, then constraints that it satisfies. Half of them go to agent A,
half to agent B. B must write an assignment that satisfies all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Literal, NamedTuple

from m2ray.tasks.level import Draw, Level, Values, change_one_fact, parse_size, shuffled

Kind = Literal["=", "!=", "+", "-"]


class Constraint(NamedTuple):
    """One constraint. Variables count from 0; `other` is -1 for the kinds with a single variable."""

    kind: Kind
    variable: int
    other: int
    value: int

    def holds(self, values: Sequence[int]) -> bool:
        """Return True if an assignment satisfies this constraint."""
        left = values[self.variable]
        if self.kind == "=":
            return left == self.value
        if self.kind == "!=":
            return left != self.value
        right = values[self.other]
        return (left + right if self.kind == "+" else left - right) == self.value

    def fact(self) -> Constraint:
        """Return its canonical form: `x1 + x3 = 2` for `x3 + x1 = 2`, `x1 - x3 = -1` for `x3 - x1 = 1`."""
        if self.other < 0 or self.variable < self.other:
            return self
        value = self.value if self.kind == "+" else -self.value
        return Constraint(self.kind, self.other, self.variable, value)

    def __str__(self) -> str:
        if self.other < 0:
            return f"x{self.variable + 1} {self.kind} {self.value}"
        return f"x{self.variable + 1} {self.kind} x{self.other + 1} = {self.value}"


_CONSTRAINT = re.compile(r"x(\d{1,9}) (?:(=|!=) (-?\d{1,9})|([+-]) x(\d{1,9}) = (-?\d{1,9}))", re.ASCII)


@dataclass(frozen=True)
class ConstraintLevel(Level):
    """A level with `constraints` constraints of the named `kinds`."""

    constraints: int
    kinds: tuple[Kind, ...] = ("=", "!=", "+", "-")

    @property
    def words(self) -> tuple[str, ...]:
        """All words of halves and answers."""
        pairs = "+" in self.kinds
        numbers = range(1 - self.domain, 2 * self.domain - 1) if pairs else range(self.domain)
        return (*sorted({"=", *self.kinds}), *self.names, *map(str, numbers))

    @property
    def possible_facts(self) -> int:
        """The number of different facts that A can state."""
        with_one = self.variables * self.domain
        with_two = math.comb(self.variables, 2) * (2 * self.domain - 1)
        return sum(with_one if kind in ("=", "!=") else with_two for kind in self.kinds)

    def draw(self, below: Callable[[int], int]) -> Draw:
        """Implement `Level.draw`."""
        solution = tuple(below(self.domain) for _ in range(self.variables))
        constraints = shuffled(self._draw_constraints(solution, below), below)
        half = len(constraints) // 2
        return Draw(tuple(constraints[:half]), tuple(constraints[half:]), solution)

    def _draw_constraints(self, solution: Values, below: Callable[[int], int]) -> list[Constraint]:
        if self.kinds == ("=",):
            return [Constraint("=", i, -1, value) for i, value in enumerate(solution)]
        drawn: list[Constraint] = []
        while len(drawn) < self.constraints:
            kind = self.kinds[below(len(self.kinds))]
            i = below(self.variables)
            if kind == "=":
                constraint = Constraint("=", i, -1, solution[i])
            elif kind == "!=":
                excluded = (solution[i] + 1 + below(self.domain - 1)) % self.domain
                constraint = Constraint("!=", i, -1, excluded)
            else:
                j = below(self.variables - 1)
                j += j >= i
                value = solution[i] + solution[j] if kind == "+" else solution[i] - solution[j]
                constraint = Constraint(kind, i, j, value)
            if constraint not in drawn:
                drawn.append(constraint)
        return drawn

    def read(self, part: str) -> Constraint:
        """Implement `Level.read`."""
        match = _CONSTRAINT.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:60]!r} is not a constraint such as `x1 + x3 = 3`")
        named = [int(number) - 1 for number in (match[1], match[5]) if number]
        if not all(0 <= variable < self.variables for variable in named):
            known = ", ".join(self.names)
            raise ValueError(f"{part!r} names a variable that level {self.name} does not have; use {known}")
        if len(set(named)) < len(named):
            raise ValueError(f"{part!r} names one variable twice; name two")
        kind: Kind = match[2] or match[4]  # type: ignore[assignment]
        if kind not in self.kinds:
            known = ", ".join(self.kinds)
            raise ValueError(f"{part!r} is of a kind that level {self.name} does not have; use {known}")
        return Constraint(kind, named[0], named[1] if named[1:] else -1, int(match[3] or match[6]))

    def checks(self, facts: Sequence[Constraint], values: Sequence[int]) -> list[bool]:
        """Implement `Level.checks`; each constraint counts as one."""
        return [constraint.holds(values) for constraint in facts]

    def count_solutions(self, facts: Sequence[Constraint]) -> int:
        """Implement `Level.count_solutions`."""
        if all(c.other < 0 for c in facts):
            return math.prod(len(values) for values in self._candidates(facts))
        return int.bit_count(self._solution_mask(facts))

    def value_probabilities(self, facts: Sequence[Constraint], answer: Sequence[int]) -> list[list[float]]:
        """Implement `Level.value_probabilities`."""
        if all(c.other < 0 for c in facts):
            sets = self._candidates(facts)
            if not all(sets) or any(value not in values for value, values in zip(answer[:-1], sets, strict=False)):
                raise ValueError("no solution begins like this answer")
            return [[(v in values) / len(values) for v in range(self.domain)] for values in sets]
        mask = self._solution_mask(facts)
        table = []
        for i, value in enumerate(answer):
            masks = [mask & self._equals(i, v) for v in range(self.domain)]
            total = mask.bit_count()
            if total == 0:
                raise ValueError("no solution begins like this answer")
            table.append([m.bit_count() / total for m in masks])
            mask = masks[value]
        return table

    def left(self, facts: Sequence[Constraint]) -> list[int]:
        """Implement `Level.left`; a field is a variable."""
        if all(c.other < 0 for c in facts):
            return [sum(1 << v for v in values) for values in self._candidates(facts)]
        mask = self._solution_mask(facts)
        return [
            sum(bool(mask & self._equals(i, v)) << v for v in range(self.domain)) for i in range(self.variables)
        ]

    @property
    def sent_facts(self) -> int:
        """Implement `Level.sent_facts`: half of all constraints."""
        return self.constraints // 2

    @property
    def message_lengths(self) -> range:
        """Implement `Level.message_lengths`: all that leave B a constraint."""
        return range(1, self.constraints)

    def resplit(self, drawn: Draw, length: int, below: Callable[[int], int]) -> Draw:
        """Implement `Level.resplit`: the first constraints, whose order is random already, are A's."""
        constraints = drawn.sender + drawn.receiver
        return Draw(constraints[:length], constraints[length:], drawn.solution)

    def change_fact(
        self,
        sender: Sequence[Constraint],
        receiver: Sequence[Constraint],
        solution: Values,
        below: Callable[[int], int],
    ) -> tuple[Constraint, ...]:
        """Implement `Level.change_fact`: a constraint of the same kind and variables, with another value."""

        def alternatives(fact: Constraint) -> list[Constraint]:
            if fact.kind in ("=", "!="):
                values = range(self.domain)
            else:
                values = range(2 * self.domain - 1) if fact.kind == "+" else range(1 - self.domain, self.domain)
            changed = [fact._replace(value=value) for value in values if value != fact.value]
            return [other for other in changed if not other.holds(solution)]

        return change_one_fact(self, sender, receiver, below, alternatives)

    def _candidates(self, facts: Iterable[Constraint]) -> list[list[int]]:
        """Return the values that constraints with a single variable leave for each variable."""
        left = [list(range(self.domain)) for _ in range(self.variables)]
        for c in facts:
            left[c.variable] = [v for v in left[c.variable] if (v == c.value) == (c.kind == "=")]
        return left

    def _solution_mask(self, facts: Iterable[Constraint]) -> int:
        """Return the assignments that satisfy all constraints, one bit each."""
        mask = (1 << self.domain**self.variables) - 1
        for constraint in facts:
            mask &= _mask(self.variables, self.domain, constraint)
        return mask

    def _equals(self, variable: int, value: int) -> int:
        return _mask(self.variables, self.domain, Constraint("=", variable, -1, value))


@cache
def _assignments(variables: int, domain: int) -> list[Values]:
    return list(product(range(domain), repeat=variables))


@lru_cache(maxsize=100_000)
def _mask(variables: int, domain: int, constraint: Constraint) -> int:
    """Return the assignments that satisfy a constraint, one bit each."""
    holds = (constraint.holds(values) for values in _assignments(variables, domain))
    return sum(1 << i for i, ok in enumerate(holds) if ok)


LEVELS = {
    "easy": ConstraintLevel("easy", 4, 3, 8),
    "medium": ConstraintLevel("medium", 5, 3, 12),
    "hard": ConstraintLevel("hard", 6, 4, 16),
    "lookup": ConstraintLevel("lookup", 4, 3, 4, ("=",)),
}


def level_of(name: str) -> ConstraintLevel | None:
    """Return a level of this family, or None: one of `LEVELS`, or `lookup-VxD` (V variables, D values each).

    V is even and from 2 to 26, D from 2 to 100.
    """
    if size := parse_size(name, "lookup", 2):
        return ConstraintLevel(name, *size, size[0], ("=",))
    return LEVELS.get(name)
