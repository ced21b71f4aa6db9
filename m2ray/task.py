"""The task: split-information constraint satisfaction, from seeds to episodes, with its verifier and ceilings.

A hidden assignment of small integers is drawn, then constraints that it satisfies; half of them go to agent A,
half to agent B. B must name an assignment that satisfies all of them. Neither half alone pins it down.

Splits are disjoint twice over. By seed: every split has its own range. By content: every possible message (the
*set* of A's constraints) belongs to exactly one part, by hash, and a seed of a split only yields messages of
that part. So a message judged on confirm was never seen in training, whichever seeds anybody picks.
"""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from m2ray.command import UserError

Kind = Literal["=", "!=", "+", "-"]
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


class Constraint(NamedTuple):
    """One constraint; variables count from 0, `other` is -1 for the kinds that name one variable."""

    kind: Kind
    variable: int
    other: int
    value: int

    def holds(self, values: Sequence[int]) -> bool:
        """Whether an assignment satisfies this constraint."""
        left = values[self.variable]
        if self.kind == "=":
            return left == self.value
        if self.kind == "!=":
            return left != self.value
        right = values[self.other]
        return (left + right if self.kind == "+" else left - right) == self.value

    def fact(self) -> Constraint:
        """The one wording of what it says: `x3 + x1 = 2` is `x1 + x3 = 2`, `x3 - x1 = 1` is `x1 - x3 = -1`."""
        if self.other < 0 or self.variable < self.other:
            return self
        value = self.value if self.kind == "+" else -self.value
        return Constraint(self.kind, self.other, self.variable, value)

    def __str__(self) -> str:
        if self.other < 0:
            return f"x{self.variable + 1} {self.kind} {self.value}"
        return f"x{self.variable + 1} {self.kind} x{self.other + 1} = {self.value}"


@dataclass(frozen=True)
class Level:
    """The size of a task: `variables` of `domain` values each, `constraints` in all, of the `kinds` named."""

    name: str
    variables: int
    domain: int
    constraints: int
    kinds: tuple[Kind, ...] = ("=", "!=", "+", "-")

    @property
    def names(self) -> tuple[str, ...]:
        """The variables as A, B and the answer write them."""
        return tuple(f"x{i + 1}" for i in range(self.variables))


LEVELS = {
    "easy": Level("easy", 4, 3, 8),
    "medium": Level("medium", 5, 3, 12),
    "hard": Level("hard", 6, 4, 16),
    "lookup": Level("lookup", 4, 3, 4, ("=",)),
}


@lru_cache
def level(name: str) -> Level:
    """A level by name: easy, medium, hard, lookup, or `lookup-VxD` (V variables, D values each).

    Raises:
        UserError: no such level, or a lookup level out of bounds (2 to 26 variables, even; 2 to 100 values).
    """
    if name in LEVELS:
        return LEVELS[name]
    match = re.fullmatch(r"lookup-(\d{1,3})x(\d{1,3})", name)
    if match:
        variables, domain = int(match[1]), int(match[2])
        if 2 <= variables <= 26 and variables % 2 == 0 and 2 <= domain <= 100:
            return Level(name, variables, domain, variables, ("=",))
    raise UserError(f"task: level {name!r} does not exist; use one of {', '.join(LEVELS)} or lookup-6x10")


@dataclass(frozen=True)
class Episode:
    """One seed's task: A's half as constraints and as the message, B's half, and one hidden solution."""

    level: Level
    seed: int
    sender: tuple[Constraint, ...]
    receiver: tuple[Constraint, ...]
    solution: Values
    message: str

    @property
    def context(self) -> str:
        """B's half, as B's prompt holds it."""
        return write_constraints(self.receiver)

    @property
    def content(self) -> frozenset[Constraint]:
        """What the message says, whatever its wording or order: the unit that splits keep apart."""
        return frozenset(constraint.fact() for constraint in self.sender)


def write_constraints(constraints: Iterable[Constraint]) -> str:
    """The template: `x1 = 2; x1 + x3 = 3`."""
    return "; ".join(str(constraint) for constraint in constraints)


_CONSTRAINT = re.compile(r"x(\d{1,9}) (?:(=|!=) (-?\d{1,9})|([+-]) x(\d{1,9}) = (-?\d{1,9}))", re.ASCII)


def read_constraints(text: str, level: Level) -> tuple[Constraint, ...]:
    """The inverse of `write_constraints`.

    Raises:
        ValueError: a part of the text is no constraint of this level.
    """
    constraints = []
    for part in text.split(";"):
        match = _CONSTRAINT.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()[:60]!r} is not a constraint such as `x1 + x3 = 3`")
        named = [int(number) - 1 for number in (match[1], match[5]) if number]
        if not all(0 <= variable < level.variables for variable in named):
            known = ", ".join(level.names)
            raise ValueError(
                f"{part.strip()!r} names a variable that level {level.name} does not have; use {known}"
            )
        if len(set(named)) < len(named):
            raise ValueError(f"{part.strip()!r} names one variable twice; name two")
        kind: Kind = match[2] or match[4]  # type: ignore[assignment]
        if kind not in level.kinds:
            known = ", ".join(level.kinds)
            raise ValueError(f"{part.strip()!r} is of a kind that level {level.name} does not have; use {known}")
        constraints.append(Constraint(kind, named[0], named[1] if named[1:] else -1, int(match[3] or match[6])))
    return tuple(constraints)


