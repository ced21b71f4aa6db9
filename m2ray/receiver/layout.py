"""B's prompt as tokens: the wording around the slots, the answer, and rows of both as one padded batch.

A prompt is three runs of tokens, made once and never merged across their borders: `before` + the message's slots +
`after`. In the text conditions the slots hold the message's tokens, in the latent conditions k vectors (there, or
before or after the whole prompt), in P0 nothing: everything else B sees is the same, token for token, whatever the
message says.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jinja2
import torch
from torch import Tensor

from m2ray.receiver.prompts import CARD, STYLES
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import Episode
from m2ray.tasks.level import Level
from m2ray.util.errors import UserError

Place = Literal["message", "before", "after"]


CACHED_TEXTS = 20_000  # whose tokens are known


MIN_CACHED_TOKENS = 16  # tokens; a copied cache of fewer costs more than reading them again


class AnswerFrame(NamedTuple):
    """The tokens that every answer of a level shares, and where its values go."""

    ids_A: Tensor  # with the values of the all-zero answer, ending in the end-of-turn token
    places_V: Tensor
    values_VN: Tensor  # the token that writes value n in place v


class Layout(NamedTuple):
    """Rows ready for the receiver, padded on the right. Slots hold a padding token until vectors replace it."""

    ids_BT: Tensor
    slots_BK: Tensor
    answer_B: Tensor  # position of the first answer token
    behind_B: Tensor  # tokens of B's prompt behind the message's place
    known_B: Tensor  # first tokens of a row whose KV cache is kept (`m2ray.starts`); the forward pass skips them

    def repeat(self, times: int) -> Layout:
        """The same rows so many times over."""
        return Layout(*(field.repeat(times, *[1] * (field.ndim - 1)) for field in self))

    def to(self, device: torch.device) -> Layout:
        """The same rows there."""
        return Layout(*(field.to(device) for field in self))

    def starts(self) -> list[list[int]]:
        """The known tokens of each row."""
        return [row[:known] for row, known in zip(self.ids_BT.tolist(), self.known_B.tolist(), strict=True)]


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Integer rows of any length as one [B, T] tensor, padded on the right."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long).reshape(
        len(rows), width
    )


class PromptBuilder:
    """How a tokenizer and a prompt style put an episode: prompts, answers, and rows of both.

    Args:
        tokenizer: The receiver's.
        style: One of `m2ray.prompt.STYLES`.
        name: The receiver's, for errors.
        max_positions: Its context length in tokens.
    """

    def __init__(self, tokenizer: Any, style: str, name: str, max_positions: int) -> None:
        self.tokenizer = tokenizer
        self.style_name = style
        self.style = STYLES[style]
        self.name = name
        self.max_positions = max_positions
        self._half = lru_cache(CACHED_TEXTS)(self._render)
        self._ids = lru_cache(CACHED_TEXTS)(self._tokenize)
        self._frames: dict[Level, AnswerFrame] = {}

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, with no special tokens added."""
        return list(self._ids(text))

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, episode: Episode) -> tuple[list[int], list[int]]:
        """Token ids before and after the slots of B's prompt. Never depends on the message."""
        return self._half(episode.level, "")[0], self._half(episode.level, episode.context)[1]

    def _render(self, level: Level, context: str) -> tuple[list[int], list[int]]:
        facts = {"names": ", ".join(level.names), "top": level.domain - 1}
        slot = "\x00"
        text = self.style.user.format(message=slot, context=context, **facts)
        if self.style.chat:
            turns = [{"role": "system", "content": self.style.system}, {"role": "user", "content": text}]
            try:
                text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except jinja2.TemplateError as error:
                raise UserError(
                    f"receiver {self.name}: its chat template fails ({error}); put {CARD} with "
                    '{"style": "plain"} into its folder'
                ) from None
        before, after = text.split(slot)
        return self.tokens(before), self.tokens(after)

    def frame(self, level: Level) -> AnswerFrame:
        """The answer's tokens at a level.

        Raises:
            UserError: the tokenizer does not know a word of the level, or does not write each value of the domain
                as one token of its own.
        """
        if level not in self._frames:
            unknown = self.tokenizer.unk_token_id
            lacking = [word for word in level.words if unknown is not None and unknown in self.tokens(word)]
            if lacking:
                raise UserError(
                    f"receiver {self.name}: its vocabulary lacks words of level {level.name}, such as "
                    f"`{lacking[0]}`; use another receiver, or the level that it was trained on"
                )
            same = [[v] * level.variables for v in range(level.domain)]
            rows = [self.tokens(write_answer(level, values, self.style.answer)) for values in same]
            places = [i for i in range(len(rows[0])) if len({row[i] for row in rows if i < len(row)}) > 1]
            if len({len(row) for row in rows}) > 1 or len(places) != level.variables:
                raise UserError(
                    f"receiver {self.name}: writes values of level {level.name} in several tokens; "
                    "use a domain of at most 10"
                )
            end = self.tokenizer.eos_token_id
            values_VN = torch.tensor([[row[place] for row in rows] for place in places])
            self._frames[level] = AnswerFrame(torch.tensor([*rows[0], end]), torch.tensor(places), values_VN)
        return self._frames[level]

    def answers(self, level: Level, values_BV: Tensor) -> Tensor:
        """Answer token ids [B, A] that write the given values."""
        frame = self.frame(level)
        ids_BA = frame.ids_A.repeat(len(values_BV), 1)
        ids_BA[:, frame.places_V] = frame.values_VN.T.gather(0, values_BV)
        return ids_BA

    def layout(self, episodes: Sequence[Episode], texts: Sequence[str] | int, place: Place = "message") -> Layout:
        """Rows of B's prompt with its slots and the reference answer.

        Args:
            episodes: B rows of one level.
            texts: Text per row to stand in the message's place, or k, the number of slots to leave open.
            place: Open slots go in the message's place, before the whole prompt or after it, next to the answer.

        Raises:
            UserError: a row is longer than the receiver's context.
        """
        answers = self.answers(episodes[0].level, torch.tensor([e.solution for e in episodes])).tolist()
        rows, slots, starts, behind, known = [], [], [], [], []
        filler = self.tokenizer.eos_token_id
        for i, (episode, answer) in enumerate(zip(episodes, answers, strict=True)):
            before, after = self.prompt(episode)
            if isinstance(texts, int):
                row = before + after
                at = {"message": len(before), "before": 0, "after": len(row)}[place if texts else "message"]
                row = row[:at] + [filler] * texts + row[at:]
                slots.append(list(range(at, at + texts)))
            else:
                at = len(before)
                row = before + self.tokens(texts[i]) + after
                slots.append([])
            starts.append(len(row))
            behind.append(len(after) if at <= len(before) else 0)
            # What stands before message or slots is the same whatever they hold, and need not be read again.
            known.append(at if at >= MIN_CACHED_TOKENS else 0)
            rows.append(row + answer)
        ids_BT = pad(rows, filler)
        self._check_context(ids_BT.shape[1])
        slots_BK = torch.tensor(slots, dtype=torch.long).reshape(len(rows), -1)
        return Layout(ids_BT, slots_BK, torch.tensor(starts), torch.tensor(behind), torch.tensor(known))

    def _check_context(self, tokens: int) -> None:
        if tokens > self.max_positions:
            raise UserError(
                f"receiver {self.name}: {tokens} tokens with the prefix exceed its context of "
                f"{self.max_positions}; use a smaller k"
            )
