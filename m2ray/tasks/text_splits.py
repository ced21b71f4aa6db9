"""Splits of text episodes, and the partners that `shuffle` takes messages from.

A group belongs to one part (train, search, select or confirm), by the SHA-256 digest of its name: the same on
every machine, whatever else the file holds. Groups with near-duplicate messages count as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from m2ray.tasks.episodes import PARTS, part_of_hash
from m2ray.tasks.level import shuffled
from m2ray.tasks.near_duplicates import similar_pairs
from m2ray.tasks.text_episodes import TextEpisode, simplify
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root, keep_json
from m2ray.util.text import pluralize

SIMILARITY = 0.8  # Jaccard similarity from which two messages are near-duplicates
_MOST_SWAPS = 1_000
_KEPT_LINES = 5_000  # from so many episodes on, which take a second, parts are kept in the user's cache
_in_memory: dict[str, list[str]] = {}  # the parts of files by digest, for the other jobs of a process


def part_of_group(group: str) -> str:
    """Return the part of a group, chosen by its digest as a whole number."""
    return part_of_hash(int.from_bytes(hashlib.sha256(group.encode()).digest(), "big"))


def assign_parts(episodes: Sequence[TextEpisode], similarity: float | None = SIMILARITY) -> list[str]:
    """Return the part of each episode, so that near-duplicate messages and groups are never cut through.

    Args:
        episodes: All episodes of a task.
        similarity: See `clusters`.
    """
    return [part_of_group(cluster) for cluster in clusters(episodes, similarity)]


def parts_of_file(digest: str, fields: Mapping[str, str], episodes: Sequence[TextEpisode]) -> list[str]:
    """Return `assign_parts` of a file's episodes; it is computed once a process, for a large file once a user.

    Args:
        digest: Digest of the file's content.
        fields: The columns that its keys were read from.
        episodes: All of its episodes.
    """
    known = json.dumps([digest, sorted(fields.items()), code_digest()])
    key = hashlib.sha256(known.encode()).hexdigest()[:16]
    if key not in _in_memory:
        file = cache_root() / "text-parts" / f"{key}.json"
        parts = _read_parts(file, len(episodes))
        if parts is None:
            parts = assign_parts(episodes)
            if len(parts) >= _KEPT_LINES:
                keep_json(file, parts)
        _in_memory[key] = parts
    return _in_memory[key]


def _read_parts(file: Path, count: int) -> list[str] | None:
    """Return the parts in a file, or None if it does not hold so many."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged
        parts = json.loads(file.read_bytes())
        if isinstance(parts, list) and len(parts) == count and set(parts) <= set(PARTS):
            return parts
    return None


def episodes_of_part(
    episodes: Sequence[TextEpisode], part: str, similarity: float | None = SIMILARITY
) -> list[TextEpisode]:
    """Return the episodes of a part, in order.

    Raises:
        UserError: there are none, because there are too few groups.
    """
    names = clusters(episodes, similarity)
    chosen = [episode for episode, name in zip(episodes, names, strict=True) if part_of_group(name) == part]
    if not chosen:
        raise UserError(
            f"split {part}: none of the episodes, which form {pluralize(len(set(names)), 'group')}, belongs to it "
            "(groups with near-duplicate messages count as one); use more episodes, or a file for each split"
        )
    return chosen


def clusters(episodes: Sequence[TextEpisode], similarity: float | None = SIMILARITY) -> list[str]:
    """Return the cluster of each episode: its group, joined with all groups that have a near-duplicate message.

    Two messages are near-duplicates if they are equal but for case, spaces and punctuation, or if the Jaccard
    similarity of their sets of five-character pieces is at least `similarity`. Candidates are found by MinHash
    (Broder 1997) and then compared exactly.

    Args:
        episodes: All episodes of a task.
        similarity: The bound, above 0 and below 1; None compares for equality only, which is much faster.

    Returns:
        For each episode the name of the first of the joined groups, in the order of their names.

    Raises:
        UserError: the bound is out of range.
    """
    if similarity is not None and not 0 < similarity < 1:
        raise UserError(
            f"similarity: {similarity!r:.60} is not between 0 and 1; write a number such as {SIMILARITY}"
        )
    from scipy.cluster.hierarchy import DisjointSet  # slow to import

    joined = DisjointSet(episode.group for episode in episodes)
    groups: dict[str, str] = {}  # of each different message, without case, spaces and punctuation
    for episode in episodes:
        joined.merge(groups.setdefault(simplify(episode.message), episode.group), episode.group)
    if similarity is not None:
        texts = list(groups)
        own = [groups[text] for text in texts]
        for i, j in similar_pairs(texts, similarity, lambda i, j: joined.connected(own[i], own[j])):
            joined.merge(own[i], own[j])
    first: dict[str, str] = {}
    for group in sorted({episode.group for episode in episodes}):
        first.setdefault(joined[group], group)
    return [first[joined[episode.group]] for episode in episodes]


# --- shuffle -------------------------------------------------------------------------------------------------


def partners(episodes: Sequence[TextEpisode], seed: int = 0) -> list[int]:
    """Return whose message each episode gets under `shuffle`: one of another group and with another answer.

    It is a permutation, unless swaps find none, as where most episodes share one answer. Then some messages are
    used more than once and others are not.

    Args:
        episodes: The episodes to evaluate.
        seed: Seed of the permutation, which is the same on every machine.

    Raises:
        UserError: for some episode there is no such message, because there are too few groups or answers.
    """
    rng = random.Random(seed)

    def below(n: int) -> int:
        return int(rng.random() * n)

    order = shuffled(range(len(episodes)), below)
    chosen = dict(zip(order, order[1:] + order[:1], strict=True))
    allowed = _allowed(episodes)
    for i in order:
        if not allowed(i, chosen[i]):
            _swap(i, chosen, allowed, _from_random_start(order, below)[:_MOST_SWAPS])
    for i in order:
        if not allowed(i, chosen[i]):
            found = next((j for j in _from_random_start(order, below) if allowed(i, j)), None)
            if found is None:
                raise UserError(
                    f"condition shuffle: no message has another group and another answer than episode "
                    f"{episodes[i].id[:60]!r}; use episodes of more groups, or leave shuffle out"
                )
            chosen[i] = found
    return [chosen[i] for i in range(len(episodes))]


def _allowed(episodes: Sequence[TextEpisode]) -> Callable[[int, int], bool]:
    """Return a function that tells whether an episode (first) may get the message of another one (second)."""
    answers = [frozenset(map(simplify, episode.targets)) for episode in episodes]
    messages = [simplify(episode.message) for episode in episodes]
    groups = [episode.group for episode in episodes]

    def allowed(i: int, j: int) -> bool:
        return groups[i] != groups[j] and messages[i] != messages[j] and answers[i].isdisjoint(answers[j])

    return allowed


def _swap(i: int, chosen: dict[int, int], allowed: Callable[[int, int], bool], others: Sequence[int]) -> None:
    """Swap partners between an episode and the first of some others for which both are allowed."""
    for j in others:
        if allowed(i, chosen[j]) and allowed(j, chosen[i]):
            chosen[i], chosen[j] = chosen[j], chosen[i]
            return


def _from_random_start(order: list[int], below: Callable[[int], int]) -> list[int]:
    start = below(len(order))
    return order[start:] + order[:start]
