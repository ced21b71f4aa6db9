"""Scorers of free-text answers: a number from 0 to 1, and the threshold from which an answer is a success.

`exact`, `f1` and the normalization of text follow the official script of SQuAD 1.1 (`evaluate-v1.1.py`; Rajpurkar
et al. 2016, arXiv 1606.05250). With several right answers the best score counts, as it does there.
"""

from __future__ import annotations

import difflib
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import StrictModel, validate

Threshold = Annotated[float, Field(gt=0, le=1, description="least score of a success")]
Normalize = Annotated[
    bool, Field(description="ignore case, punctuation, English articles and extra spaces, as SQuAD's script does")
]


class Scorer(Protocol):
    """Score of an answer."""

    @property
    def threshold(self) -> float:
        """Least score of a success."""

    def score(self, answer: str, targets: Sequence[str]) -> float:
        """Return the score of B's answer, from 0 to 1: the best over the answers that count as right."""

    def check_episode(self, episode: TextEpisode, where: str) -> None:
        """Refuse an episode that cannot be scored, or that any answer would solve.

        Args:
            episode: The episode.
            where: The text that errors start with, usually the file and line.

        Raises:
            UserError: names the key and the fix.
        """


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return text in lower case, without ASCII punctuation, English articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


class _TextScorer(StrictModel):
    """Scorer that compares an answer with each target by itself."""

    threshold: Threshold = 1.0

    def score(self, answer: str, targets: Sequence[str]) -> float:
        """Implement `Scorer.score`."""
        return max(self._compare(answer, target) for target in targets)

    def check_episode(self, episode: TextEpisode, where: str) -> None:
        """Implement `Scorer.check_episode`."""
        for target in episode.targets:
            self._check_target(target, where)

    def _compare(self, answer: str, target: str) -> float:
        raise NotImplementedError

    def _check_target(self, target: str, where: str) -> None:
        """Refuse a target that cannot be compared with; most scorers accept all."""


def _check_not_empty(target: str, where: str, fix: str) -> None:
    """Refuse a target of which normalization leaves nothing: empty answers would be right, or no answer at all."""
    if not normalize(target):
        raise UserError(
            f"{where}: target: {target[:60]!r} is empty without articles, punctuation and spaces; {fix}"
        )


class Exact(_TextScorer):
    """Exact match: 1 if answer and target are equal.

    Without `normalize` they are equal if they are the same text but for spaces at both ends.
    """

    normalize: Normalize = True

    def _compare(self, answer: str, target: str) -> float:
        if self.normalize:
            return float(normalize(answer) == normalize(target))
        return float(answer.strip() == target.strip())

    def _check_target(self, target: str, where: str) -> None:
        if self.normalize:
            _check_not_empty(target, where, "set normalize: false")


class Contains(_TextScorer):
    """1 if the target occurs in the answer; with `normalize`, as whole words."""

    normalize: Normalize = True

    def _compare(self, answer: str, target: str) -> float:
        if self.normalize:
            return float(f" {normalize(target)} " in f" {normalize(answer)} ")
        return float(target.strip() in answer)

    def _check_target(self, target: str, where: str) -> None:
        if self.normalize:
            _check_not_empty(target, where, "set normalize: false")


class Regex(_TextScorer):
    """1 if the target, a regular expression of Python's `re`, is found in the answer.

    With `full` it must match the whole answer but for spaces at both ends. `.` also matches a line break.
    """

    ignore_case: Annotated[bool, Field(description="ignore the case of letters")] = False
    full: Annotated[bool, Field(description="match the whole answer, not a part of it")] = False

    def _compare(self, answer: str, target: str) -> float:
        pattern = _compile(target, self.ignore_case)
        return float(bool(pattern.fullmatch(answer.strip()) if self.full else pattern.search(answer)))

    def _check_target(self, target: str, where: str) -> None:
        try:
            pattern = _compile(target, self.ignore_case)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{where}: target: {target[:60]!r} is not a regular expression ({error}); fix it"
            ) from None
        if pattern.search(""):
            raise UserError(f"{where}: target: {target[:60]!r} matches an empty answer; write a narrower pattern")


