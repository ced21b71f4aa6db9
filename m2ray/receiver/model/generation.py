"""Decode the answers of prompts in the ways that give the model's own numbers.

Shapes: B rows, T positions, G draft tokens, D width, P cached tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.layout import pad
from m2ray.receiver.model.decoding import DecodedTokens, Decoder, Kept
from m2ray.receiver.model.frozen_model import FrozenModel
from m2ray.receiver.model.readers import CachedReader, Prefill, RereadingReader
from m2ray.receiver.model.requests import ForwardRequest, Prompts


class PromptDecoder:
    """Decodes with a KV cache and drafts where that is exact, else from the first token each time."""

    def __init__(self, model: FrozenModel) -> None:
        self._model, self._causal, self._device = model, model.causal, model.device

    def run(
        self,
        prompts: Prompts,
        drafts: Sequence[Sequence[int]],
        keeps: Kept | None,
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        ends: Collection[int] | None = None,
        picked_logits: Sequence[list[float]] | None = None,
    ) -> DecodedTokens:
        """Decode the answers of prompts; see `m2ray.receiver.model.decoding.Decoder`.

        `ends` are tokens that end a row; by default the model's own.
        """
        model, causal = self._model, self._causal
        model.check_context(max(prompts.lengths) + 1)
        limits = [min(max_new_tokens, model.max_positions - length) for length in prompts.lengths]
        drafted = max(0, len(drafts[0]) - 1)
        exact = self._reader(prompts, drafts, lambda length: causal.ways_for(length).reread)
        decoder = Decoder(causal, model.end_ids if ends is None else ends, temperature, picked_logits)
        rest = max(length - len(ids) for length, ids in zip(prompts.lengths, prompts.cached, strict=True))
        columns = max(map(len, prompts.cached)) + rest + drafted
        ways = causal.ways_for(columns)
        if columns > ways.kept:
            prompts = prompts._replace(cached=[[] for _ in prompts.cached])
        if columns > ways.drafted and columns > ways.reread:
            # With a draft behind it, a prompt would predict another first token.
            states_BGD = exact.start()
            kept = [keeps.of(p, causal.head(states_BGD[:, p])) for p in keeps.positions] if keeps else []
            nothing: list[list[int]] = [[] for _ in drafts]
            tokens = decoder.run(self._reader(prompts, nothing, lambda length: 0), nothing, None, seeds, limits)
            return tokens._replace(kept_BV=torch.stack(kept, dim=1) if kept else None)
        if columns > ways.drafted:
            return decoder.run(exact, drafts, keeps, seeds, limits)
        prefill = self._prefill(prompts, drafted)
        cached = CachedReader(causal, prefill, lambda columns: causal.ways_for(columns).drafted)
        return decoder.run(cached, drafts, keeps, seeds, limits, exact)

    def _reader(
        self, prompts: Prompts, drafts: Sequence[Sequence[int]], limit: Callable[[int], int]
    ) -> RereadingReader:
        """Return the reader that runs prompts from their first token in every pass."""
        return RereadingReader(partial(self._read_from_the_start, prompts), prompts.lengths, drafts, limit)

    def _prefill(self, prompts: Prompts, drafted: int) -> Prefill:
        """Run prompts, each with `drafted` draft tokens; leading tokens may be cached."""
        cached_B = torch.tensor([len(tokens) for tokens in prompts.cached], device=self._device)
        lengths_B = torch.tensor(prompts.lengths, device=self._device)
        rest_B = lengths_B + drafted - cached_B
        length = int(rest_B.max())
        # Move the padding from right to left, so that all rows end, and continue, in the same column.
        shift_BT = torch.arange(length, device=self._device) - (length - rest_B)[:, None]
        source_BT = cached_B[:, None] + shift_BT.clamp(min=0)
        embeds_BTD = prompts.embeds_BTD.gather(1, source_BT[..., None].expand(-1, -1, self._model.width))
        arguments = self._model.prompt_cache.forward_arguments(prompts.cached, length)
        longest = int(cached_B.max())
        columns_P = torch.arange(longest, device=self._device)
        mask_BT = torch.cat([columns_P >= longest - cached_B[:, None], shift_BT >= 0], dim=1)
        arguments |= {"position_ids": source_BT, "attention_mask": mask_BT, "use_cache": True}
        slots = None if prompts.slots is None else prompts.slots.shifted(length - rest_B - cached_B)
        blocked_BLT = None if slots is None else slots.blocked_columns(length, before=longest)
        ids_BT = prompts.ids_BT.gather(1, source_BT)
        output = self._causal.run(embeds_BTD, ids_BT, False, slots, blocked_BLT, **arguments)
        return Prefill(output.cache, output.last_BTD[:, -1 - drafted :], mask_BT, lengths_B, blocked_BLT)

    def _read_from_the_start(
        self, prompts: Prompts, rows: Sequence[int], following: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return the last hidden states of some prompts and the tokens that follow each."""
        whole = self._followed(prompts, rows, following)
        nothing: list[list[int]] = [[] for _ in rows]
        request = ForwardRequest(
            whole.embeds_BTD, whole.ids_BT, whole.lengths, nothing, False, grad=False, slots=whole.slots
        )
        (output,) = self._model.forward([request])
        return output.last_BTD

    def _followed(self, prompts: Prompts, rows: Sequence[int], following: Sequence[Sequence[int]]) -> Prompts:
        """Return some prompts with tokens after each, padded on the right."""
        lengths = [prompts.lengths[row] for row in rows]
        ids = [
            [*prompt[:length], *tokens]
            for prompt, length, tokens in zip(prompts.ids_BT[list(rows)].tolist(), lengths, following, strict=True)
        ]
        ids_BT = pad(ids, self._model.pad_id).to(self._device)
        embeds_BTD = self._causal.embed(ids_BT)
        lengths_B1 = torch.tensor(lengths, device=self._device)[:, None]
        own_BT = torch.arange(ids_BT.shape[1], device=self._device) < lengths_B1
        prompt_BTD = prompts.embeds_BTD[list(rows), : ids_BT.shape[1]]
        prompt_BTD = F.pad(prompt_BTD, (0, 0, 0, ids_BT.shape[1] - prompt_BTD.shape[1]))
        embeds_BTD = torch.where(own_BT[..., None], prompt_BTD, embeds_BTD)
        slots = None if prompts.slots is None else prompts.slots.pick(rows)
        return Prompts(embeds_BTD, ids_BT, list(map(len, ids)), [prompts.cached[row] for row in rows], slots)
