"""Facts, pairs of facts and message lengths that only messages of the confirm part contain.

Without this, an unseen message is a new combination of facts that training messages stated, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from typing import Annotated, Protocol

from pydantic import Field, model_validator

from m2ray.tasks.level import Fact
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import Count, StrictModel

HeldOutShare = Annotated[float, Field(ge=0, lt=1)]
# `strict=False` accepts the lists of YAML and JSON; a tuple can be hashed. The numbers in it are checked as ever.
Lengths = Annotated[tuple[Count, ...], Field(strict=False)]


class DrawnTask(Protocol):
    """Task that draws messages of facts: a puzzle level, or sentences."""

    @property
    def name(self) -> str:
        """Name of the task."""

    @property
    def sent_facts(self) -> int | None:
        """Number of facts in every message that is drawn; None if it varies."""

    @property
    def message_lengths(self) -> range:
        """Numbers of facts that messages can have; empty if these are fixed."""


class HeldOut(StrictModel):
    """Items that no message of train, search and select contains, and every message of confirm does.

    A message is held out if it states a held-out fact, states both facts of a held-out pair, or has a held-out
    length. Which facts and pairs are held out is decided by their hash, the same on every machine.
    """

    facts: Annotated[HeldOutShare, Field(description="share of all facts that A can state")] = 0.0
    pairs: Annotated[HeldOutShare, Field(description="share of all pairs of facts")] = 0.0
    lengths: Annotated[Lengths, Field(description="numbers of facts in A's half")] = ()
    trained_lengths: Annotated[
        Lengths,
        Field(description="the other numbers of facts in A's half, equally likely; left out: the level's own"),
    ] = ()

    @model_validator(mode="after")
    def _something(self) -> HeldOut:
        if not (self.facts or self.pairs or self.lengths):
            raise ValueError("holds out nothing; set facts, pairs or lengths, or remove it")
        if shared := set(self.lengths) & set(self.trained_lengths):
            raise ValueError(f"trained_lengths: {min(shared)} is also in lengths; remove it from one of the two")
        if self.trained_lengths and not self.lengths:
            raise ValueError("trained_lengths: needs lengths; set that or remove it")
        return self

    @property
    def digest(self) -> str:
        """Digest of all settings, which tells tasks apart."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def holds(self, message: Iterable[Fact]) -> bool:
        """Return whether a message is held out."""
        facts = sorted({fact.fact() for fact in message})
        if len(facts) in self.lengths or any(_chosen(self.facts, str(fact)) for fact in facts):
            return True
        return bool(self.pairs) and any(_chosen(self.pairs, f"{a}; {b}") for a, b in combinations(facts, 2))

    def drawn_lengths(self, level: DrawnTask, part: str) -> tuple[int, ...]:
        """Return the numbers of facts to draw for a part; empty where the level's own draw is kept.

        Raises:
            UserError: the level cannot draw such messages, or all of its lengths are held out.
        """
        if not self.lengths:
            return ()
        possible = level.message_lengths
        if not possible or level.sent_facts is None:
            raise UserError(f"held_out.lengths: level {level.name} draws messages of fixed lengths; remove it")
        for length in (*self.lengths, *self.trained_lengths):
            if length not in possible:
                raise UserError(
                    f"held_out.lengths: level {level.name} has no messages of {length} facts; use "
                    f"{possible.start} to {possible.stop - 1}"
                )
        trained = self.trained_lengths or tuple({level.sent_facts} - set(self.lengths))
        if not trained:
            raise UserError(
                f"held_out.lengths: {level.sent_facts} is the only length that level {level.name} draws by "
                "itself; add lengths to train on as held_out.trained_lengths"
            )
        if part != "confirm":
            return trained
        return (*trained, *self.lengths) if self.facts or self.pairs else self.lengths


@lru_cache(maxsize=1_000_000)
def _chosen(share: float, text: str) -> bool:
    """Return whether a text is among the share of all texts that its hash chooses."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
