"""The split-arithmetic family of tasks: `arithmetic-VxD`; `arithmetic` is short for `arithmetic-8x10`.

V operands are added and subtracted, with signs drawn at random. A gets a random half of the operands. B gets the
expression with the other half filled in, and writes the running totals modulo D, so each value is one addition.

Operands are below D / 2. So the sign or the operand alone already says something about the next total, and a small
model can learn one after the other. With operands of the full range neither would say anything without the other.

An answer is right if all totals are. The last total alone is the result of the expression, but it could not show
that a wrong message misleads: with a wrong message it is right about as often as by a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from m2ray.tasks.level import Draw, Level, Values, change_one_fact, parse_size, shuffled


class Operand(NamedTuple):
    """The value of an operand: `x2 = 7`. Positions count from 0."""

    position: int
    value: int

    def fact(self) -> Operand:
        """Return the operand itself, its only form."""
        return self

    def __str__(self) -> str:
        return f"x{self.position + 1} = {self.value}"


class Expression(NamedTuple):
    """B's half: the sign of each operand (the first is a plus), the operands that B knows, and the modulus."""

    signs: str
    values: tuple[int | None, ...]
    modulo: int

    def fact(self) -> Expression:
        """Return the expression itself, its only form."""
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
        """The number of values of an operand, which are 0 to `span` - 1."""
        return (self.domain + 1) // 2

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the totals, which are the answer."""
        return tuple(f"t{i + 1}" for i in range(self.variables))

    @property
    def words(self) -> tuple[str, ...]:
        """All words of halves and answers."""
        return tuple(
            dict.fromkeys(
                [*str(self._open_expression).split(), "-", "=", *self.names, *map(str, range(self.domain))]
            )
        )

    @property
    def _open_expression(self) -> Expression:
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
        return self._split(signs, values, shuffled(range(count), below)[: count // 2])

    def _split(self, signs: str, values: Sequence[int], sent: Sequence[int]) -> Draw:
        """Return the episode of these signs and operands, with those at the positions `sent` in A's half."""
        known = tuple(None if i in sent else value for i, value in enumerate(values))
        steps = (value if sign == "+" else -value for sign, value in zip(signs, values, strict=True))
        totals = tuple(total % self.domain for total in accumulate(steps))
        sender = tuple(Operand(i, values[i]) for i in sorted(sent))
        return Draw(sender, (Expression(signs, known, self.domain),), totals)

    def read(self, part: str) -> Operand | Expression:
        """Implement `Level.read`."""
        if match := _OPERAND.fullmatch(part):
            operand = Operand(int(match[1]) - 1, int(match[2]))
            if operand.position < self.variables and operand.value < self.span:
                return operand
        elif len(terms := _TERM.findall("+ " + part.partition(" of ")[2])) == self.variables:
            values = tuple(int(value) if value else None for _, value in terms)
            expression = Expression("".join(sign for sign, _ in terms), values, self.domain)
            if str(expression) == part and all(value is None or value < self.span for value in values):
                return expression
        raise ValueError(
            f"{part[:60]!r} is not a fact of level {self.name}; write `x1 = 0`, up to x{self.variables} and "
            f"{self.span - 1}, or `{self._open_expression}` with any signs and with values for some operands"
        )

    def checks(self, facts: Sequence[Any], values: Sequence[int]) -> list[bool]:
        """Implement `Level.checks`; each total counts as one."""
        checks, total, known = [], 0, True
        for value, steps in zip(values, self._steps(facts), strict=True):
            known = known and len(steps) == 1
            total = (total + steps[0]) % self.domain if known else -1
            checks.append(value == total)
        return checks

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
            totals = {(before + step) % self.domain for step in steps}
            table.append([(v in totals) / len(totals) for v in range(self.domain)])
            before, possible = value, value in totals
        return table

    def left(self, facts: Sequence[Any]) -> list[int]:
        """Implement `Level.left`; a field is an operand."""
        return [sum(1 << v for v in values) for values in self._operands(facts)]

    @property
    def sent_facts(self) -> int:
        """Implement `Level.sent_facts`: half of all operands."""
        return self.variables // 2

    @property
    def message_lengths(self) -> range:
        """Implement `Level.message_lengths`: all that leave B an operand."""
        return range(1, self.variables)

    def resplit(self, drawn: Draw, length: int, below: Callable[[int], int]) -> Draw:
        """Implement `Level.resplit`: operands drawn at random are A's."""
        (expression,) = drawn.receiver
        values = [options[0] for options in self._operands(drawn.sender + drawn.receiver)]
        return self._split(expression.signs, values, shuffled(range(self.variables), below)[:length])

    def agrees(self, fact: Any, receiver: Sequence[Any], values: Sequence[int]) -> bool:
        """Implement `Level.agrees`: an operand is read if it is the difference between two totals, with its sign.

        So it counts as read also after a mistake in an earlier total.
        """
        if not isinstance(fact, Operand):
            return super().agrees(fact, receiver, values)
        before = values[fact.position - 1] if fact.position else 0
        difference = (values[fact.position] - before) % self.domain
        return difference in {
            fact.value * factor % self.domain for factor in self._factors(receiver, fact.position)
        }

    def change_fact(
        self,
        sender: Sequence[Operand],
        receiver: Sequence[Any],
        solution: Values,
        below: Callable[[int], int],
    ) -> tuple[Operand, ...]:
        """Implement `Level.change_fact`: another value of one operand, which changes all totals from there on."""

        def alternatives(fact: Operand) -> list[Operand]:
            return [fact._replace(value=value) for value in range(self.span) if value != fact.value]

        return change_one_fact(self, sender, receiver, below, alternatives)

    def _operands(self, facts: Sequence[Any]) -> list[list[int]]:
        """Return the values that facts leave for each operand."""
        known = {fact for fact in facts if isinstance(fact, Operand)}
        for fact in facts:
            if isinstance(fact, Expression):
                known |= {Operand(i, value) for i, value in enumerate(fact.values) if value is not None}
        return [
            [v for v in range(self.span) if all(fact.value == v for fact in known if fact.position == i)]
            for i in range(self.variables)
        ]

    def _steps(self, facts: Sequence[Any]) -> list[list[int]]:
        """Return the possible differences, modulo the domain, between each total and the one before it."""
        steps = []
        for i, values in enumerate(self._operands(facts)):
            factors = self._factors(facts, i)
            steps.append(sorted({value * factor % self.domain for value in values for factor in factors}))
        return steps

    @staticmethod
    def _factors(facts: Sequence[Any], position: int) -> list[int]:
        """Return the signs, as 1 and -1, that facts leave for an operand; the first is never subtracted."""
        signs = {fact.signs for fact in facts if isinstance(fact, Expression)}
        possible = [factor for sign, factor in (("+", 1), ("-", -1)) if all(s[position] == sign for s in signs)]
        return possible if position else [1]


def level_of(name: str) -> ArithmeticLevel | None:
    """Return a level of this family, or None; V is even and from 2 to 26, D from 3 to 100."""
    size = parse_size("arithmetic-8x10" if name == "arithmetic" else name, "arithmetic", 3)
    return ArithmeticLevel(f"arithmetic-{size[0]}x{size[1]}", *size) if size else None
