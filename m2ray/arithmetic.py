"""The family of split arithmetic: `arithmetic-VxD`, of which `arithmetic` is the one of six operands modulo 10.

V operands from 0 to D - 1 are to be added and subtracted, by signs that are drawn. A holds half of the operands,
by chance which; B holds the signs and the others. B writes the running totals modulo D, so that each value is one
addition. An answer is right where all totals are. The last alone is the result, but a wrong message gives the
right one once in D episodes, as often as a guess does: that it misleads could not be seen. All totals are right
once in D ** (V / 2) episodes for a B that guesses, and hardly more often for one that believes a wrong message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from m2ray.task import Draw, Level


class Operand(NamedTuple):
    """`x2 = 7`; operands count from 0."""

    place: int
    value: int

    def fact(self) -> Operand:
        """See `m2ray.task.Fact`."""
        return self

    def __str__(self) -> str:
        return f"x{self.place + 1} = {self.value}"


class Expression(NamedTuple):
    """What is to be worked out: a sign, + or -, of each operand but the first."""

    signs: str
    modulo: int

    def fact(self) -> Expression:
        """See `m2ray.task.Fact`."""
        return self

    def __str__(self) -> str:
        terms = "".join(f" {sign} x{i + 2}" for i, sign in enumerate(self.signs))
        count = len(self.signs) + 1
        return f"t1 to t{count} are the running totals of x1{terms} modulo {self.modulo}"


_OPERAND = re.compile(r"x([1-9]\d?) = (0|[1-9]\d?)", re.ASCII)


@dataclass(frozen=True)
class ArithmeticLevel(Level):
    """`variables` operands of `domain` values, and as many totals."""

    @property
    def names(self) -> tuple[str, ...]:
        """See `Level`; the answer is the totals."""
        return tuple(f"t{i + 1}" for i in range(self.variables))

    @property
    def words(self) -> tuple[str, ...]:
        """See `Level`."""
        said = str(Expression("+" * (self.variables - 1), self.domain)).split()
        return tuple(dict.fromkeys([*said, "-", "=", *self.names, *map(str, range(self.domain))]))

    @property
    def possible_facts(self) -> int:
        """See `Level`."""
        return self.variables * self.domain

    def draw(self, below: Callable[[int], int]) -> Draw:
        """See `Level`."""
        count = self.variables
        operands = [Operand(i, below(self.domain)) for i in range(count)]
        signs = "".join("+-"[below(2)] for _ in range(count - 1))
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = below(i + 1)
            order[i], order[j] = order[j], order[i]
        mine, yours = (
            tuple(operands[i] for i in sorted(half)) for half in (order[: count // 2], order[count // 2 :])
        )
        totals, total = [], 0
        for operand, sign in zip(operands, "+" + signs, strict=True):
            total = (total + operand.value * (1 if sign == "+" else -1)) % self.domain
            totals.append(total)
        return Draw(mine, (Expression(signs, self.domain), *yours), tuple(totals))

    def read(self, part: str) -> Operand | Expression:
        """See `Level`."""
        if match := _OPERAND.fullmatch(part):
            operand = Operand(int(match[1]) - 1, int(match[2]))
            if operand.place < self.variables and operand.value < self.domain:
                return operand
        signs = "".join(word for word in part.split() if word in ("+", "-"))
        expression = Expression(signs, self.domain)
        if len(signs) == self.variables - 1 and str(expression) == part:
            return expression
        example = Expression("+" * (self.variables - 1), self.domain)
        raise ValueError(
            f"{part[:60]!r} is no fact of level {self.name}; write `x1 = 0`, up to x{self.variables} and "
            f"{self.domain - 1}, or `{example}` with any signs"
        )

    def checks(self, facts: Sequence[Any], values: Sequence[int]) -> list[bool]:
        """See `Level`; each total counts as one."""
        held, total, settled = [], 0, True
        for value, steps in zip(values, self._steps(facts), strict=True):
            settled = settled and len(steps) == 1
            total = (total + steps[0]) % self.domain if settled else -1
            held.append(value == total)
        return held

    def count_solutions(self, facts: Sequence[Any]) -> int:
        """See `Level`."""
        return math.prod(len(steps) for steps in self._steps(facts))

    def value_probabilities(self, facts: Sequence[Any], answer: Sequence[int]) -> list[list[float]]:
        """See `Level`: a total follows from the one before where sign and operand are known, else is open."""
        table, before, possible = [], 0, True
        for value, steps in zip(answer, self._steps(facts), strict=False):
            if not (possible and steps):
                raise ValueError("no solution begins like this answer")
            open_ = {(before + step) % self.domain for step in steps}
            table.append([(v in open_) / len(open_) for v in range(self.domain)])
            before, possible = value, value in open_
        return table

    def left(self, facts: Sequence[Any]) -> list[int]:
        """See `Level`; a field is an operand."""
        return [sum(1 << v for v in values) for values in self._operands(facts)]

    def _operands(self, facts: Sequence[Any]) -> list[list[int]]:
        """The values that facts leave each operand."""
        known = [fact for fact in facts if isinstance(fact, Operand)]
        return [
            [v for v in range(self.domain) if all(fact.value == v for fact in known if fact.place == i)]
            for i in range(self.variables)
        ]

    def _steps(self, facts: Sequence[Any]) -> list[list[int]]:
        """What may lie, modulo the domain, between each total and the one before."""
        signs = {"+" + fact.signs for fact in facts if isinstance(fact, Expression)}
        steps = []
        for i, values in enumerate(self._operands(facts)):
            ways = [way for sign, way in (("+", 1), ("-", -1)) if all(each[i] == sign for each in signs)]
            ways = ways if i else [1]  # the first has no sign
            steps.append(sorted({value * way % self.domain for value in values for way in ways}))
        return steps


def named(name: str) -> ArithmeticLevel | None:
    """A level of this family; V is even and from 2 to 26, D from 2 to 100."""
    match = re.fullmatch(r"arithmetic-(\d{1,3})x(\d{1,3})", "arithmetic-6x10" if name == "arithmetic" else name)
    if match is None:
        return None
    variables, domain = int(match[1]), int(match[2])
    if not (2 <= variables <= 26 and variables % 2 == 0 and 2 <= domain <= 100):
        return None
    return ArithmeticLevel(f"arithmetic-{variables}x{domain}", variables, domain)
