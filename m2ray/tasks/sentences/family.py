"""The family of tasks in natural language: `sentences-NxM`; `sentences` is short for `sentences-5x4`.

A gets N sentences about people and places, of M kinds (where someone lives, who is the mayor of a town, ...). B
gets a question about one of them and answers in free text. Each sentence is a fact: a subject, a relation and a
value, in one of several wordings. Who lives where is drawn at random, so knowledge of the world does not help.

People and towns have about two sentences each and a relation may occur several times, so that B needs both the
subject and the relation to find the asked sentence. No name or value of a message is part of another one.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from m2ray.tasks.episodes import part_of, task_name
from m2ray.tasks.held_out import HeldOut
from m2ray.tasks.level import shuffled
from m2ray.tasks.sentences.data import data_version, pool
from m2ray.tasks.sentences.relations import BY_NAME, RELATIONS, Relation
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError

MAX_SENTENCES = 32
DEFAULT = "sentences-5x4"
PROMPT = "{{message}}\n\nQuestion: {question}\nAnswer with a few words.\nAnswer:"
NEAR_STREAM = "near"  # keeps the random numbers of changed messages apart from those of episodes
_MAX_DRAWS = 100_000

Below = Callable[[int], int]  # `below(n)` is a whole number from 0 to n - 1: the only source of randomness


class SentenceFact(NamedTuple):
    """One sentence: it states the value of a relation for a subject."""

    relation: str
    subject: str
    value: str
    wording: int = 0

    def fact(self) -> SentenceFact:
        """Return the same fact in the canonical wording."""
        return self._replace(wording=0)

    def item(self) -> SentenceItem:
        """Return the relation and value, whatever the subject: what `held_out` chooses among."""
        return SentenceItem(self.relation, self.value)

    def __str__(self) -> str:
        return BY_NAME[self.relation].wordings[self.wording].format(s=self.subject, v=self.value)


class SentenceItem(NamedTuple):
    """A value of a relation, such as a town that someone lives in."""

    relation: str
    value: str

    def fact(self) -> SentenceItem:
        """Return the item itself, its only form."""
        return self

    def __str__(self) -> str:
        return f"{self.relation}: {self.value}"


@dataclass(frozen=True)
class SentenceEpisode:
    """Episode of a seed: A's sentences as facts, in order, and the one that B is asked about."""

    level: SentencesLevel
    seed: int
    part: str
    facts: tuple[SentenceFact, ...]
    asked: int  # index of the asked fact
    question: int  # index of the question's wording
    held_out: HeldOut | None = None

    @property
    def task(self) -> str:
        """Name of the task, for rows."""
        return task_name(self.level, self.held_out)

    @property
    def message(self) -> str:
        """A's sentences as text."""
        return write_sentences(self.facts)

    @property
    def targets(self) -> tuple[str, ...]:
        """The answers that count as right."""
        return (self.facts[self.asked].value,)

    @property
    def text(self) -> TextEpisode:
        """The episode as text. Its id names task, part and seed; it is a group by itself."""
        fact = self.facts[self.asked]
        question = BY_NAME[fact.relation].questions[self.question].format(s=fact.subject)
        name = f"{self.task}/{self.part}/{self.seed}"
        rng = random.Random(f"{NEAR_STREAM}/{self.seed}")
        near = self.near(lambda n: int(rng.random() * n)).message
        units = tuple(map(str, self.facts))
        prompt = PROMPT.format(question=question)
        return TextEpisode(name, self.message, prompt, self.targets, (), name, near, self.seed, units)

    def near(self, below: Below) -> SentenceEpisode:
        """Return the episode with exactly one fact changed: the asked one has another value, so the answer too."""
        used = [text for fact in self.facts for text in (fact.subject, fact.value)]
        fact = self.facts[self.asked]
        changed = fact._replace(value=_draw_name(BY_NAME[fact.relation].value, used, below))
        return replace(self, facts=(*self.facts[: self.asked], changed, *self.facts[self.asked + 1 :]))


def write_sentences(facts: Iterable[SentenceFact]) -> str:
    """Return facts as text, one sentence after the other."""
    return " ".join(map(str, facts))


