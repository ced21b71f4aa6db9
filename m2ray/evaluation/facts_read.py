"""Facts that B is seen to have read: the column `facts` of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2ray.tasks.answers import AnswerForm, read_answer
from m2ray.tasks.episodes import AnyEpisode, Episode, write_facts

READ, UNREAD, NOTHING_TO_READ = "1", "0", "-"


class FactReader:
    """Compares answers with the facts of messages, for the same episodes under every condition.

    Args:
        episodes: Episodes of one task.
        form: The form of B's answers.
    """

    def __init__(self, episodes: Sequence[AnyEpisode], form: AnswerForm) -> None:
        self._episodes, self._form = episodes, form
        self._open: dict[tuple[int, tuple[Any, ...]], list[bool]] = {}

    def column(
        self,
        answers: Sequence[str],
        partners: Sequence[int] | None = None,
        changed: Sequence[tuple[Any, ...]] | None = None,
    ) -> list[str]:
        """Return one character per fact of the message whose content B received, in the message's order.

        `1`: B's answer agrees with the fact; `0`: it does not, or cannot be parsed; `-`: the fact leaves nothing
        to read, since it contradicts B's half or B's half alone implies it. The text is empty for a message in
        free words, and for a task in free text: its facts are not known.

        Args:
            answers: B's answer in each episode.
            partners: Index of the episode whose message was used; by default each episode's own.
            changed: Facts of a message that no episode holds.
        """
        column = []
        for i, answer in enumerate(answers):
            source = self._episodes[partners[i] if partners else i]
            episode = self._episodes[i]
            if not isinstance(source, Episode) or not isinstance(episode, Episode):
                column.append("")
                continue
            facts = changed[i] if changed else source.sender
            in_template = source.message == write_facts(source.sender)
            column.append(self._facts_read(i, episode, facts, answer) if in_template else "")
        return column

    def _facts_read(self, i: int, episode: Episode, facts: tuple[Any, ...], answer: str) -> str:
        if (i, facts) not in self._open:
            self._open[i, facts] = leaves_open(episode, facts)
        values = read_answer(episode.level, answer, self._form)
        signs = []
        for fact, is_open in zip(facts, self._open[i, facts], strict=True):
            agrees = is_open and values is not None and episode.level.agrees(fact, episode.receiver, values)
            signs.append((READ if agrees else UNREAD) if is_open else NOTHING_TO_READ)
        return "".join(signs)


def leaves_open(episode: Episode, facts: Sequence[Any]) -> list[bool]:
    """Return for each fact whether some answers by B's half alone agree with it and others do not."""
    count, receiver = episode.level.count_solutions, episode.receiver
    return [0 < count((*receiver, fact)) < count(receiver) for fact in facts]
