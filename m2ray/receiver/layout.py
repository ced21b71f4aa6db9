"""B's prompt as tokens: prompts, reference answers, and rows of both as one padded batch.

A prompt is three runs of tokens, tokenized apart and never merged across their borders: `before`, the message's
place, `after`. In the text conditions the place holds the message's tokens, in the latent conditions k open slots
(there, before or after the whole prompt, or behind B's half before the words that close the prompt), in P0
nothing. Everything else B sees is the same, token for token, whatever the message says.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain,
E end tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from m2ray.receiver.prompts import STYLES
from m2ray.receiver.references import AnswerFrame
from m2ray.receiver.tokenizing import CACHED_TEXTS, TextTokenizer
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.tasks.level import Level
from m2ray.tasks.text_episodes import TextEpisode, TextSetting
from m2ray.util.errors import UserError

Place = Literal["before", "message", "behind", "after"]
PLACES: tuple[Place, ...] = ("before", "message", "after")  # that checks test; `behind` runs as `after` does

_MARKER = "\x00"  # stands in the message's place while a prompt is rendered
UNLIMITED = 1 << 30  # tokens
MIN_CACHED_TOKENS = 16  # copying a KV cache of fewer tokens costs more than running them again


class Layout(NamedTuple):
    """Rows ready for the receiver, padded on the right. Slots hold a filler token until vectors replace it."""

    ids_BT: Tensor
    slots_BK: Tensor
    answer_B: Tensor  # position of the first answer token
    after_B: Tensor  # number of prompt tokens after the message's place
    cached_B: Tensor  # number of leading tokens whose KV cache is kept; the forward pass skips them

    def repeat(self, times: int) -> Layout:
        """Return the batch repeated along its rows."""
        return Layout(*(field.repeat(times, *[1] * (field.ndim - 1)) for field in self))

    def to(self, device: torch.device) -> Layout:
        """Return the batch on a device."""
        return Layout(*(field.to(device) for field in self))

    def cached_tokens(self) -> list[list[int]]:
        """Return each row's leading tokens whose KV cache is kept."""
        return [row[:count] for row, count in zip(self.ids_BT.tolist(), self.cached_B.tolist(), strict=True)]


def context_length(config: Any) -> int:
    """Return a model's context length in tokens; a model without a limit has a very large one."""
    text_config = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    lengths = [getattr(text_config, name, None) for name in names]
    return next((length for length in lengths if isinstance(length, int) and length > 0), UNLIMITED)


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return integer rows of any length as one [B, T] tensor, padded on the right."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long).reshape(
        len(rows), width
    )