@dataclass(frozen=True)
class SentencesLevel:
    """A task of `sentences` sentences of the first `relations` kinds."""

    name: str
    sentences: int
    relations: int

    @property
    def data(self) -> str:
        """Version and digest of the names and values. Episodes of two of them are not all the same."""
        return data_version()

    @property
    def sent_facts(self) -> int:
        """Number of sentences in every message, unless `held_out` sets other lengths."""
        return self.sentences

    @property
    def message_lengths(self) -> range:
        """Numbers of sentences that `held_out` can set."""
        return range(1, MAX_SENTENCES + 1)

    def draw(self, seed: int, part: str = "confirm", held_out: HeldOut | None = None) -> SentenceEpisode:
        """Draw the episode of a seed, the same on every machine and Python.

        It uses only `Random.random`, the one method with a sequence that Python promises to keep.

        Args:
            seed: Any integer >= 0.
            part: The part (train, search, select or confirm) that its message must belong to, by the hash of its
                facts. Draws are repeated until it does.
            held_out: What only messages of confirm contain; then all messages of confirm contain some of it. A
                fact here is a value of a relation, whatever the subject: if `home: Ghent` is held out, nobody
                lives in Ghent in any other part.

        Raises:
            UserError: no message of that part suits the held-out items.
        """
        rng = random.Random(seed)

        def below(n: int) -> int:
            return int(rng.random() * n)

        lengths = held_out.drawn_lengths(self, part) if held_out else ()
        for _ in range(_MAX_DRAWS):
            count = lengths[below(len(lengths))] if lengths else self.sentences
            facts = self._draw_facts(count, below)
            if part_of(facts) != part:
                continue
            if held_out and held_out.holds(fact.item() for fact in facts) != (part == "confirm"):
                continue
            asked = below(count)
            question = below(len(BY_NAME[facts[asked].relation].questions))
            return SentenceEpisode(self, seed, part, facts, asked, question, held_out)
        fix = "raise" if part == "confirm" else "lower"
        raise UserError(f"held_out: level {self.name} has no message for part {part!r}; {fix} the shares")

    def _draw_facts(self, count: int, below: Below) -> tuple[SentenceFact, ...]:
        """Draw so many facts, in random order: each relation about equally often, subjects with about two each."""
        chosen: list[Relation] = []
        while len(chosen) < count:
            chosen += shuffled(RELATIONS[: self.relations], below)[: count - len(chosen)]
        used: list[str] = []
        subjects: dict[str, list[str]] = {}
        for kind in ("person", "city"):
            of_kind = Counter(relation.name for relation in chosen if relation.subject == kind)
            needed = max([(of_kind.total() + 1) // 2, *of_kind.values()])
            subjects[kind] = [_draw_name(kind, used, below) for _ in range(needed)]
        facts = []
        uses: Counter[str] = Counter()
        stated: set[tuple[str, str]] = set()
        for relation in sorted(chosen, key=RELATIONS.index):
            free = [name for name in subjects[relation.subject] if (relation.name, name) not in stated]
            fewest = min(uses[name] for name in free)
            open_names = [name for name in free if uses[name] == fewest]
            subject = open_names[below(len(open_names))]
            uses[subject] += 1
            stated.add((relation.name, subject))
            value = _draw_name(relation.value, used, below)
            facts.append(SentenceFact(relation.name, subject, value, below(len(relation.wordings))))
        return tuple(shuffled(facts, below))


def _draw_name(kind: str, used: list[str], below: Below) -> str:
    """Draw a value that shares no word with the used ones (so none is part of another), and add it to these."""
    taken = {word for text in used for word in text.lower().split()}
    while True:
        value = pool(kind).pick(below(2**32))
        if taken.isdisjoint(value.lower().split()):
            used.append(value)
            return value


def level_of(name: str) -> SentencesLevel | None:
    """Return a level of this family, or None; N is from 2 to 32 and M from 1 to 12."""
    match = re.fullmatch(r"sentences-([1-9]\d?)x([1-9]\d?)", DEFAULT if name == "sentences" else name)
    if match is None:
        return None
    sentences, relations = int(match[1]), int(match[2])
    if not (2 <= sentences <= MAX_SENTENCES and relations <= len(RELATIONS)):
        return None
    return SentencesLevel(f"sentences-{sentences}x{relations}", sentences, relations)


def sentence_episodes(
    level: SentencesLevel, seeds: Sequence[int], part: str = "confirm", held_out: HeldOut | None = None
) -> list[SentenceEpisode]:
    """Draw the episodes of some seeds, in order; the arguments are those of `SentencesLevel.draw`."""
    return [level.draw(seed, part, held_out) for seed in seeds]
