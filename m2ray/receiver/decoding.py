"""Decode rows of one batch, many tokens per forward pass where a draft of the answer holds.

A draft costs one forward pass and confirms as many tokens as agree with what decoding would have picked anyway
(speculative decoding, Leviathan et al. 2023, with the reference answer as the draft): the tokens are the same as
without, greedy or sampled. Answers of one task differ in a few values, so a few passes decode a whole one.

Shapes: B rows, T columns of the cache, G draft tokens, S rows that still agree, F tokens fed per row, D width,
V values of an answer, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class DecodedTokens(NamedTuple):
    """The tokens of each row, up to and including the one that ended it."""

    rows: list[list[int]]
    truncated: list[bool]  # per row: it reached its limit without a token that ends it
    logits_BVW: Tensor | None  # predict the drafts' tokens at the requested positions, if any


class Prefill(NamedTuple):
    """A prompt and a draft of its answer after their forward pass, padded on the left."""

    cache: Any
    states_BGD: Tensor  # last hidden states at the prompt's last token and at each draft token
    mask_BT: Tensor
    lengths_B: Tensor  # of the prompts


@dataclass
class _Batch:
    """The rows that are still being decoded, after their latest forward pass.

    Attributes:
        rows: Their numbers in the whole batch.
        drafts: The draft tokens that were fed, per row.
        cache: The KV cache, with all that was fed.
        states_BGD: Hidden states at the last certain token and at each draft token.
        mask_BT: True at cache columns that rows attend to.
        lengths_B: Lengths of the prompts.
        fed: Columns of the latest forward pass.
        certain: 1 where the first token fed was picked already, 0 for a prompt.
    """

    rows: list[int]
    drafts: list[list[int]]
    cache: Any
    states_BGD: Tensor
    mask_BT: Tensor
    lengths_B: Tensor
    fed: int
    certain: int


class Decoder:
    """Decodes a batch with one model.

    Args:
        model: The causal LM.
        cache_argument: The model's name for its cache, as argument and output.
        ends: Tokens that end a row.
        temperature: 0 decodes greedily.
    """

    def __init__(self, model: Any, cache_argument: str, ends: Collection[int], temperature: float) -> None:
        self._head, self._model = model.get_output_embeddings(), model.get_decoder()
        self._cache_argument, self._ends, self._temperature = cache_argument, ends, temperature

    def run(
        self,
        prefill: Prefill,
        drafts: Sequence[Sequence[int]],
        positions: Collection[int],
        seeds: Sequence[int],
        limits: Sequence[int],
    ) -> DecodedTokens:
        """Decode each row up to and including the first token that ends it.

        Args:
            prefill: The prompts after their forward pass; its cache is modified.
            drafts: A draft per row, of which all but the last token are in `prefill`; empty for none.
            positions: Draft positions whose logits are returned.
            seeds: Seed of each row's sampling noise.
            limits: Most tokens of each row.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        written: list[list[int]] = [[] for _ in drafts]
        batch = _Batch(
            rows=list(range(len(drafts))),
            drafts=[list(draft[:-1]) for draft in drafts],
            cache=prefill.cache,
            states_BGD=prefill.states_BGD,
            mask_BT=prefill.mask_BT,
            lengths_B=prefill.lengths_B,
            fed=prefill.states_BGD.shape[1] - 1,
            certain=0,
        )
        kept: list[Tensor] = []
        wanted = set(positions)
        while batch.rows:
            agreed = self._pick_tokens(batch, written, generators, limits, wanted, kept)
            wanted = set()  # the prefill holds all of them
            open_rows = [
                i
                for i, row in enumerate(batch.rows)
                if written[row][-1] not in self._ends and len(written[row]) < limits[row]
            ]
            if not open_rows:
                break
            self._next_pass(batch, open_rows, agreed, written, drafts)
        truncated = [row[-1] not in self._ends for row in written]
        return DecodedTokens(written, truncated, torch.stack(kept, dim=1) if kept else None)

    def _pick_tokens(
        self,
        batch: _Batch,
        written: list[list[int]],
        generators: Sequence[torch.Generator],
        limits: Sequence[int],
        wanted: Collection[int],
        kept: list[Tensor],
    ) -> list[int]:
        """Pick tokens, position by position, as long as a row agrees with its draft.

        Appends to `written`, and to `kept` the logits at the positions wanted.

        Returns:
            How many draft tokens of each row B agreed with.
        """
        agreed = [0] * len(batch.rows)
        agreeing = list(range(len(batch.rows)))
        # One position at a time: logits over a whole vocabulary at every position are gigabytes.
        for position in range(batch.states_BGD.shape[1]):
            if position in wanted:
                every_BW = self._head(batch.states_BGD[:, position])
                kept.append(every_BW)
                logits_SW = every_BW[agreeing]
            elif agreeing:
                logits_SW = self._head(batch.states_BGD[agreeing, position])
            if not agreeing:
                continue
            still = []
            picked = _pick(logits_SW, [generators[batch.rows[i]] for i in agreeing], self._temperature)
            for i, token in zip(agreeing, picked, strict=True):
                row = written[batch.rows[i]]
                row.append(token)
                ended = token in self._ends or len(row) == limits[batch.rows[i]]
                if not ended and batch.drafts[i][agreed[i] : agreed[i] + 1] == [token]:
                    agreed[i] += 1
                    still.append(i)
            agreeing = still
        return agreed

    def _next_pass(
        self,
        batch: _Batch,
        open_rows: Sequence[int],
        agreed: Sequence[int],
        written: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
    ) -> None:
        """Drop the rows that have ended, and feed the others their latest token and the rest of their draft."""
        device = batch.mask_BT.device
        # Draft tokens that B disagreed with stay in the cache, masked.
        columns_F = torch.arange(batch.fed, device=device)
        kept_B1 = torch.tensor(agreed, device=device)[:, None] + batch.certain
        before = batch.mask_BT.shape[1] - batch.fed
        batch.mask_BT = torch.cat([batch.mask_BT[:, :before], columns_F < kept_B1], dim=1)
        if len(open_rows) < len(batch.rows):
            batch.cache.batch_select_indices(torch.tensor(open_rows, device=device))
            batch.mask_BT, batch.lengths_B = batch.mask_BT[open_rows], batch.lengths_B[open_rows]
        # A row that agreed with none of its draft tokens writes a different answer: it gets no more drafts.
        undrafted = {batch.rows[i] for i in open_rows if batch.certain and not agreed[i]}
        batch.rows, batch.certain = [batch.rows[i] for i in open_rows], 1
        batch.drafts = [
            [] if row in undrafted else list(drafts[row][len(written[row]) : -1]) for row in batch.rows
        ]
        feed = [[written[row][-1], *draft] for row, draft in zip(batch.rows, batch.drafts, strict=True)]
        batch.fed = max(map(len, feed))
        columns_F = torch.arange(batch.fed, device=device)
        counts_B1 = torch.tensor([[len(tokens)] for tokens in feed], device=device)
        batch.mask_BT = torch.cat([batch.mask_BT, columns_F < counts_B1], dim=1)
        starts_B1 = batch.lengths_B[:, None] + torch.tensor(
            [[len(written[row]) - 1] for row in batch.rows], device=device
        )
        output = self._model(
            input_ids=torch.tensor([tokens + [0] * (batch.fed - len(tokens)) for tokens in feed], device=device),
            position_ids=starts_B1 + columns_F.clamp(max=counts_B1 - 1),
            attention_mask=batch.mask_BT,
            use_cache=True,
            **{self._cache_argument: batch.cache},
        )
        batch.cache, batch.states_BGD = output[self._cache_argument], output[0]


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