class PromptBuilder(TextTokenizer):
    """Builds prompts and answers as token ids for one tokenizer and prompt style.

    Args:
        tokenizer: The receiver's tokenizer.
        style: A name in `m2ray.receiver.prompts.STYLES`.
        name: The receiver's name, for error messages.
        config: The model's configuration.
        generation_config: The model's generation configuration, if it has one.
    """

    def __init__(self, tokenizer: Any, style: str, name: str, config: Any, generation_config: Any) -> None:
        super().__init__(tokenizer, name, config, generation_config)
        self.style_name = style
        self.style = STYLES[style]
        self.max_positions = context_length(config)
        self._halves = lru_cache(CACHED_TEXTS)(self._render)
        self._text_halves = lru_cache(CACHED_TEXTS)(self._render_text)
        self._stop_tokens = lru_cache(16)(self._find_stop_tokens)
        self._closings = lru_cache(CACHED_TEXTS)(self._count_closing)
        self._frames: dict[Level, AnswerFrame] = {}

    def prompt_ids(self, episode: AnyEpisode) -> tuple[list[int], list[int]]:
        """Return the token ids of B's prompt before and after the message's place.

        They never depend on the message.
        """
        if isinstance(episode, TextEpisode):
            return self._text_halves(episode.rules.system, episode.rules.opening, *episode.prompt_parts())
        return self._halves(episode.level, episode.context)

    def closing(self, episode: AnyEpisode) -> int:
        """Return how many tokens at the end of B's prompt are the style's: those that follow B's half."""
        if isinstance(episode, TextEpisode):
            rules = episode.rules
            return self._closings(None, rules.system, rules.opening)
        return self._closings(episode.level, "", "")

    def _count_closing(self, level: Level | None, system: str, opening: str) -> int:
        """Count the last tokens that two prompts share whose halves of B end in different tokens."""
        ends = ("0", "1")
        if level is None:
            first, second = (self._render_text(system, opening, "", end)[1] for end in ends)
        else:
            facts = (f"{level.names[0]} = {end}" for end in ends)
            first, second = (self._render(level, fact)[1] for fact in facts)
        shared = (a == b for a, b in zip(reversed(first), reversed(second), strict=False))
        return sum(itertools.takewhile(bool, shared))

    def _render(self, level: Level, context: str) -> tuple[list[int], list[int]]:
        fields = {"names": ", ".join(level.names), "top": level.domain - 1}
        user = self.style.user.format(message=_MARKER, context=context, **fields)
        return self._prompt_halves(self.style.system, user)

    def _render_text(self, system: str, opening: str, before: str, after: str) -> tuple[list[int], list[int]]:
        return self._prompt_halves(system, f"{opening}{before}{_MARKER}{after}")

    def _prompt_halves(self, system: str, text: str) -> tuple[list[int], list[int]]:
        if self.style.chat:
            text = self.render_chat(system, text)
        before, after = text.split(_MARKER)
        # A chat template writes the opening tokens itself.
        opening = [] if self.style.chat else self.opening_ids
        return [*opening, *self.tokens(before)], self.tokens(after)

    def answer_frame(self, level: Level) -> AnswerFrame:
        """Return the tokens of a level's answers.

        Raises:
            UserError: the tokenizer lacks a word of the level, or writes a value of its domain as several tokens.
        """
        if level not in self._frames:
            self._frames[level] = self._build_frame(level)
        return self._frames[level]

    def _build_frame(self, level: Level) -> AnswerFrame:
        for word in level.words:
            try:
                self.tokens(word)
            except UserError:
                raise UserError(
                    f"receiver {self.name}: its vocabulary lacks words of level {level.name}, such as "
                    f"`{word}`; use another receiver, or the level that it was trained on"
                ) from None
        # Answers that repeat one value differ exactly where values stand.
        repeated = [[value] * level.variables for value in range(level.domain)]
        rows = [self.tokens(write_answer(level, values, self.style.answer)) for values in repeated]
        positions = [i for i in range(len(rows[0])) if len({row[i] for row in rows if i < len(row)}) > 1]
        if len({len(row) for row in rows}) > 1 or len(positions) != level.variables:
            raise UserError(
                f"receiver {self.name}: writes values of level {level.name} in several tokens; "
                "use a domain of at most 10"
            )
        values_VN = torch.tensor([[row[position] for row in rows] for position in positions])
        ids_A = torch.tensor([*rows[0], self.end_id(self.style.chat)])
        return AnswerFrame(ids_A, torch.tensor(positions), values_VN, torch.tensor(sorted(self.end_ids)))

    def answer_ids(self, level: Level, values_BV: Tensor) -> Tensor:
        """Return the token ids [B, A] of answers with the given values."""
        frame = self.answer_frame(level)
        ids_BA = frame.ids_A.repeat(len(values_BV), 1)
        ids_BA[:, frame.positions_V] = frame.values_VN.T.gather(0, values_BV)
        return ids_BA

    # --- answers in free text ---

    def stop_texts(self, setting: TextSetting) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        if setting.stop is not None:
            return setting.stop
        return () if self.style.chat else ("\n",)

    def stop_tokens(self, setting: TextSetting) -> frozenset[int]:
        """Return the tokens that hold a text that ends an answer."""
        return self._stop_tokens(self.stop_texts(setting))

    def _find_stop_tokens(self, stops: tuple[str, ...]) -> frozenset[int]:
        if not stops:
            return frozenset()
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return frozenset(token for token, text in enumerate(texts) if any(stop in text for stop in stops))

    def text_answer_ids(self, episode: TextEpisode, answer: str) -> list[int]:
        """Return the token ids of an answer in free text, up to the token that ends it.

        It follows the prompt after a space, except in a chat and where the prompt ends in white space.
        """
        joined = self.style.chat or episode.prompt[-1:].isspace()
        stops = self.stop_texts(episode.rules)
        ends = sorted(self.stop_tokens(episode.rules) & set(self.tokens_of_part(stops[0]))) if stops else []
        end = ends[0] if ends else self.end_id(self.style.chat)
        return [*self.tokens(answer if joined else f" {answer}"), end]

    def reference_ids(self, episodes: Sequence[AnyEpisode]) -> list[list[int]]:
        """Return the token ids of each episode's reference answer, its end included."""
        first = episodes[0]
        if isinstance(first, TextEpisode):
            return [self.text_answer_ids(e, e.targets[0]) for e in episodes if isinstance(e, TextEpisode)]
        solutions = [e.solution for e in episodes if isinstance(e, Episode)]
        rows: list[list[int]] = self.answer_ids(first.level, torch.tensor(solutions)).tolist()
        return rows

    def layout(
        self,
        episodes: Sequence[AnyEpisode],
        texts: Sequence[str] | int,
        place: Place = "message",
        open_texts: bool = False,
    ) -> Layout:
        """Return rows of B's prompt, with open slots or a text, and the reference answer.

        Args:
            episodes: B rows of one task.
            texts: A text per row for the message's place, or k, the number of slots to leave open.
            place: Where open slots go: in the message's place, before the whole prompt, behind B's half of the
                task and before the words that close the prompt, or after all of it, next to the answer.
            open_texts: The texts' tokens are slots, for vectors that take the place of their embeddings; all rows
                have as many.

        Raises:
            UserError: a row is longer than the receiver's context, or the tokenizer lacks a part of a text.
        """
        answers = pad(self.reference_ids(episodes), self.pad_id).tolist()
        rows, slots, answer_starts, after_counts, cached_counts = [], [], [], [], []
        for i, (episode, answer) in enumerate(zip(episodes, answers, strict=True)):
            before, after = self.prompt_ids(episode)
            if isinstance(texts, int):
                row = before + after
                at = self._slots_at(episode, len(before), len(row), place) if texts else len(before)
                row = row[:at] + [self.slot_id] * texts + row[at:]
                slots.append(list(range(at, at + texts)))
            else:
                at = len(before)
                message = self._text_ids(texts[i], episode)
                row = before + message + after
                slots.append(list(range(at, at + len(message))) if open_texts else [])
            answer_starts.append(len(row))
            after_counts.append(min(len(after), len(row) - at - len(slots[-1])) if slots[-1] else len(after))
            # The tokens before message or slots are the same whatever those hold: their KV cache can be kept.
            cached_counts.append(at if at >= MIN_CACHED_TOKENS else 0)
            rows.append(row + answer)
        ids_BT = pad(rows, self.pad_id)
        self._check_context(ids_BT.shape[1])
        slots_BK = torch.tensor(slots, dtype=torch.long).reshape(len(rows), -1)
        return Layout(ids_BT, slots_BK, *map(torch.tensor, (answer_starts, after_counts, cached_counts)))

    def _slots_at(self, episode: AnyEpisode, before: int, whole: int, place: Place) -> int:
        """Return where slots go in a prompt of `whole` tokens, `before` of them before the message's place."""
        if place == "behind":
            return whole - self.closing(episode)
        return {"message": before, "before": 0, "after": whole}[place]

    def _text_ids(self, text: str, episode: AnyEpisode) -> list[int]:
        """Return the token ids of a text for the message's place; the beginning of a message may end in a word."""
        cut = text != episode.message and episode.message.startswith(text)
        return self.tokens_of_part(text) if cut else self.tokens(text)

    def _check_context(self, tokens: int) -> None:
        if tokens > self.max_positions:
            raise UserError(
                f"receiver {self.name}: {tokens} tokens with the prefix exceed its context of "
                f"{self.max_positions}; use a smaller k"
            )
