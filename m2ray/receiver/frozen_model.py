"""The receiver's model: its embeddings, its forward pass, and its hidden states of messages on their own.

Shapes: B rows, T positions, K slots, F messages that are new, D width, P requests of a forward pass, L outputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from m2ray.receiver.kv_cache import PromptPrefixCache, autocast_dtype
from m2ray.receiver.layout import Layout, Place, PromptBuilder, pad
from m2ray.receiver.requests import EncodedMessage, ForwardOutput, ForwardRequest
from m2ray.tasks.episodes import Episode
from m2ray.util.errors import UserError

MESSAGE_CACHE_BYTES = 32 << 20  # hidden states of messages
CACHED_NULLS = 20_000  # answer NLLs under zeros


class FrozenModel(PromptBuilder):
    """A causal LM with its tokenizer and prompt style. Its weights are frozen."""

    def __init__(self, model: Any, tokenizer: Any, style: str, name: str, card: dict[str, Any]) -> None:
        super().__init__(tokenizer, style, name, int(model.config.max_position_embeddings))
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.prompt_cache = PromptPrefixCache(model)
        # Answer NLL [A] under zeros, by episode, k, place and autocast dtype. No codec enters it: all share it.
        self.null_nll_cache: LRUCache[Hashable, Tensor] = LRUCache(CACHED_NULLS)
        self._message_cache: LRUCache[Hashable, Tensor] = LRUCache(
            MESSAGE_CACHE_BYTES, getsizeof=lambda states: states.nbytes
        )
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = ends if isinstance(ends, list) else [ends]
        self.end_ids = {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
        self._check_tokenizer()

    def _check_tokenizer(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"receiver {self.name}: its tokenizer has no end-of-turn token; set eos_token")
        known, rows = len(self.tokenizer), len(self.embedding_ND)
        if not self.tokens("x1 = 0") or max(self.tokenizer.get_vocab().values()) >= rows:
            raise UserError(
                f"receiver {self.name}: its tokenizer knows {known} tokens, its model {rows}; "
                "give it the tokenizer that the model was trained with"
            )

    # --- properties ---

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def embedding_ND(self) -> Tensor:
        """The token-embedding matrix, [vocabulary, D]."""
        return self.model.get_input_embeddings().weight

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return self.embedding_ND.shape[1]

    @cached_property
    def embedding_norm(self) -> float:
        """Mean Euclidean norm of a token embedding: the unit that prefix norms are measured in."""
        return float(self.embedding_ND.float().norm(dim=1).mean())

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of weights, vocabulary and prompt style."""
        sha = hashlib.sha256(repr(self.style).encode())
        if self.style.chat:
            sha.update(str(self.tokenizer.chat_template).encode())
        sha.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return sha.hexdigest()[:16]

    # --- forward ---

    def layout(self, episodes: Sequence[Episode], texts: Sequence[str] | int, place: Place = "message") -> Layout:
        """Return `PromptBuilder.layout` on the model's device."""
        return super().layout(episodes, texts, place).to(self.device)

    def embed(self, layout: Layout, prefix_BKD: Tensor | None) -> Tensor:
        """Return the input embeddings [B, T, D] of a layout, its open slots filled with the prefix."""
        return self._embed_ids(layout.ids_BT, layout.slots_BK, prefix_BKD)

    def _embed_ids(self, ids_BT: Tensor, slots_BK: Tensor, prefix_BKD: Tensor | None) -> Tensor:
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        if prefix_BKD is None or slots_BK.shape[1] == 0:
            return embeds_BTD
        rows_B1 = torch.arange(len(embeds_BTD), device=self.device)[:, None]
        return embeds_BTD.index_put((rows_B1, slots_BK), prefix_BKD.to(embeds_BTD.dtype))

    def forward(self, requests: Sequence[ForwardRequest], rows_at_once: int | None = None) -> list[ForwardOutput]:
        """Run requests as one batch.

        Rows are padded on the right, after everything a causal model attends to, so no row depends on another.

        Args:
            requests: Requests with equal `states` and `grad`.
            rows_at_once: Rows per model call. Activations are then recomputed for the gradients instead of kept
                (see `m2ray.training.microbatch`).
        """
        states, grad = requests[0].states, requests[0].grad
        length = max(request.embeds_BTD.shape[1] for request in requests)
        embeds_BTD = torch.cat([F.pad(r.embeds_BTD, (0, 0, 0, length - r.embeds_BTD.shape[1])) for r in requests])
        cached = [tokens for request in requests for tokens in request.cached_tokens]
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            layers = self._run_in_parts(embeds_BTD, cached, states, rows_at_once)
        rows = [len(request.embeds_BTD) for request in requests]
        outputs = []
        split_LP = zip(*(torch.split(layer_BTD, rows) for layer_BTD in layers), strict=True)
        for request, parts in zip(requests, split_LP, strict=True):
            last_BTD, *hidden = (part_BTD[:, : request.embeds_BTD.shape[1]] for part_BTD in parts)
            outputs.append(ForwardOutput(last_BTD, tuple(hidden)))
        return outputs

    def _run_in_parts(
        self, embeds_BTD: Tensor, cached: list[list[int]], states: bool, rows_at_once: int | None
    ) -> list[Tensor]:
        """Return `_run` of all rows, `rows_at_once` at a time."""
        size = rows_at_once or len(embeds_BTD)
        recompute = rows_at_once is not None and torch.is_grad_enabled()
        parts = []
        for part_BTD, first in zip(torch.split(embeds_BTD, size), range(0, len(cached), size), strict=True):
            run = partial(self._run, cached=cached[first : first + size], states=states)
            parts.append(checkpoint(run, part_BTD, use_reentrant=False) if recompute else run(part_BTD))
        return [torch.cat(layer) for layer in zip(*parts, strict=True)] if parts[1:] else parts[0]

    def _run(self, embeds_BTD: Tensor, cached: list[list[int]], states: bool) -> list[Tensor]:
        """Return the last layer's output and, with `states`, the output of every layer."""
        arguments = self.prompt_cache.forward_arguments(cached, embeds_BTD.shape[1])
        output = self.model.get_decoder()(
            inputs_embeds=embeds_BTD, use_cache=bool(arguments), output_hidden_states=states, **arguments
        )
        return [output[0], *(output.hidden_states[1:] if states else ())]

    # --- messages ---

    def encode_messages(self, texts: Sequence[str]) -> EncodedMessage:
        """Return the model's own embeddings and hidden states of messages."""
        return self.encode_token_ids([self.tokens(text) for text in texts])

    @torch.no_grad()
    def encode_token_ids(self, rows: Sequence[Sequence[int]]) -> EncodedMessage:
        """Return `encode_messages` of messages that are token ids already. Recent results are cached."""
        ids_BT = pad(rows, self.tokenizer.eos_token_id).to(self.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BT = torch.arange(ids_BT.shape[1], device=self.device) < lengths_B[:, None]
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        dtype = autocast_dtype(self.device)
        keys = [(dtype, tuple(row)) for row in rows]
        known = {key: self._message_cache[key] for key in keys if key in self._message_cache}
        if new := {key: i for i, key in enumerate(keys) if key not in known}:
            new_FTD = embeds_BTD[list(new.values())]
            output = self.model.get_decoder()(inputs_embeds=new_FTD, use_cache=False, output_hidden_states=True)
            both_FT2D = torch.stack([output.hidden_states[1], output[0]], dim=2)
            for key, both_T2D in zip(new, both_FT2D, strict=True):
                self._message_cache[key] = known[key] = both_T2D[: len(key[1])].clone()
        first_BTD, states_BTD = pad_sequence([known[key] for key in keys], batch_first=True).unbind(2)
        return EncodedMessage(ids_BT, mask_BT, embeds_BTD, first_BTD, states_BTD)

    def clear_caches(self) -> None:
        """Free the memory of all caches: messages, prompt prefixes, answers under zeros."""
        self._message_cache.clear()
        self.null_nll_cache.clear()
        self.prompt_cache.clear()
