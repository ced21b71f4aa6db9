"""Run rows of any length as one batch where that is exact, else rows of one length at a time.

Shapes: B rows, T positions, P tokens before them, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from m2ray.receiver.channel import Slots, join_slots
from m2ray.receiver.layout import pad
from m2ray.receiver.model.causal_model import CausalModel
from m2ray.receiver.model.kv_cache import PromptPrefixCache
from m2ray.receiver.model.requests import ForwardRequest, States


class Rows(NamedTuple):
    """Rows of one batch, padded on the right."""

    embeds_BTD: Tensor
    ids_BT: Tensor
    lengths: list[int]
    cached: list[list[int]]  # tokens before each row, in the KV cache
    slots: Slots | None = None

    @property
    def columns(self) -> int:
        """Columns that the model attends to: the longest row's cached tokens and the padded rows."""
        return max(map(len, self.cached)) + self.embeds_BTD.shape[1]

    def pick(self, rows: Sequence[int], columns: int) -> Rows:
        """Return some rows, cut to a number of columns."""
        embeds_BTD, ids_BT = self.embeds_BTD[list(rows), :columns], self.ids_BT[list(rows), :columns]
        slots = None if self.slots is None else self.slots.pick(rows)
        return Rows(embeds_BTD, ids_BT, [self.lengths[i] for i in rows], [self.cached[i] for i in rows], slots)


class RowRunner:
    """Runs rows of a model in the ways that give its own numbers.

    Args:
        model: The causal LM.
        cache: KV caches of the tokens before rows.
        pad_id: The token that fills padding.
    """

    def __init__(self, model: CausalModel, cache: PromptPrefixCache, pad_id: int) -> None:
        self._model, self._cache, self._pad_id = model, cache, pad_id

    def run(self, rows: Rows, states: States, rows_at_once: int | None) -> list[Tensor]:
        """Return the last layer's output and the states requested, at the rows' columns."""
        columns = rows.columns
        ways = self._model.ways_for(columns)
        if not any(rows.cached):
            return self._run_whole(rows, states, rows_at_once)
        if columns <= min(ways.kept, ways.padded):
            return self._run_in_parts(rows, states, rows_at_once)
        whole = self._with_cached_tokens(rows)
        layers = self._run_whole(whole, states, rows_at_once)
        rows_B1 = torch.arange(len(rows.cached), device=self._model.device)[:, None]
        first_B1 = torch.tensor([[len(tokens)] for tokens in rows.cached], device=self._model.device)
        columns_BT = first_B1 + torch.arange(rows.embeds_BTD.shape[1], device=self._model.device)
        return [layer_BTD[rows_B1, columns_BT.clamp(max=layer_BTD.shape[1] - 1)] for layer_BTD in layers]

    def _with_cached_tokens(self, rows: Rows) -> Rows:
        """Return rows that begin with their cached tokens, which are then run again."""
        embeds, ids = [], []
        for tokens, embeds_TD, ids_T, length in zip(
            rows.cached, rows.embeds_BTD, rows.ids_BT.tolist(), rows.lengths, strict=True
        ):
            before_PD = self._model.embed(torch.tensor([tokens], dtype=torch.long, device=self._model.device))[0]
            embeds.append(torch.cat([before_PD, embeds_TD[:length]]))
            ids.append([*tokens, *ids_T[:length]])
        return Rows(
            pad_sequence(embeds, batch_first=True),
            pad(ids, self._pad_id).to(self._model.device),
            [len(row) for row in ids],
            [[] for _ in ids],
            None if rows.slots is None else rows.slots.shifted(self._counts(rows.cached)),
        )

    def _counts(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([len(row) for row in rows], device=self._model.device)

    def _run_whole(self, rows: Rows, states: States, rows_at_once: int | None) -> list[Tensor]:
        """Run rows without cached tokens: all together where padding is exact, else those of one length."""
        if len(set(rows.lengths)) == 1:
            return self._run_in_parts(rows.pick(range(len(rows.lengths)), rows.lengths[0]), states, rows_at_once)
        if rows.columns <= self._model.ways.padded:
            return self._run_in_parts(rows, states, rows_at_once)
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, length in enumerate(rows.lengths):
            by_length[max(length, 1)].append(i)
        parts = []
        for length, members in by_length.items():
            layers = self._run_in_parts(rows.pick(members, length), states, rows_at_once)
            parts.append([F.pad(layer, (0, 0, 0, rows.embeds_BTD.shape[1] - length)) for layer in layers])
        order = torch.tensor(
            [i for members in by_length.values() for i in members], device=self._model.device
        ).argsort()
        return [torch.cat(layer)[order] for layer in zip(*parts, strict=True)]

    def _run_in_parts(self, rows: Rows, states: States, rows_at_once: int | None) -> list[Tensor]:
        """Run rows in model calls of `rows_at_once`."""
        size = rows_at_once or len(rows.cached)
        recompute = rows_at_once is not None and torch.is_grad_enabled()
        parts = []
        for first in range(0, len(rows.cached), size):
            some = slice(first, first + size)
            slots = None if rows.slots is None else rows.slots.pick(some)
            run = partial(
                self._call, ids_BT=rows.ids_BT[some], cached=rows.cached[some], states=states, slots=slots
            )
            part_BTD = rows.embeds_BTD[some]
            parts.append(checkpoint(run, part_BTD, use_reentrant=False) if recompute else run(part_BTD))
        return [torch.cat(layer) for layer in zip(*parts, strict=True)] if parts[1:] else parts[0]

    def _call(
        self, embeds_BTD: Tensor, ids_BT: Tensor, cached: list[list[int]], states: States, slots: Slots | None
    ) -> list[Tensor]:
        columns = embeds_BTD.shape[1]
        arguments = self._cache.forward_arguments(cached, columns)
        blocked_BLC = None if slots is None else slots.blocked_columns(columns, before=max(map(len, cached)))
        output = self._model.run(embeds_BTD, ids_BT, states, slots, blocked_BLC, **arguments)
        return [output.last_BTD, *output.hidden]


def join_requests(requests: Sequence[ForwardRequest]) -> Rows:
    """Return the rows of all requests as one batch, padded on the right."""
    width = max(request.embeds_BTD.shape[1] for request in requests)
    return Rows(
        torch.cat([F.pad(r.embeds_BTD, (0, 0, 0, width - r.embeds_BTD.shape[1])) for r in requests]),
        torch.cat([F.pad(r.ids_BT, (0, width - r.ids_BT.shape[1])) for r in requests]),
        [length for request in requests for length in request.lengths],
        [tokens for request in requests for tokens in request.cached_tokens],
        join_slots([(len(request.embeds_BTD), request.slots) for request in requests]),
    )
