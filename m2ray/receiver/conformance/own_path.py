"""The reference of a check: a model's own plain forward pass, and the rows it is run on.

Shapes: B rows, T positions, D width, W words of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from m2ray.receiver.conformance.measurement import ANSWER, relative_error
from m2ray.receiver.layout import UNLIMITED, Layout, Place, pad
from m2ray.receiver.model.causal_model import CausalModel, Ways
from m2ray.receiver.receiver import Receiver

# Largest error of a logit, in standard deviations of the model's own logits at a position.
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 3e-1}
NOISE = 3  # times what batch and length change in the model's own logits is never an error
# Whatever a model raises when it cannot be run in some way.
FAILURES = (
    RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError, NotImplementedError,
)  # fmt: skip
KEPT_ROWS, SHORT_ROW = 16, 80  # rows, and tokens of a row
_HORIZONS = ("window", "chunk", "original_max_position", "local_attention")


class OwnPath:
    """The model's own plain forward pass: one row, no padding, no cache."""

    def __init__(self, receiver: Receiver) -> None:
        self._exact = CausalModel(receiver.model, Ways())
        self.model = self._exact.own
        self._device = receiver.device
        self._by_embeddings = False
        self._can_skip = False
        self.answer_logits = cache(self._answer_logits)
        self._short_logits = lru_cache(KEPT_ROWS)(self._logits)

    def logits(self, row: Sequence[int], last: int | None = None, copies: int = 1) -> Tensor:
        """Return the logits [T, W] of a row of token ids, or of its last positions only.

        Those of recent short rows are kept: a check asks for some of them several times.
        """
        run = self._short_logits if len(row) <= SHORT_ROW else self._logits
        return run(tuple(row), last, copies)

    def _logits(self, row: tuple[int, ...], last: int | None, copies: int) -> Tensor:
        with torch.no_grad():
            ids_BT = torch.tensor([list(row)] * copies, device=self._device)
            logits_TW: Tensor = self.model(input_ids=ids_BT, use_cache=False, **self._keep(last)).logits[0]
            return logits_TW[-(last or len(row)) :]

    def _answer_logits(self, row: tuple[int, ...]) -> Tensor:
        """Return the logits [A, W] that predict the last tokens of a row. They are kept."""
        return self.logits(row[:-1], ANSWER)

    def logits_of_vectors(self, embeds_TD: Tensor, ids_T: Tensor, last: int | None = None) -> Tensor:
        """Return the logits [T, W] of a row of input embeddings, or of its last positions only."""
        if self._by_embeddings:
            arguments = {"inputs_embeds": embeds_TD[None], "use_cache": False, **self._keep(last)}
            logits_TW: Tensor = self.model(**arguments).logits[0]
        else:
            logits_TW = self._exact.run(embeds_TD[None], ids_T[None], **self._keep(last)).last_BTD[0]
        return logits_TW[-(last or len(ids_T)) :]

    def _keep(self, last: int | None) -> dict[str, Any]:
        return {"logits_to_keep": last} if last and self._can_skip else {}

    def modes(self) -> dict[str, str]:
        """Return the modes that the model's modules are in: their attributes that are words, by name."""
        return {
            f"{path}.{name}": value
            for path, module in self.model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, str)
        }

    def skip_logits(self, row: Sequence[int], bound: float) -> None:
        """Compute the logits of the last positions only where they are wanted, if the model does so exactly.

        With a large vocabulary, those of all positions take most of the time.
        """
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            whole_AW = self.logits(row)[-ANSWER:]
            self._can_skip = True
            last_AW = self.logits(row, ANSWER)
            self._can_skip = whole_AW.shape == last_AW.shape and relative_error(whole_AW, last_AW) <= bound
            if not self._can_skip:
                self._short_logits.cache_clear()

    def takes_embeddings(self, row: list[int], bound: float) -> bool:
        """Return whether the model gives the same logits for token ids and for their embeddings.

        Some look up the ids of the embeddings that they are given. So it must take vectors of no token, too.
        """
        ids_T = torch.tensor(row, device=self._device)
        try:
            with torch.no_grad():
                text_TD = self._exact.embed(ids_T[None])[0]
                vectors_TD = (text_TD + text_TD.flip(0)) / 2
                expected_TW = self.logits_of_vectors(vectors_TD, ids_T)
                self._by_embeddings = True
                errors = [
                    relative_error(self.logits(row), self.logits_of_vectors(text_TD, ids_T)),
                    relative_error(expected_TW, self.logits_of_vectors(vectors_TD, ids_T)),
                ]
                self._by_embeddings = max(errors) <= bound
        except FAILURES:
            self._by_embeddings = False
        return self._by_embeddings

    def bound(self, rows: list[list[int]]) -> float:
        """Return the largest relative error that counts as equal for the model's numeric type.

        In 16 bits a row alone, the same row in a batch of copies, and the same row followed by another token
        differ by rounding, which some models amplify.
        """
        dtype = next(self.model.parameters()).dtype
        if dtype in (torch.float32, torch.float64):
            return BOUNDS[dtype]
        noise = 0.0
        for row in rows:
            alone_TW = self.logits(row[:-1])
            others = (self.logits(row[:-1], copies=4), self.logits(row)[:-1])
            noise = max(noise, *(relative_error(alone_TW, other_TW) for other_TW in others))
        return max(BOUNDS[dtype], NOISE * noise)


