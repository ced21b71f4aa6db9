"""The split-arithmetic family: `arithmetic-VxD`; `arithmetic` is short for `arithmetic-8x10`.

V operands are added and subtracted, by signs that are drawn at random. A holds a random half of the operands; B
holds the expression, with the other operands in it. B writes the running totals modulo D, so each value takes one
addition. Operands are below D / 2: so a sign or an operand alone tells something about the next total, and a small
model can learn one after the other. With the full range neither tells anything without the other.

An answer is right if all totals are. The last one alone is the result, but a wrong message gives the right result
about as often as a guess does, so that one could not see it mislead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from m2ray.tasks.level import Draw, Level, parse_size, shuffled


class Operand(NamedTuple):
    """An operand's value: `x2 = 7`. Places count from 0."""

    place: int
    value: int

    def fact(self) -> Operand:
        """Return itself: it has one form only."""
        return self

    def __str__(self) -> str:
        return f"x{self.place + 1} = {self.value}"


class Expression(NamedTuple):
    """The expression to evaluate: each operand's sign, the first a plus, and the operands that B knows."""

    signs: str
    values: tuple[int | None, ...]
    modulo: int

    def fact(self) -> Expression:
        """Return itself: it has one form only."""
        return self

    def __str__(self) -> str:
        terms = [f"x{i + 1}" if value is None else str(value) for i, value in enumerate(self.values)]
        written = " ".join(f"{sign} {term}" for sign, term in zip(self.signs, terms, strict=True))
        return f"t1 to t{len(terms)} are the running totals of {written[2:]} modulo {self.modulo}"


_OPERAND = re.compile(r"x([1-9]\d?) = (0|[1-9]\d?)", re.ASCII)


_TERM = re.compile(r"([+-]) (?:x\d+|(\d+))(?= |$)", re.ASCII)


@dataclass(frozen=True)
class ArithmeticLevel(Level):
    """A level with `variables` operands and as many totals modulo `domain`."""

    @property
    def span(self) -> int:
        """Number of values of an operand, 0 to `span` - 1."""
        return (self.domain + 1) // 2

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the totals, which are the answer."""
        return tuple(f"t{i + 1}" for i in range(self.variables))

    @property
    def words(self) -> tuple[str, ...]:
        """All words of halves and answers."""
        return tuple(
            dict.fromkeys([*str(self._sum).split(), "-", "=", *self.names, *map(str, range(self.domain))])
        )

    @property
    def _sum(self) -> Expression:
        """The expression with all operands unknown."""
        return Expression("+" * self.variables, (None,) * self.variables, self.domain)

    @property
    def possible_facts(self) -> int:
        """The number of different facts that A can state."""
        return self.variables * self.span

    def draw(self, below: Callable[[int], int]) -> Draw:
        """Implement `Level.draw`."""
        count = self.variables
        values = [below(self.span) for _ in range(count)]
        signs = "+" + "".join("+-"[below(2)] for _ in range(count - 1))
        mine = sorted(shuffled(range(count), below)[: count // 2])
        known = tuple(None if i in mine else value for i, value in enumerate(values))
        steps = (value if sign == "+" else -value for sign, value in zip(signs, values, strict=True))
        totals = tuple(total % self.domain for total in accumulate(steps))
        sender = tuple(Operand(i, values[i]) for i in mine)
        return Draw(sender, (Expression(signs, known, self.domain),), totals)

    def read(self, part: str) -> Operand | Expression:
        """Implement `Level.read`."""
        if match := _OPERAND.fullmatch(part):
            operand = Operand(int(match[1]) - 1, int(match[2]))
            if operand.place < self.variables and operand.value < self.span:
                return operand
        elif len(terms := _TERM.findall("+ " + part.partition(" of ")[2])) == self.variables:
            values = tuple(int(value) if value else None for _, value in terms)
            expression = Expression("".join(sign for sign, _ in terms), values, self.domain)
            if str(expression) == part and all(value is None or value < self.span for value in values):
                return expression
        raise ValueError(
            f"{part[:60]!r} is not a fact of level {self.name}; write `x1 = 0`, up to x{self.variables} and "
            f"{self.span - 1}, or `{self._sum}` with any signs and with values for some operands"
        )

    def checks(self, facts: Sequence[Any], values: Sequence[int]) -> list[bool]:
        """Implement `Level.checks`; each total counts as one."""
        held, total, settled = [], 0, True
        for value, steps in zip(values, self._steps(facts), strict=True):
            settled = settled and len(steps) == 1
            total = (total + steps[0]) % self.domain if settled else -1
            held.append(value == total)
        return held

    def count_solutions(self, facts: Sequence[Any]) -> int:
        """Implement `Level.count_solutions`."""
        return math.prod(len(steps) for steps in self._steps(facts))

    def value_probabilities(self, facts: Sequence[Any], answer: Sequence[int]) -> list[list[float]]:
        """Implement `Level.value_probabilities`.

        A total follows from the one before where sign and operand are known, and is open elsewhere.
        """
        table, before, possible = [], 0, True
        for value, steps in zip(answer, self._steps(facts), strict=False):
            if not (possible and steps):
                raise ValueError("no solution begins like this answer")
            open_ = {(before + step) % self.domain for step in steps}
            table.append([(v in open_) / len(open_) for v in range(self.domain)])
            before, possible = value, value in open_
        return table

    def left(self, facts: Sequence[Any]) -> list[int]:
        """Implement `Level.left`; a field is an operand."""
        return [sum(1 << v for v in values) for values in self._operands(facts)]

    def _operands(self, facts: Sequence[Any]) -> list[list[int]]:
        """Return the values that facts leave each operand."""
        known = {fact for fact in facts if isinstance(fact, Operand)}
        for fact in facts:
            if isinstance(fact, Expression):
                known |= {Operand(i, value) for i, value in enumerate(fact.values) if value is not None}
        return [
            [v for v in range(self.span) if all(fact.value == v for fact in known if fact.place == i)]
            for i in range(self.variables)
        ]

    def _steps(self, facts: Sequence[Any]) -> list[list[int]]:
        """Return the possible differences, modulo the domain, of each total and the one before."""
        signs = {fact.signs for fact in facts if isinstance(fact, Expression)}
        steps = []
        for i, values in enumerate(self._operands(facts)):
            ways = [way for sign, way in (("+", 1), ("-", -1)) if all(each[i] == sign for each in signs)]
            ways = ways if i else [1]  # the first operand is never subtracted
            steps.append(sorted({value * way % self.domain for value in values for way in ways}))
        return steps


def level_of(name: str) -> ArithmeticLevel | None:
    """Return a level of this family; V is even, 2 to 26; D is 3 to 100."""
    size = parse_size("arithmetic-8x10" if name == "arithmetic" else name, "arithmetic", 3)
    return ArithmeticLevel(f"arithmetic-{size[0]}x{size[1]}", *size) if size else None
