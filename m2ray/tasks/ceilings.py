"""What perfect reasoners reach at a task, and what a message is worth to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from m2ray.tasks.episodes import Episode


class Ceilings(NamedTuple):
    """Success rates of perfect reasoners (shares) and the content of a message (bits), means over episodes."""

    without_message: float
    with_message: float
    wrong_message: float
    blind: float
    message_bits: float
    news_bits: float


def ceilings(played: Sequence[Episode], shift: int = 17) -> Ceilings:
    """What perfect reasoners reach who guess evenly among the answers they cannot rule out.

    Args:
        played: Episodes of one level.
        shift: The wrong message is that of the episode this many places on. One that contradicts B's own half
            leaves no answer and counts as a failure.
    """
    rows = []
    for i, episode in enumerate(played):
        count = episode.level.count_solutions
        wrong = played[(i + shift) % len(played)].sender
        every = episode.sender + episode.receiver
        everything = episode.level.domain**episode.level.variables
        both, alone, sent = count(every), count(episode.receiver), count(episode.sender)
        misled, lucky = count(wrong + episode.receiver), count(wrong + every)
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
