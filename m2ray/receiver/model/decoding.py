"""Decode rows of one batch, many tokens per forward pass where a draft of the answer holds.

A draft costs one forward pass and confirms as many tokens as agree with what decoding would have picked anyway
(speculative decoding, Leviathan et al. 2023, with the reference answer as the draft): the tokens are the same as
without, greedy or sampled. Answers of one task differ in a few values, so a few passes decode a whole one.

How the passes are run is up to a `Reader`: with a KV cache, or from the first token each time.

Shapes: B rows, T columns of the cache, G draft tokens, S rows that still agree, F tokens fed per row, D width,
L layers, V tokens that carry the answer, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.model.causal_model import CausalModel


class DecodedTokens(NamedTuple):
    """The tokens of each row, up to and including the one that ended it."""

    rows: list[list[int]]
    truncated: list[bool]  # per row: it reached its limit without a token that ends it
    kept_BV: Tensor | None  # what was kept of the logits that predict the drafts' tokens, if anything


class Kept(NamedTuple):
    """What to keep of the logits that predict draft tokens: whole ones over a vocabulary would fill the memory."""

    positions: Sequence[int]  # in the drafts, ascending
    of: Callable[[int, Tensor], Tensor]  # of a position and its logits [B, W]


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


@dataclass
class _Batch:
    """The rows that are still being decoded, after their latest forward pass.

    Attributes:
        rows: Their numbers in the whole batch.
        drafts: The draft tokens that were fed, per row.
        states_BGD: Hidden states at the last certain token and at each draft token.
    """

    rows: list[int]
    drafts: list[list[int]]
    states_BGD: Tensor


class Decoder:
    """Decodes a batch with one model.

    Args:
        model: The causal LM.
        ends: Tokens that end a row.
        temperature: 0 decodes greedily.
        picked_logits: If given, the logit of each token that is picked is added to its row's list.
    """

    def __init__(
        self,
        model: CausalModel,
        ends: Collection[int],
        temperature: float,
        picked_logits: Sequence[list[float]] | None = None,
    ) -> None:
        self._model, self._ends, self._temperature = model, ends, temperature
        self._picked_logits = picked_logits

    def run(
        self,
        reader: Reader,
        drafts: Sequence[Sequence[int]],
        keeps: Kept | None,
        seeds: Sequence[int],
        limits: Sequence[int],
        exact: Reader | None = None,
    ) -> DecodedTokens:
        """Decode each row up to and including the first token that ends it.

        Args:
            reader: Runs the passes.
            drafts: A draft per row; empty for none.
            keeps: What to keep of the logits at draft tokens.
            seeds: Seed of each row's sampling noise.
            limits: Most tokens of each row.
            exact: Takes over where `reader` cannot go on.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        written: list[list[int]] = [[] for _ in drafts]
        batch = _Batch(list(range(len(drafts))), [list(draft[:-1]) for draft in drafts], reader.start())
        kept: list[Tensor] = []
        first = True
        while batch.rows:
            agreed = self._pick_tokens(batch, written, generators, limits, keeps, kept)
            keeps = None  # the first pass holds all of them
            following = [
                # A row that agreed with none of its draft writes a different answer: it gets no more drafts.
                Continuation(
                    row, i, agreed[i], written[row],
                    list(drafts[row][len(written[row]) : -1]) if first or agreed[i] else [],
                )
                for i, row in enumerate(batch.rows)
                if written[row][-1] not in self._ends and len(written[row]) < limits[row]
            ]  # fmt: skip
            if not following:
                break
            if exact is not None and not reader.can_read(following):
                reader = exact
            batch = _Batch(
                [each.row for each in following], [each.draft for each in following], reader.read(following)
            )
            first = False
        truncated = [row[-1] not in self._ends for row in written]
        return DecodedTokens(written, truncated, torch.stack(kept, dim=1) if kept else None)

    def _pick_tokens(
        self,
        batch: _Batch,
        written: list[list[int]],
        generators: Sequence[torch.Generator],
        limits: Sequence[int],
        keeps: Kept | None,
        kept: list[Tensor],
    ) -> list[int]:
        """Pick tokens, position by position, as long as a row agrees with its draft.

        Appends to `written`, and to `kept` what `keeps` returns.

        Returns:
            How many draft tokens of each row B agreed with.
        """
        agreed = [0] * len(batch.rows)
        agreeing = list(range(len(batch.rows)))
        # One position at a time: logits over a whole vocabulary at every position are gigabytes.
        for position in range(batch.states_BGD.shape[1]):
            if keeps is not None and position in keeps.positions:
                every_BW = self._model.head(batch.states_BGD[:, position])
                kept.append(keeps.of(position, every_BW))
                logits_SW = every_BW[agreeing]
            elif agreeing:
                logits_SW = self._model.head(batch.states_BGD[agreeing, position])
            if not agreeing:
                continue
            still = []
            picked = _pick(logits_SW, [generators[batch.rows[i]] for i in agreeing], self._temperature)
            if self._picked_logits is not None:
                for i, token, logits_W in zip(agreeing, picked, logits_SW, strict=True):
                    self._picked_logits[batch.rows[i]].append(float(logits_W[token]))
            for i, token in zip(agreeing, picked, strict=True):
                row = written[batch.rows[i]]
                row.append(token)
                ended = token in self._ends or len(row) == limits[batch.rows[i]]
                if not ended and batch.drafts[i][agreed[i] : agreed[i] + 1] == [token]:
                    agreed[i] += 1
                    still.append(i)
            agreeing = still
        return agreed


def _pick(logits_BW: Tensor, generators: Sequence[torch.Generator], temperature: float) -> list[int]:
    """Return the next token of each row."""
    logits_BW = logits_BW.float()
    if temperature > 0:
        # Gumbel-max: argmax(logits / t + g) is a sample of softmax(logits / t).
        uniform = [torch.rand(logits_BW.shape[1], generator=each, dtype=torch.float64) for each in generators]
        gumbel_BW = -torch.log(-torch.log(torch.stack(uniform).clamp(min=1e-300)))
        logits_BW = logits_BW / temperature + gumbel_BW.to(logits_BW)
    tokens: list[int] = logits_BW.argmax(dim=1).tolist()
    return tokens
