"""What a receiver has read of its prompts: KV caches of their beginnings, kept as long as there is room.

A frozen receiver makes the same of the same tokens for ever, so what stands before the slots is read once: the
opening that all prompts of a style share, or, with the slots behind B's text, B's whole prompt.

Shapes: B rows, T tokens, P tokens of the longest beginning, L layers, H heads, E entries of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional as F

CACHE_BYTES = 512 << 20  # of each receiver


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast makes of a pass now: what was read under another is not the same."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


class PromptPrefixCache:
    """Beginnings of prompts as KV caches, by their tokens; those unused for longest make room."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: LRUCache[Hashable, Tensor] = LRUCache(CACHE_BYTES, getsizeof=lambda kept: kept.nbytes)

    @cached_property
    def past(self) -> str:
        """The cache as argument and output: transformers renames it on its way through version 5."""
        return "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"

    def forget(self) -> None:
        """Drop them all."""
        self._kept.clear()

    def before(self, rows: Sequence[Sequence[int]], new: int) -> dict[str, Any]:
        """Arguments of a forward pass over `new` positions that follow a beginning in each row.

        Where beginnings differ in length they are padded on the left, and mask and positions come with them.
        """
        from transformers.cache_utils import DynamicCache

        if not any(rows):
            return {}
        starts = [tuple(row) for row in rows]
        known = self._read(set(starts))
        longest = max(map(len, starts))
        if len(known) == 1:
            both_L2BHPE = known[starts[0]][:, :, None].expand(-1, -1, len(starts), -1, -1, -1)
        else:
            padded = {ids: F.pad(kept, (0, 0, longest - len(ids), 0)) for ids, kept in known.items()}
            both_L2BHPE = torch.stack([padded[ids] for ids in starts], dim=2)
        arguments: dict[str, Any] = {self.past: DynamicCache([(keys, values) for keys, values in both_L2BHPE])}
        if len(set(map(len, starts))) > 1:
            lengths_B1 = torch.tensor([[len(ids)] for ids in starts], device=both_L2BHPE.device)
            places_T = torch.arange(longest + new, device=both_L2BHPE.device)
            arguments["attention_mask"] = places_T >= longest - lengths_B1
            arguments["position_ids"] = lengths_B1 + places_T[:new]
        return arguments

    @torch.no_grad()
    def _read(self, starts: set[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """Keys and values [L, 2, H, P, E] of each beginning."""
        device = self._model.get_input_embeddings().weight.device
        now = autocast_dtype(device)
        known = {ids: self._kept[now, ids] for ids in starts if (now, ids) in self._kept}
        missing = sorted(starts - known.keys(), key=len)
        if missing:
            longest = len(missing[-1])
            # Padded on the right, behind everything that a causal model looks at: no mask is needed.
            ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in missing], device=device)
            read = self._model.get_decoder()(input_ids=ids_BT, use_cache=True)[self.past]
            both_L2BHPE = torch.stack([torch.stack([layer.keys, layer.values]) for layer in read.layers])
            for ids, kept in zip(missing, both_L2BHPE.unbind(2), strict=True):
                known[ids] = kept[..., : len(ids), :].clone()
                self._kept[now, ids] = known[ids]
        return known
