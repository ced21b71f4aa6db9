"""LRU cache of prompt-prefix KV caches.

A frozen receiver always computes the same keys and values for the same tokens. So the tokens before the slots are
run once: the opening that all prompts of a style share or, with slots after B's text, B's whole prompt.

Shapes: B rows, T tokens, P tokens of the longest prefix, H heads, E entries of a head.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.model.causal_model import CausalModel

CACHE_BYTES = 512 << 20  # per receiver

LayerCache = tuple[Tensor, Tensor]  # keys and values, [H, P, E]; layers may differ in H and E


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast uses now, None where it is off. Outputs of different dtypes are cached apart."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


class PromptPrefixCache:
    """KV caches of prompt prefixes, keyed by their tokens; the least recently used are dropped."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._caches: LRUCache[Hashable, list[LayerCache]] = LRUCache(CACHE_BYTES, getsizeof=_bytes)

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
        known = self._compute(set(filter(None, prefixes)))
        some_layers = next(iter(known.values()))
        known[()] = [(keys[:, :0], values[:, :0]) for keys, values in some_layers]
        longest = max(map(len, prefixes))
        layers = []
        for layer in zip(*(known[ids] for ids in prefixes), strict=True):
            layers.append(tuple(_join(part, longest) for part in zip(*layer, strict=True)))
        arguments: dict[str, Any] = {self._model.cache_argument: DynamicCache(layers), "use_cache": True}
        if len(set(map(len, prefixes))) > 1:
            device = layers[0][0].device
            lengths_B1 = torch.tensor([[len(ids)] for ids in prefixes], device=device)
            columns_T = torch.arange(longest + new, device=device)
            arguments["attention_mask"] = columns_T >= longest - lengths_B1
            arguments["position_ids"] = lengths_B1 + columns_T[:new]
        return arguments

    @torch.no_grad()
    def _compute(self, prefixes: set[tuple[int, ...]]) -> dict[tuple[int, ...], list[LayerCache]]:
        """Return keys and values of each prefix, per layer; run those that are not cached."""
        from transformers.cache_utils import DynamicCache  # as above

        device = self._model.own.get_input_embeddings().weight.device
        dtype = autocast_dtype(device)
        known = {ids: self._caches[dtype, ids] for ids in prefixes if (dtype, ids) in self._caches}
        missing = sorted(prefixes - known.keys(), key=len)
        if missing:
            longest = len(missing[-1])
            # Padding on the right comes after everything a causal model attends to, so no mask is needed.
            ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in missing], device=device)
            # Without the model's configuration a cache keeps all positions, also of layers with a sliding window.
            arguments = {self._model.cache_argument: DynamicCache(), "use_cache": True}
            cache = self._model.run(self._model.embed(ids_BT), ids_BT, **arguments).cache
            for row, ids in enumerate(missing):
                known[ids] = self._caches[dtype, ids] = [
                    (layer.keys[row, :, : len(ids)].clone(), layer.values[row, :, : len(ids)].clone())
                    for layer in cache.layers
                ]
        return known


def _bytes(layers: Sequence[LayerCache]) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in layers)


def _join(parts: Sequence[Tensor], longest: int) -> Tensor:
    """Return one layer's keys or values of all rows, [B, H, P, E], padded on the left."""
    if all(part is parts[0] for part in parts):
        return parts[0].expand(len(parts), -1, -1, -1)
    return torch.stack([F.pad(part, (0, 0, longest - part.shape[1], 0)) for part in parts])