def part_of(content: Iterable[Constraint]) -> str:
    """The one part (train, search, select, confirm) that a message's content belongs to."""
    key = write_constraints(sorted({constraint.fact() for constraint in content})).encode()
    twentieth = zlib.crc32(key) % 20
    return next(name for name, share in PARTS.items() if twentieth in share)


def draw(level: Level, seed: int, part: str = "confirm") -> Episode:
    """The episode of a seed: the same on every machine and Python.

    Only `Random.random` is used, the one method whose sequence Python promises to keep.

    Args:
        level: The size of the task.
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
        solution = tuple(below(level.domain) for _ in range(level.variables))
        constraints = _draw_constraints(level, solution, below)
        for i in range(len(constraints) - 1, 0, -1):
            j = below(i + 1)
            constraints[i], constraints[j] = constraints[j], constraints[i]
        half = len(constraints) // 2
        sender, receiver = tuple(constraints[:half]), tuple(constraints[half:])
        if part_of(sender) != part:
            continue
        if count_solutions(level, sender) >= 2 and count_solutions(level, receiver) >= 2:
            return Episode(level, seed, sender, receiver, solution, write_constraints(sender))
    raise UserError(f"task: level {level.name} has no message in part {part!r}; use a larger level")


def _draw_constraints(level: Level, solution: Values, below: Callable[[int], int]) -> list[Constraint]:
    if level.kinds == ("=",):
        return [Constraint("=", i, -1, value) for i, value in enumerate(solution)]
    drawn: list[Constraint] = []
    while len(drawn) < level.constraints:
        kind = level.kinds[below(len(level.kinds))]
        i = below(level.variables)
        if kind == "=":
            constraint = Constraint("=", i, -1, solution[i])
        elif kind == "!=":
            other_value = (solution[i] + 1 + below(level.domain - 1)) % level.domain
            constraint = Constraint("!=", i, -1, other_value)
        else:
            j = below(level.variables - 1)
            j += j >= i
            value = solution[i] + solution[j] if kind == "+" else solution[i] - solution[j]
            constraint = Constraint(kind, i, j, value)
        if constraint not in drawn:
            drawn.append(constraint)
    return drawn


def episodes(level: Level, seeds: Iterable[int], part: str = "confirm") -> list[Episode]:
    """The episodes of a range of seeds, in order."""
    return [draw(level, seed, part) for seed in seeds]


# --- solutions -----------------------------------------------------------------------------------------------


@cache
def _assignments(variables: int, domain: int) -> list[Values]:
    return list(product(range(domain), repeat=variables))


@lru_cache(maxsize=100_000)
def _mask(variables: int, domain: int, constraint: Constraint) -> int:
    """The assignments that satisfy a constraint, one bit each."""
    holds = (constraint.holds(values) for values in _assignments(variables, domain))
    return sum(1 << i for i, ok in enumerate(holds) if ok)


def _solution_mask(level: Level, constraints: Iterable[Constraint]) -> int:
    mask = (1 << level.domain**level.variables) - 1
    for constraint in constraints:
        mask &= _mask(level.variables, level.domain, constraint)
    return mask


def _candidates(level: Level, constraints: Iterable[Constraint]) -> list[list[int]]:
    """Values left for each variable by constraints that name one variable."""
    left = [list(range(level.domain)) for _ in range(level.variables)]
    for c in constraints:
        left[c.variable] = [v for v in left[c.variable] if (v == c.value) == (c.kind == "=")]
    return left


def count_solutions(level: Level, constraints: Sequence[Constraint]) -> int:
    """How many assignments satisfy all the constraints."""
    if all(c.other < 0 for c in constraints):
        return math.prod(len(values) for values in _candidates(level, constraints))
    return int.bit_count(_solution_mask(level, constraints))


def value_probabilities(
    level: Level, constraints: Sequence[Constraint], answer: Sequence[int]
) -> list[list[float]]:
    """What a perfect reasoner would write, value by value.

    Returns:
        [variables][domain]: P(x_i = v | x_1..x_{i-1} as in `answer`), uniform over the assignments that satisfy
        the constraints. As a training target it is the exact expectation of a sampled solution's one-hot.

    Raises:
        ValueError: no assignment that begins like `answer`, its last value aside, satisfies the constraints.
    """
    if all(c.other < 0 for c in constraints):
        sets = _candidates(level, constraints)
        if not all(sets) or any(value not in values for value, values in zip(answer[:-1], sets, strict=False)):
            raise ValueError("no solution begins like this answer")
        return [[(v in values) / len(values) for v in range(level.domain)] for values in sets]
    mask = _solution_mask(level, constraints)
    table = []
    for i, value in enumerate(answer):
        masks = [
            mask & _mask(level.variables, level.domain, Constraint("=", i, -1, v)) for v in range(level.domain)
        ]
        total = mask.bit_count()
        if total == 0:
            raise ValueError("no solution begins like this answer")
        table.append([m.bit_count() / total for m in masks])
        mask = masks[value]
    return table


# --- answers -------------------------------------------------------------------------------------------------


def write_answer(level: Level, values: Sequence[int], form: AnswerForm) -> str:
    """An answer as B should write it: `{"x1": 0, "x2": 2}` or `0 2`."""
    if form == "json":
        return json.dumps(dict(zip(level.names, values, strict=True)))
    return " ".join(str(value) for value in values)


def read_answer(level: Level, text: str, form: AnswerForm) -> Values | None:
    """The assignment in B's text, or None where there is none.

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
    """What the verifier says: success is all constraints of both halves; partial is the share that holds."""

    success: bool
    parsed: bool
    partial: float