@lru_cache(maxsize=10_000)
def _compile(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # sets in sets may mean something else in a later Python
        return re.compile(pattern, re.DOTALL | (re.IGNORECASE if ignore_case else re.RegexFlag(0)))


class F1(_TextScorer):
    """Harmonic mean of precision and recall over the words of the answer, normalized and counted."""

    threshold: Threshold = 0.5

    def _compare(self, answer: str, target: str) -> float:
        answer_words, target_words = normalize(answer).split(), normalize(target).split()
        common = (Counter(answer_words) & Counter(target_words)).total()
        if common == 0:
            return 0.0
        precision, recall = common / len(answer_words), common / len(target_words)
        return 2 * precision * recall / (precision + recall)

    def _check_target(self, target: str, where: str) -> None:
        _check_not_empty(target, where, "use scorer exact with normalize: false")


class RougeL(_TextScorer):
    """F-measure of the longest common subsequence of words (Lin 2004), by the package `rouge-score`."""

    threshold: Threshold = 0.5
    stem: Annotated[bool, Field(description="compare the stems of English words (Porter)")] = False

    def _compare(self, answer: str, target: str) -> float:
        return float(_rouge_l(self.stem)(target, answer)["rougeL"].fmeasure)

    def _check_target(self, target: str, where: str) -> None:
        # The package compares runs of ASCII letters and digits only.
        if not re.search("[a-z0-9]", target.lower()):
            raise UserError(
                f"{where}: target: {target[:60]!r} has no ASCII letter or digit, and rouge_l compares "
                "nothing else; use scorer contains or exact"
            )


@lru_cache
def _rouge_l(stem: bool) -> Callable[[str, str], dict[str, Any]]:
    from rouge_score.rouge_scorer import RougeScorer  # loads nltk, which takes a second

    return RougeScorer(["rougeL"], use_stemmer=stem).score


class Choice(_TextScorer):
    """1 if the picked choice is a right answer. B does not write: the likeliest choice is picked."""

    length: Annotated[
        Literal["none", "tokens", "bytes"],
        Field(description="divide a choice's log-likelihood by its length in these units"),
    ] = "none"

    def pick(self, choices: Sequence[str], log_likelihoods: Sequence[float], tokens: Sequence[int]) -> str:
        """Return the likeliest choice; of equal ones, the first.

        Args:
            choices: The answers to choose from.
            log_likelihoods: The sum over the tokens of each choice, after B's prompt, in nats.
            tokens: The number of tokens of each choice.
        """
        units: dict[str, Sequence[int]] = {
            "none": [1] * len(choices),
            "tokens": tokens,
            "bytes": [len(choice.encode()) for choice in choices],
        }
        scores = [value / unit for value, unit in zip(log_likelihoods, units[self.length], strict=True)]
        return choices[scores.index(max(scores))]

    def _compare(self, answer: str, target: str) -> float:
        return float(answer == target)

    def check_episode(self, episode: TextEpisode, where: str) -> None:
        """Implement `Scorer.check_episode`: some choices are right and some are wrong."""
        if not episode.choices:
            raise UserError(
                f"{where}: choices: missing, but scorer choice needs them; add them or use scorer exact"
            )
        wrong = [target for target in episode.targets if target not in episode.choices]
        if wrong:
            raise UserError(
                f"{where}: target: {wrong[0][:60]!r} is not among the choices; write it as it is there"
            )
        if len(episode.targets) == len(episode.choices):
            raise UserError(f"{where}: target: all choices are right; remove those that are wrong")


SCORERS: dict[str, type[_TextScorer]] = {
    "exact": Exact,
    "contains": Contains,
    "regex": Regex,
    "f1": F1,
    "choice": Choice,
    "rouge_l": RougeL,
}


def scorer(name: str, **options: Any) -> Scorer:
    """Return the scorer of a name.

    Args:
        name: `exact`, `contains`, `regex`, `f1`, `choice` or `rouge_l`.
        **options: `threshold`, and the fields of the scorer's class.

    Raises:
        UserError: the scorer or an option does not exist, or an option has a wrong value.
    """
    if not isinstance(name, str) or name not in SCORERS:
        close = difflib.get_close_matches(str(name), SCORERS, n=1)
        fix = f"did you mean `{close[0]}`?" if close else f"use {', '.join(SCORERS)}"
        raise UserError(f"scorer: {name!r:.60} does not exist; {fix}")
    return validate(SCORERS[name], options, f"scorer {name}")
