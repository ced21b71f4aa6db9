"""Success rates of perfect reasoners on a task, and the information in its messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from m2ray.tasks.episodes import Episode


class Ceilings(NamedTuple):
    """Success rates (shares) and information (bits) of one episode, or their means over several."""

    without_message: float  # a reasoner with B's half only
    with_message: float  # a reasoner with both halves
    wrong_message: float  # a reasoner with B's half who believes another episode's message
    blind: float  # a guess without any half
    message_bits: float  # log2 of the factor by which the message alone reduces the answers
    news_bits: float  # log2 of the factor by which the message reduces the answers left by B's half


def ceilings(episodes: Sequence[Episode], shift: int = 17) -> Ceilings:
    """Return the means over episodes for reasoners who guess uniformly among the answers they cannot rule out.

    Args:
        episodes: Episodes of one level.
        shift: The wrong message is that of the episode this many places later. If it contradicts B's half, no
            answer is left, which counts as a failure.
    """
    each = [
        _episode_ceilings(episode, episodes[(i + shift) % len(episodes)]) for i, episode in enumerate(episodes)
    ]
    return Ceilings(*(sum(column) / len(each) for column in zip(*each, strict=True)))


def _episode_ceilings(episode: Episode, partner: Episode) -> Ceilings:
    """Return the ceilings of one episode; the wrong message is the partner's."""
    count = episode.level.count_solutions
    answers = episode.level.domain**episode.level.variables
    right = count(episode.sender + episode.receiver)
    by_receiver, by_sender = count(episode.receiver), count(episode.sender)
    misled = count(partner.sender + episode.receiver)
    misled_and_right = count(partner.sender + episode.sender + episode.receiver)
    return Ceilings(
        without_message=right / by_receiver,
        with_message=1.0,
        wrong_message=misled_and_right / misled if misled else 0.0,
        blind=right / answers,
        message_bits=math.log2(answers / by_sender),
        news_bits=math.log2(by_receiver / right),
    )