def verify(episode: Episode, text: str, form: AnswerForm) -> Outcome:
    """Judge B's text. An answer that does not parse is a failure with no partial credit."""
    values = read_answer(episode.level, text, form)
    if values is None:
        return Outcome(False, False, 0.0)
    constraints = episode.sender + episode.receiver
    in_domain = all(0 <= value < episode.level.domain for value in values)
    held = sum(constraint.holds(values) for constraint in constraints)
    return Outcome(in_domain and held == len(constraints), True, held / len(constraints))


# --- ceilings ------------------------------------------------------------------------------------------------


class Ceilings(NamedTuple):
    """Success rates of perfect reasoners (shares) and the content of a message (bits), means over episodes."""

    without_message: float
    with_message: float
    wrong_message: float
    blind: float
    message_bits: float
    news_bits: float


def ceilings(played: Sequence[Episode], shift: int = 17) -> Ceilings:
    """What perfect reasoners reach who guess evenly among the assignments they cannot rule out.

    Args:
        played: Episodes of one level.
        shift: The wrong message is that of the episode this many places on. One that contradicts B's own half
            leaves no assignment and counts as a failure.
    """
    rows = []
    for i, episode in enumerate(played):
        wrong = played[(i + shift) % len(played)].sender
        every = episode.sender + episode.receiver
        everything = episode.level.domain**episode.level.variables
        both = count_solutions(episode.level, every)
        alone = count_solutions(episode.level, episode.receiver)
        misled = count_solutions(episode.level, wrong + episode.receiver)
        lucky = count_solutions(episode.level, wrong + every)
        sent = count_solutions(episode.level, episode.sender)
        rows.append(
            (
                both / alone,
                1.0,
                lucky / misled if misled else 0.0,
                both / everything,
                math.log2(everything / sent),
                math.log2(alone / both),
            )
        )
    return Ceilings(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


# --- episodes from a file ------------------------------------------------------------------------------------

_FIELDS = ("receiver_context", "sender_message", "receiver_output")


def _is_text(value: object) -> bool:
    """Whether a tokenizer can read it: lone surrogates, which JSON can spell, are no characters."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def read_episodes(path: Path, level: Level) -> list[Episode]:
    """Episodes from a JSONL file in the reference attempt's fields, checked line by line.

    `receiver_context` (B's half) and `sender_message` are constraints as the template writes them; a message in
    free words needs A's half beside it in the optional `sender_context`. `receiver_output` is a correct answer
    in JSON. A line's number, counted from 0, is its seed.

    Raises:
        UserError: names the file, line, key and mend of the first fault.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    found = []
    # Bytes end lines at \n and \r alone; text would also at characters that JSON allows inside a string.
    for number, line in enumerate(path.read_bytes().splitlines()):
        where = f"{path}: line {number + 1}"
        try:
            data = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
        if not isinstance(data, dict):
            raise UserError(f"{where}: expected an object, found {type(data).__name__}; write one object a line")
        for field in (*_FIELDS, *(("sender_context",) if "sender_context" in data else ())):
            if not _is_text(data.get(field)):
                raise UserError(f"{where}: {field}: missing, empty or not text; add it")
        unknown = set(data) - {*_FIELDS, "sender_context"}
        if unknown:
            raise UserError(f"{where}: {min(unknown)}: unknown key; remove it")
        halves = []
        for field in ("sender_context" if "sender_context" in data else "sender_message", "receiver_context"):
            try:
                halves.append(read_constraints(data[field], level))
            except ValueError as error:
                raise UserError(f"{where}: {field}: {error}") from None
        values = read_answer(level, data["receiver_output"], "json")
        if values is None:
            raise UserError(f"{where}: receiver_output: not a JSON answer of level {level.name}; mend it")
        episode = Episode(level, number, halves[0], halves[1], values, data["sender_message"])
        if not verify(episode, data["receiver_output"], "json").success:
            raise UserError(f"{where}: receiver_output: breaks a constraint of its own line; mend it")
        found.append(episode)
    if not found:
        raise UserError(f"{path}: no episodes; write one JSON object a line")
    return found


def with_messages(played: Sequence[Episode], messages: Sequence[str]) -> list[Episode]:
    """The same episodes with A's message in other words."""
    return [replace(episode, message=text) for episode, text in zip(played, messages, strict=True)]
