"""Decode rows of one batch, many tokens per forward pass where a draft of the answer holds.

A draft costs one forward pass and confirms as many tokens as agree with what decoding would have picked anyway
(speculative decoding, Leviathan et al. 2023, with the reference answer as the draft): the tokens are the same as
without, greedy or sampled. Answers of one task differ in a few values, so a few passes decode a whole one.

How the passes are run is up to a `Reader` (see `m2ray.receiver.model.readers`).

Shapes: B rows, G draft tokens, S rows that still agree, D width, V tokens that carry the answer, W words of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from m2ray.receiver.model.causal_model import CausalModel
from m2ray.receiver.model.readers import Continuation, Reader


class DecodedTokens(NamedTuple):
    """The tokens of each row, up to and including the one that ended it."""

    rows: list[list[int]]
    truncated: list[bool]  # per row: it reached its limit without a token that ends it
    kept_BV: Tensor | None  # what was kept of the logits that predict the drafts' tokens, if anything


class Kept(NamedTuple):
    """What to keep of the logits that predict draft tokens: whole ones over a vocabulary would fill the memory."""

    positions: Sequence[int]  # in the drafts, ascending
    of: Callable[[int, Tensor], Tensor]  # of a position and its logits [B, W]


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
