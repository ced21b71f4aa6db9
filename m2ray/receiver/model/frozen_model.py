"""The receiver's model: its forward pass over batches of rows, and its hidden states of messages on their own.

Shapes: B rows, T positions, N tokens, K slots, F messages that are new, D width, R requests of a forward pass,
L outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m2ray.receiver.channel import Channel, Slots
from m2ray.receiver.digest import Source, receiver_digest, source_of
from m2ray.receiver.layout import UNLIMITED, Layout, Place, PromptBuilder, pad
from m2ray.receiver.model.causal_model import PLAIN, CausalModel, Ways
from m2ray.receiver.model.kv_cache import PromptPrefixCache, autocast_dtype
from m2ray.receiver.model.numeric_type import type_name
from m2ray.receiver.model.requests import EncodedMessage, ForwardOutput, ForwardRequest, States
from m2ray.receiver.model.rows import RowRunner, Rows, join_requests
from m2ray.tasks.episodes import AnyEpisode
from m2ray.util.errors import UserError

MESSAGE_CACHE_BYTES = 32 << 20  # hidden states of messages
CACHED_NULLS = 20_000  # answer NLLs under zeros
EMBEDDED_AT_ONCE = 16_384  # tokens


Frozen = TypeVar("Frozen", bound="FrozenModel")


class FrozenModel(PromptBuilder):
    """A causal LM with its tokenizer and prompt style. Its weights are frozen.

    Args:
        model: The causal LM.
        tokenizer: Its tokenizer.
        style: A name in `m2ray.receiver.prompts.STYLES`.
        name: The receiver's name, for error messages.
        card: Its `m2ray.json`.
        ways: The ways of running the model that give its own numbers. The default is slow, and exact for any
            model; `m2ray.receiver.loading` finds the fast ones.
        source: What the receiver was made from, for its digest.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        style: str,
        name: str,
        card: dict[str, Any],
        ways: Ways = PLAIN,
        source: Source | None = None,
    ) -> None:
        super().__init__(tokenizer, style, name, model.config, model.generation_config)
        self.max_positions = min(self.max_positions, _positions(model))
        self.card = card
        self._source = source
        self.opened: dict[Hashable, Channel]  # see `m2ray.receiver.conformance.opening`
        self._views: dict[Channel, Any] = {}
        # Answer NLL [A] under zeros, by episode, k, place and autocast dtype. No codec enters it: all share it.
        self.null_nll_cache: LRUCache[Hashable, Tensor]
        self._forget()
        self.set_model(model.eval().requires_grad_(False), ways)
        self.check_vocabulary(self.vocabulary)

    def set_model(self, model: Any, ways: Ways) -> None:
        """Replace the model, or the ways of running it."""
        self.model = model
        self.causal = CausalModel(model, ways)
        self.prompt_cache = PromptPrefixCache(self.causal)
        self._runner = RowRunner(self.causal, self.prompt_cache, self.pad_id)
        self.clear_caches()
        self._views, self.opened = {}, {}

    def run_in(self: Frozen, ways: Ways) -> Frozen:
        """Return the same receiver, run in other ways; it shares all but caches of what was run."""
        twin = copy.copy(self)
        twin._views = {}  # those of the original stay
        twin._forget()
        twin.set_model(self.model, ways)
        return twin

    def _forget(self) -> None:
        """Give this copy empty caches."""
        self.null_nll_cache = LRUCache(CACHED_NULLS)
        self._message_cache, self._own_cache = _message_cache(), _message_cache()

    def through(self: Frozen, channel: Channel) -> Frozen:
        """Return the same receiver, whose slots are filled through a channel; it shares model and prompt cache."""
        if channel is self.channel:
            return self
        if channel not in self._views:
            view = copy.copy(self)
            view.channel, view._views = channel, {}
            view._forget()
            self._views[channel] = view
        found: Frozen = self._views[channel]
        return found

    # --- properties ---

    @property
    def dtype_name(self) -> str:
        """The numeric type as configurations have it, such as float32."""
        return type_name(self.dtype)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @cached_property
    def embedding_ND(self) -> Tensor:
        """What enters the model for each token, [vocabulary, D].

        For most models these are the rows of the embedding matrix. Some scale them in the embedding layer.
        """
        embedding = self.model.get_input_embeddings()
        if type(embedding) is torch.nn.Embedding and embedding.max_norm is None:
            return embedding.weight
        return torch.cat(list(self._every_embedding()))

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings of."""
        return len(self.model.get_input_embeddings().weight)

    @cached_property
    def width(self) -> int:
        """D, the width of an embedding."""
        return self.causal.embed(torch.zeros(1, 1, dtype=torch.long, device=self.device)).shape[-1]

    @cached_property
    def layers(self) -> int:
        """L, the number of layers; configurations of encoders and decoders name several."""
        ids_BT = torch.tensor([[self.pad_id]], device=self.device)
        with torch.no_grad():
            return len(self.causal.run(self.causal.embed(ids_BT), ids_BT, states=True).hidden)

    @cached_property
    def embedding_norm(self) -> float:
        """Mean Euclidean norm of a token's embedding as it enters the model: the unit of prefix norms."""
        return float(torch.cat([part_ND.float().norm(dim=1) for part_ND in self._every_embedding()]).mean())

    def _every_embedding(self) -> Iterator[Tensor]:
        """Yield what enters the model for each token, [N, D] at a time."""
        for ids_N in torch.split(torch.arange(self.vocabulary, device=self.device), EMBEDDED_AT_ONCE):
            yield self.causal.embed(ids_N).detach()

    @cached_property
    def digest(self) -> str:
        """All that decides the receiver's numbers, in 16 hex digits; see `m2ray.receiver.digest`."""
        return receiver_digest(self, self._source or source_of(self.model, self.tokenizer))

    @cached_property
    def channel(self) -> Channel:
        """The channel of the slots: input embeddings, unless this is a view made by `through`."""
        return Channel("embeddings", (), self.width, self.embedding_norm)

    # --- forward ---

    def layout(
        self,
        episodes: Sequence[AnyEpisode],
        texts: Sequence[str] | int,
        place: Place = "message",
        open_texts: bool = False,
    ) -> Layout:
        """Return `PromptBuilder.layout` on the model's device."""
        return super().layout(episodes, texts, place, open_texts).to(self.device)

    def embed(self, layout: Layout, prefix_BKD: Tensor | None) -> Tensor:
        """Return the input embeddings [B, T, D] of a layout, its open slots filled with the prefix.

        Raises:
            UserError: the prefix is for another channel.
        """
        if prefix_BKD is not None and prefix_BKD.shape[-1] != self.channel.width:
            raise UserError(
                f"prefix: {prefix_BKD.shape[-1]} entries for each slot, but the receiver's channel "
                f"{self.channel.kind} takes {self.channel.width}; use the codec's own: codec.receiver"
            )
        return self._embed_ids(layout.ids_BT, layout.slots_BK, prefix_BKD)

    def _embed_ids(self, ids_BT: Tensor, slots_BK: Tensor, prefix_BKD: Tensor | None) -> Tensor:
        embeds_BTD = self.causal.embed(ids_BT)
        if prefix_BKD is None or slots_BK.shape[1] == 0 or self.channel.kind != "embeddings":
            return embeds_BTD
        rows_B1 = torch.arange(len(embeds_BTD), device=self.device)[:, None]
        return embeds_BTD.index_put((rows_B1, slots_BK), prefix_BKD.to(embeds_BTD.dtype))

    def slots(self, columns_BK: Tensor, prefix_BKD: Tensor | None) -> Slots | None:
        """Return the vectors that enter elsewhere than in the input embeddings."""
        if prefix_BKD is None or columns_BK.shape[1] == 0 or self.channel.kind == "embeddings":
            return None
        return Slots(self.channel, columns_BK, prefix_BKD)

    def forward(self, requests: Sequence[ForwardRequest], rows_at_once: int | None = None) -> list[ForwardOutput]:
        """Run requests as one batch where that is exact, else rows of one length at a time.

        Args:
            requests: Requests with equal `states` and `grad`, and with slots of one channel.
            rows_at_once: Rows per model call. Activations are then recomputed for the gradients instead of kept
                (see `m2ray.training.microbatch`).
        """
        states, grad = requests[0].states, requests[0].grad
        rows = join_requests(requests)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            layers = self._runner.run(rows, states, rows_at_once)
        counts = [len(request.embeds_BTD) for request in requests]
        outputs = []
        split_LR = zip(*(torch.split(layer_BTD, counts) for layer_BTD in layers), strict=True)
        for request, parts in zip(requests, split_LR, strict=True):
            last_BTD, *hidden = (part_BTD[:, : request.embeds_BTD.shape[1]] for part_BTD in parts)
            outputs.append(ForwardOutput(last_BTD, tuple(hidden)))
        return outputs

    # --- messages ---

    def encode_messages(self, texts: Sequence[str]) -> EncodedMessage:
        """Return the model's own embeddings and hidden states of messages."""
        return self.encode_token_ids([self.tokens(text) for text in texts])

    @torch.no_grad()
    def encode_token_ids(self, rows: Sequence[Sequence[int]]) -> EncodedMessage:
        """Return `encode_messages` of messages that are token ids already. Recent results are cached.

        A tokenizer's opening tokens precede a message when it is run. Their states are not part of the result.
        """
        ids_BT = pad(rows, self.pad_id).to(self.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BT = torch.arange(ids_BT.shape[1], device=self.device) < lengths_B[:, None]
        embeds_BTD = self.causal.embed(ids_BT)
        both = self._known_or_new(self._message_cache, rows, self._message_states)
        first_BTD, states_BTD = pad_sequence(both, batch_first=True).unbind(2)
        own_BTD = embeds_BTD
        if self.channel.kind != "embeddings":
            own_BTD = pad_sequence(self._known_or_new(self._own_cache, rows, self.own_vectors), batch_first=True)
        return EncodedMessage(ids_BT, mask_BT, embeds_BTD, first_BTD, states_BTD, own_BTD)

    def _known_or_new(
        self,
        cache: LRUCache[Hashable, Tensor],
        rows: Sequence[Sequence[int]],
        compute: Callable[[Sequence[tuple[int, ...]]], list[Tensor]],
    ) -> list[Tensor]:
        """Return a tensor for each message, from the cache or computed for all new ones together."""
        dtype = autocast_dtype(self.device)
        keys = [(dtype, tuple(row)) for row in rows]
        known = {key: cache[key] for key in keys if key in cache}
        if new := list(dict.fromkeys(key for key in keys if key not in known)):
            for key, tensor in zip(new, compute([key[1] for key in new]), strict=True):
                cache[key] = known[key] = tensor
        return [known[key] for key in keys]

    def _message_states(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the hidden states of messages after the first and the last layer, [T, 2, D] each."""
        layers = self._run_alone(rows, True)
        # The output of the trunk is the last layer's, normalized. The whole model's output is logits.
        last_FTD = layers[0] if self.causal.ways.trunk is not None else layers[-1]
        return self._without_opening(rows, torch.stack([layers[1], last_FTD], dim=2))

    @torch.no_grad()
    def own_vectors(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the model's own vectors in its channel at the tokens of messages on their own, [T, D] each."""
        if self.channel.kind == "embeddings":
            return [self.causal.embed(torch.tensor(list(row), device=self.device)) for row in rows]
        return self._without_opening(rows, self._run_alone(rows, self.channel)[1])

    def _run_alone(self, rows: Sequence[Sequence[int]], states: States) -> list[Tensor]:
        """Run messages behind the opening tokens."""
        opening = self.opening_ids
        ids_FT = pad([[*opening, *row] for row in rows], self.pad_id).to(self.device)
        lengths = [len(opening) + len(row) for row in rows]
        nothing: list[list[int]] = [[] for _ in rows]
        return self._runner.run(Rows(self.causal.embed(ids_FT), ids_FT, lengths, nothing), states, None)

    def _without_opening(self, rows: Sequence[Sequence[int]], states_FTX: Tensor) -> list[Tensor]:
        first = len(self.opening_ids)
        return [
            states_TX[first : first + len(row)].clone() for row, states_TX in zip(rows, states_FTX, strict=True)
        ]

    def clear_caches(self) -> None:
        """Free the memory of all caches: messages, prompt prefixes, answers under zeros."""
        for each in (self, *self._views.values()):
            each._message_cache.clear()
            each._own_cache.clear()
            each.null_nll_cache.clear()
        self.prompt_cache.clear()


def _positions(model: Any) -> int:
    """Return how many tokens fit into a model's tables of positions that begin behind a padding row (RoBERTa)."""
    tables = [
        table.num_embeddings - table.padding_idx - 1
        for name, table in model.named_modules()
        if "position" in name and isinstance(table, torch.nn.Embedding) and table.padding_idx is not None
    ]
    return min(tables, default=UNLIMITED)


def _message_cache() -> LRUCache[Hashable, Tensor]:
    return LRUCache(MESSAGE_CACHE_BYTES, getsizeof=lambda states: states.nbytes)
