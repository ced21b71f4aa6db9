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
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from m2ray.tasks.episodes import Episode
from m2ray.tasks.level import Level, Values

AnswerForm = Literal["json", "values"]


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
