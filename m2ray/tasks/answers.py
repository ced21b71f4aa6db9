"""Answers: their two text forms, and the verifier."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from m2ray.tasks.episodes import AnyEpisode
from m2ray.tasks.level import Level, Values
from m2ray.tasks.text_episodes import TextEpisode

AnswerForm = Literal["json", "values"]


def write_answer(level: Level, values: Sequence[int], form: AnswerForm) -> str:
    """Return an answer in the form that B should write: `{"x1": 0, "x2": 2}` or `0 2`."""
    if form == "json":
        return json.dumps(dict(zip(level.names, values, strict=True)))
    return " ".join(str(value) for value in values)


def read_answer(level: Level, text: str, form: AnswerForm) -> Values | None:
    """Return the values in B's text, or None if it cannot be parsed.

    In the json form the first object in the text counts. Its keys must be exactly the level's names, and its
    values whole numbers. In the values form the text must be one whole number per variable and nothing else. A
    value outside the domain parses: the answer is wrong, not unreadable.
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
        # ValueError: faulty JSON, or a number of thousands of digits.
        return None
    if set(data) != set(level.names) or not all(type(value) is int for value in data.values()):
        return None
    return tuple(data[name] for name in level.names)


class Outcome(NamedTuple):
    """Judgement of an answer.

    Attributes:
        success: All checks of the level hold; in free text, the score reaches its threshold.
        parsed: The answer can be read; in free text, it is not empty.
        partial: The share of checks that hold; in free text, the score.
    """

    success: bool
    parsed: bool
    partial: float


def verify(episode: AnyEpisode, text: str, form: AnswerForm) -> Outcome:
    """Judge B's text. An answer that does not parse fails, with no partial credit."""
    if isinstance(episode, TextEpisode):
        scorer = episode.rules.scorer
        score = scorer.score(text, episode.targets)
        return Outcome(score >= scorer.threshold, bool(text.strip()), score)
    values = read_answer(episode.level, text, form)
    if values is None:
        return Outcome(False, False, 0.0)
    checks = episode.level.checks(episode.sender + episode.receiver, values)
    in_domain = all(0 <= value < episode.level.domain for value in values)
    return Outcome(in_domain and all(checks), True, sum(checks) / len(checks))
