"""`password-6x3`: a password of six digits from 0 to 2, of which A knows three and B the others."""

import math
import re
from typing import NamedTuple

from m2ray.api import Draw, Level


class Digit(NamedTuple):
    position: int
    value: int

    def fact(self):
        return self

    def __str__(self):
        return f"digit {self.position + 1} is {self.value}"


class Password(Level):
    @property
    def words(self):
        return ("digit", "is", *self.names, *map(str, range(max(self.domain, self.variables + 1))))

    @property
    def possible_facts(self):
        return self.variables * self.domain

    def draw(self, below):
        solution = tuple(below(self.domain) for _ in range(self.variables))
        receiver = [Digit(position, value) for position, value in enumerate(solution)]
        sender = [receiver.pop(below(len(receiver))) for _ in range(self.variables // 2)]
        return Draw(tuple(sender), tuple(receiver), solution)

    def read(self, part):
        match = re.fullmatch(r"digit ([1-9]) is ([0-9])", part)
        if match is None or int(match[1]) > self.variables:
            raise ValueError(f"{part!r:.60} is not a fact such as `digit 1 is 0`")
        return Digit(int(match[1]) - 1, int(match[2]))

    def checks(self, facts, values):
        return [values[fact.position] == fact.value for fact in facts]

    def count_solutions(self, facts):
        return math.prod(map(len, self.candidates(facts)))

    def value_probabilities(self, facts, answer):
        candidates = self.candidates(facts)
        begun = zip(answer[:-1], candidates, strict=False)
        if not all(candidates) or any(value not in left for value, left in begun):
            raise ValueError("no solution begins like this answer")
        return [[(v in left) / len(left) for v in range(self.domain)] for left in candidates]

    def left(self, facts):
        return [sum(1 << value for value in left) for left in self.candidates(facts)]

    def candidates(self, facts):
        """The values that facts leave for each digit."""
        return [
            [v for v in range(self.domain) if all(v == fact.value for fact in facts if fact.position == position)]
            for position in range(self.variables)
        ]


def level_of(name):
    match = re.fullmatch(r"password-([2468])x(\d{1,2})", name)
    return Password(name, variables=int(match[1]), domain=int(match[2])) if match else None