class RandomRows:
    """Random rows of ordinary tokens."""

    def __init__(self, receiver: Receiver) -> None:
        special = {*receiver.tokenizer.all_special_ids, *receiver.end_ids, *_named_tokens(receiver.model.config)}
        count = min(receiver.vocabulary, len(receiver.tokenizer))
        self._opening = _opening(receiver)
        self._tokens = [token for token in range(count) if token not in special] or list(range(count))

    def draw(self, columns: int) -> list[list[int]]:
        """Return three rows of different lengths, the longest of `columns` tokens; they share a beginning."""
        generator = torch.Generator().manual_seed(columns)
        picks = torch.randint(len(self._tokens), (3, columns), generator=generator).tolist()
        picks = [picks[0][: columns // 4] + row[columns // 4 :] for row in picks]
        lengths = [columns, max(columns - 3, 2), max(columns * 2 // 3, 2)]
        rows = [[*self._opening, *(self._tokens[i] for i in row)] for row in picks]
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def replaced(self, tokens: Sequence[int]) -> list[int]:
        """Return other tokens, one for each."""
        place = {token: i for i, token in enumerate(self._tokens)}
        return [
            self._tokens[(place.get(token, 0) + 1 + i % 3) % len(self._tokens)] for i, token in enumerate(tokens)
        ]


def with_slots(receiver: Receiver, rows: Sequence[list[int]], place: Place, slots: int, kept: bool) -> Layout:
    """Return rows, whose last `ANSWER` tokens are the answer, with open slots; `kept`: what precedes these is."""
    at = [{"before": 0, "message": (len(row) - ANSWER) // 2, "after": len(row) - ANSWER}[place] for row in rows]
    filled = [[*row[:i], *[receiver.slot_id] * slots, *row[i:]] for row, i in zip(rows, at, strict=True)]
    return Layout(
        pad(filled, receiver.pad_id),
        torch.tensor(at)[:, None] + torch.arange(slots),
        torch.tensor([len(row) - ANSWER for row in filled]),
        torch.zeros(len(rows), dtype=torch.long),
        torch.tensor(at) if kept else torch.zeros(len(rows), dtype=torch.long),
    ).to(receiver.device)


def _opening(receiver: Receiver) -> list[int]:
    """Return tokens that rows begin with, as prompts do.

    Models of RoBERTa's kind read positions off their padding token, wherever it stands.
    """
    padding, style = receiver.model_pad_id, receiver.style
    if padding is None or not 0 <= padding < receiver.vocabulary:
        return [] if style.chat else receiver.opening_ids
    if style.chat:
        in_prompts = set(receiver.tokens_of_part(receiver.render_chat(style.system, "x")))
        return [padding] if padding in in_prompts else []
    is_text = padding not in {*receiver.tokenizer.all_special_ids, *receiver.end_ids}
    return [*receiver.opening_ids, padding] if is_text else receiver.opening_ids


def horizon(config: Any) -> int:
    """Return the fewest positions after which a layer attends, or a position is encoded, in another way."""
    found = [UNLIMITED]

    def look(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                look(part, str(key))
        elif any(word in name for word in _HORIZONS) and not name.endswith(("layers", "pattern")):
            found.extend([value] if isinstance(value, int) and value > 1 else [])

    look(config.get_text_config().to_dict(), "")
    return min(found)


def _named_tokens(config: Any) -> set[int]:
    """Return the token ids that a configuration names, such as that of an image."""
    settings = {**config.to_dict(), **config.get_text_config().to_dict()}
    names = ("token_id", "token_index")
    return {value for key, value in settings.items() if key.endswith(names) and isinstance(value, int)}


def possible_trunks(model: Any) -> list[str]:
    """Return names of submodules that may hold all layers."""
    parts = [model.base_model, model.get_decoder() if hasattr(model, "get_decoder") else model]
    names = {id(module): name for name, module in model.named_modules()}
    return list(dict.fromkeys(names[id(part)] for part in parts if names.get(id(part))))
