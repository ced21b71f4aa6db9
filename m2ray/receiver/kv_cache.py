"""LRU cache of prompt-prefix KV caches.

A frozen receiver always computes the same keys and values for the same tokens. So the tokens before the slots are
run once: the opening that all prompts of a style share or, with slots after B's text, B's whole prompt.

Shapes: B rows, T tokens, P tokens of the longest prefix, L layers, H heads, E entries of a head.
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

CACHE_BYTES = 512 << 20  # per receiver


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast uses now, None where it is off. Outputs of different dtypes are cached apart."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


class PromptPrefixCache:
    """KV caches of prompt prefixes, keyed by their tokens; the least recently used are dropped."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: LRUCache[Hashable, Tensor] = LRUCache(CACHE_BYTES, getsizeof=lambda cache: cache.nbytes)

    @cached_property
    def argument(self) -> str:
        """Name of the model's cache argument and output, which changes between versions of transformers 5."""
        return "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"

    def clear(self) -> None:
        """Drop all caches."""
        self._caches.clear()

    def forward_arguments(self, rows: Sequence[Sequence[int]], new: int) -> dict[str, Any]:
        """Return the model arguments for `new` positions that follow each row's prefix.

        Prefixes of different lengths are padded on the left; then mask and positions are included.
        """
        # Imported here because the first use of a receiver comes long after its start.
        from transformers.cache_utils import DynamicCache

        if not any(rows):
            return {}
        prefixes = [tuple(row) for row in rows]
        known = self._compute(set(prefixes))
        longest = max(map(len, prefixes))
        if len(known) == 1:
            both_L2BHPE = known[prefixes[0]][:, :, None].expand(-1, -1, len(prefixes), -1, -1, -1)
        else:
            padded = {ids: F.pad(cache, (0, 0, longest - len(ids), 0)) for ids, cache in known.items()}
            both_L2BHPE = torch.stack([padded[ids] for ids in prefixes], dim=2)
        arguments: dict[str, Any] = {self.argument: DynamicCache([(keys, values) for keys, values in both_L2BHPE])}
        if len(set(map(len, prefixes))) > 1:
            lengths_B1 = torch.tensor([[len(ids)] for ids in prefixes], device=both_L2BHPE.device)
            columns_T = torch.arange(longest + new, device=both_L2BHPE.device)
            arguments["attention_mask"] = columns_T >= longest - lengths_B1
            arguments["position_ids"] = lengths_B1 + columns_T[:new]
        return arguments

    @torch.no_grad()
    def _compute(self, prefixes: set[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """Return keys and values [L, 2, H, P, E] of each prefix; run those that are not cached."""
        device = self._model.get_input_embeddings().weight.device
        dtype = autocast_dtype(device)
        known = {ids: self._caches[dtype, ids] for ids in prefixes if (dtype, ids) in self._caches}
        missing = sorted(prefixes - known.keys(), key=len)
        if missing:
            longest = len(missing[-1])
            # Padding on the right comes after everything a causal model attends to, so no mask is needed.
            ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in missing], device=device)
            output = self._model.get_decoder()(input_ids=ids_BT, use_cache=True)[self.argument]
            both_L2BHPE = torch.stack([torch.stack([layer.keys, layer.values]) for layer in output.layers])
            for ids, cache in zip(missing, both_L2BHPE.unbind(2), strict=True):
                known[ids] = cache[..., : len(ids), :].clone()
                self._caches[dtype, ids] = known[ids]
        return known
