"""Forward passes of decoding: with a KV cache, or from the first token each time.

Shapes: B rows, T columns of the cache, G draft tokens, F tokens fed per row, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.model.causal_model import CausalModel


class Prefill(NamedTuple):
    """A prompt and a draft of its answer after their forward pass, padded on the left."""

    cache: Any
    states_BGD: Tensor  # last hidden states at the prompt's last token and at each draft token
    mask_BT: Tensor
    lengths_B: Tensor  # of the prompts
    blocked_BLT: Tensor | None = None  # columns that other tokens do not attend to, per layer


class Continuation(NamedTuple):
    """What is fed to a row next.

    Attributes:
        row: The row's number in the whole batch.
        at: Its place among the rows of the latest pass.
        agreed: How many draft tokens of the latest pass it agreed with.
        written: Its tokens so far.
        draft: The draft tokens that follow them.
    """

    row: int
    at: int
    agreed: int
    written: list[int]
    draft: list[int]


class Reader(Protocol):
    """Runs the passes of one batch."""

    def start(self) -> Tensor:
        """Return the hidden states [B, G, D] at each prompt's last token and at each draft token but the last."""

    def can_read(self, rows: Sequence[Continuation]) -> bool:
        """Return whether the next pass gives the model's own numbers."""

    def read(self, rows: Sequence[Continuation]) -> Tensor:
        """Return the hidden states [B, F, D] at each row's latest token and at its draft's tokens."""


class CachedReader:
    """Runs only what is new, with a KV cache; draft tokens that B disagreed with stay in it, masked.

    Args:
        model: The causal LM.
        prefill: The prompts after their forward pass; its cache is modified.
        limit: Returns the most columns of the cache, tested for at least as many as given.
    """

    def __init__(self, model: CausalModel, prefill: Prefill, limit: Callable[[int], int]) -> None:
        self._model, self._limit = model, limit
        self._states_BGD, self._cache = prefill.states_BGD, prefill.cache
        self._mask_BT, self._lengths_B = prefill.mask_BT, prefill.lengths_B
        self._blocked_BLT = prefill.blocked_BLT
        self._fed = prefill.states_BGD.shape[1] - 1
        self._certain = 0  # 1 where the first token fed was picked already

    def start(self) -> Tensor:
        """See `Reader`."""
        return self._states_BGD

    def can_read(self, rows: Sequence[Continuation]) -> bool:
        """See `Reader`."""
        columns = self._mask_BT.shape[1] + max(1 + len(row.draft) for row in rows)
        return columns <= self._limit(columns)

    def read(self, rows: Sequence[Continuation]) -> Tensor:
        """See `Reader`."""
        device = self._mask_BT.device
        places = [row.at for row in rows]
        agreed_B1 = torch.tensor([[row.agreed] for row in rows], device=device)
        if len(places) < len(self._mask_BT):
            self._cache.batch_select_indices(torch.tensor(places, device=device))
            self._mask_BT, self._lengths_B = self._mask_BT[places], self._lengths_B[places]
            self._blocked_BLT = None if self._blocked_BLT is None else self._blocked_BLT[places]
        columns_F = torch.arange(self._fed, device=device)
        before = self._mask_BT.shape[1] - self._fed
        kept_BF = columns_F < agreed_B1 + self._certain
        feed = [[row.written[-1], *row.draft] for row in rows]
        self._fed, self._certain = max(map(len, feed)), 1
        columns_F = torch.arange(self._fed, device=device)
        counts_B1 = torch.tensor([[len(tokens)] for tokens in feed], device=device)
        self._mask_BT = torch.cat([self._mask_BT[:, :before], kept_BF, columns_F < counts_B1], dim=1)
        if self._blocked_BLT is not None:
            added = self._mask_BT.shape[1] - self._blocked_BLT.shape[2]
            self._blocked_BLT = F.pad(self._blocked_BLT, (0, added))
        written_B1 = torch.tensor([[len(row.written) - 1] for row in rows], device=device)
        ids_BF = torch.tensor([tokens + [0] * (self._fed - len(tokens)) for tokens in feed], device=device)
        output = self._model.run(
            self._model.embed(ids_BF),
            ids_BF,
            blocked_BLC=self._blocked_BLT,
            position_ids=self._lengths_B[:, None] + written_B1 + columns_F.clamp(max=counts_B1 - 1),
            attention_mask=self._mask_BT,
            use_cache=True,
            **{self._model.cache_argument: self._cache},
        )
        self._cache = output.cache
        return output.last_BTD


class RereadingReader:
    """Runs prompt and answer from the first token in every pass: slow, and exact for every causal model.

    Rows that are longer than a limit are run without drafts, one token per pass.

    Args:
        run: Returns the last hidden states [B, T, D] of rows (numbers in the batch) whose prompts are followed by
            tokens.
        lengths: Lengths of the prompts.
        drafts: A draft per row.
        limit: Returns the most tokens of a row with a draft, tested for at least as many as given.
    """

    def __init__(
        self,
        run: Callable[[Sequence[int], Sequence[Sequence[int]]], Tensor],
        lengths: Sequence[int],
        drafts: Sequence[Sequence[int]],
        limit: Callable[[int], int],
    ) -> None:
        self._run, self._lengths, self._drafts, self._limit = run, lengths, drafts, limit

    def start(self) -> Tensor:
        """See `Reader`; drafts count as part of the prompts, whatever the limit."""
        return self._read([Continuation(i, i, 0, [], list(draft[:-1])) for i, draft in enumerate(self._drafts)])

    def can_read(self, rows: Sequence[Continuation]) -> bool:
        """See `Reader`."""
        return True

    def read(self, rows: Sequence[Continuation]) -> Tensor:
        """See `Reader`; beyond the limit, the hidden states [B, 1, D] at each row's latest token only."""
        longest = max(self._lengths[row.row] + len(row.written) + len(row.draft) for row in rows)
        if longest > self._limit(longest):
            rows = [row._replace(draft=[]) for row in rows]
        return self._read(rows)

    def _read(self, rows: Sequence[Continuation]) -> Tensor:
        states_BTD = self._run([row.row for row in rows], [[*row.written, *row.draft] for row in rows])
        device = states_BTD.device
        latest_B1 = torch.tensor([[self._lengths[row.row] + len(row.written) - 1] for row in rows], device=device)
        columns_BF = latest_B1 + torch.arange(1 + max(len(row.draft) for row in rows), device=device)
        rows_B1 = torch.arange(len(rows), device=device)[:, None]
        return states_BTD[rows_B1, columns_BF.clamp(max=states_BTD.shape[1] - 1)]
