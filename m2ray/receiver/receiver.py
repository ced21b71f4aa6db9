"""The receiver: a frozen causal LM that reads a prefix in its own embedding space, scores answers and decodes.

Any Hugging Face causal LM is loaded the same way, the embedded `mini` included.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain, D width,
L layers, S tokens behind the slots, W words of the vocabulary.
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

from m2ray.receiver.decoding import Prefill, decode_rows
from m2ray.receiver.layout import Layout, Place, PromptBuilder, pad
from m2ray.receiver.prefix_cache import PromptPrefixCache, autocast_dtype
from m2ray.receiver.requests import AnswerOutput, EncodedMessage, ForwardOutput, ForwardRequest
from m2ray.tasks.episodes import Episode
from m2ray.util.errors import UserError

MESSAGE_CACHE_BYTES = 32 << 20  # of the hidden states of messages that are kept


CACHED_NULLS = 20_000


class Receiver(PromptBuilder):
    """A causal LM with its tokenizer and prompt style. Its weights are frozen; gradients flow through it only
    to what is injected.
    """

    def __init__(self, model: Any, tokenizer: Any, style: str, name: str, card: dict[str, Any]) -> None:
        super().__init__(tokenizer, style, name, int(model.config.max_position_embeddings))
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.starts = PromptPrefixCache(model)
        # Answer NLL [A] under zeros, by episode, k, place and precision: of no codec, so that all share them.
        self.nulls: LRUCache[Hashable, Tensor] = LRUCache(CACHED_NULLS)
        self._read: LRUCache[Hashable, Tensor] = LRUCache(
            MESSAGE_CACHE_BYTES, getsizeof=lambda states: states.nbytes
        )
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = ends if isinstance(ends, list) else [ends]
        self.end_ids = {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
        if tokenizer.eos_token_id is None:
            raise UserError(f"receiver {name}: its tokenizer has no end-of-turn token; set eos_token")
        known, rows = len(tokenizer), len(self.embedding_ND)
        if not self.tokens("x1 = 0") or max(tokenizer.get_vocab().values()) >= rows:
            raise UserError(
                f"receiver {name}: its tokenizer knows {known} tokens, its model {rows}; "
                "give it the tokenizer that the model was trained with"
            )

    # --- what it is ---

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return next(self.model.parameters()).dtype

    @property
    def embedding_ND(self) -> Tensor:
        """Token-embedding matrix, [vocabulary, D]."""
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
        """`Wording.layout`, where the weights are."""
        return super().layout(episodes, texts, place).to(self.device)

    def embed(self, layout: Layout, prefix_BKD: Tensor | None) -> Tensor:
        """Input embeddings [B, T, D] of a layout, its open slots filled with the prefix."""
        return self._filled(layout.ids_BT, layout.slots_BK, prefix_BKD)

    def _filled(self, ids_BT: Tensor, slots_BK: Tensor, prefix_BKD: Tensor | None) -> Tensor:
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        if prefix_BKD is None or slots_BK.shape[1] == 0:
            return embeds_BTD
        rows_B1 = torch.arange(len(embeds_BTD), device=self.device)[:, None]
        return embeds_BTD.index_put((rows_B1, slots_BK), prefix_BKD.to(embeds_BTD.dtype))

    def forward(self, passes: Sequence[ForwardRequest], at_once: int | None = None) -> list[ForwardOutput]:
        """Make passes that ask for the same, as one batch.

        Rows are padded on the right, behind everything that a causal model looks at, so that what is in one row
        does not depend on the others.

        Args:
            passes: Of equal `states` and `grad`.
            at_once: Rows that are read at a time. What lies between input and output is then not kept for the
                gradients but computed again (`m2ray.memory`).
        """
        states, grad = passes[0].states, passes[0].grad
        length = max(one.embeds_BTD.shape[1] for one in passes)
        embeds = [F.pad(one.embeds_BTD, (0, 0, 0, length - one.embeds_BTD.shape[1])) for one in passes]
        embeds_BTD, starts = torch.cat(embeds), [start for one in passes for start in one.starts]
        size = at_once or len(embeds_BTD)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            parts_PL = []
            for part_BTD, first in zip(torch.split(embeds_BTD, size), range(0, len(starts), size), strict=True):
                read = partial(self._layers, starts=starts[first : first + size], states=states)
                again = at_once is not None and torch.is_grad_enabled()
                parts_PL.append(checkpoint(read, part_BTD, use_reentrant=False) if again else read(part_BTD))
            layers = [torch.cat(parts) for parts in zip(*parts_PL, strict=True)] if parts_PL[1:] else parts_PL[0]
        rows = [len(one.embeds_BTD) for one in passes]
        split = zip(*(layer_BTD.split(rows) for layer_BTD in layers), strict=True)
        made = []
        for one, parts in zip(passes, split, strict=True):
            last_BTD, *hidden = (part_BTD[:, : one.embeds_BTD.shape[1]] for part_BTD in parts)
            made.append(ForwardOutput(last_BTD, tuple(hidden)))
        return made

    def _layers(self, embeds_BTD: Tensor, starts: list[list[int]], states: bool) -> list[Tensor]:
        """The last layer's output, and where asked what is behind every layer."""
        past = self.starts.before(starts, embeds_BTD.shape[1])
        out = self.model.get_decoder()(
            inputs_embeds=embeds_BTD, use_cache=bool(past), output_hidden_states=states, **past
        )
        return [out[0], *(out.hidden_states[1:] if states else ())]

    def hearing(
        self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int, states: bool, grad: bool = True
    ) -> ForwardRequest:
        """The pass that `heard` makes sense of: what follows the known tokens of each row."""
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.known_B
        length = int(answer_B.max()) + answer_len - (not states)  # the last token predicts nothing that is asked
        # A row's first tokens are known; what follows them moves to the front.
        places_BT = layout.known_B[:, None] + torch.arange(length, device=self.device)
        places_BT = places_BT.clamp(max=layout.ids_BT.shape[1] - 1)
        slots_BK = layout.slots_BK - layout.known_B[:, None]
        embeds_BTD = self._filled(layout.ids_BT[rows_B1, places_BT], slots_BK, prefix_BKD)
        return ForwardRequest(embeds_BTD, layout.starts(), states, grad)

    def heard(self, layout: Layout, answer_len: int, passed: ForwardOutput) -> AnswerOutput:
        """What a pass of `hearing` says: logits, and where asked the hidden states behind the message's place.

        The last tokens of a row are the same whatever stands in the message's place, so states of two layouts of
        the same episodes lie side by side.
        """
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.known_B
        predict_BA = answer_B[:, None] - 1 + torch.arange(answer_len, device=self.device)
        logits_BAW = self.model.get_output_embeddings()(passed.last_BTD[rows_B1, predict_BA])
        if not passed.hidden:
            return AnswerOutput(logits_BAW, None, None)
        tail_B = layout.behind_B + answer_len
        back_S = torch.arange(int(tail_B.max()), 0, -1, device=self.device)
        at_BS = (answer_B[:, None] + answer_len - back_S).clamp(min=0)
        states_BLSD = torch.stack([layer_BTD[rows_B1, at_BS] for layer_BTD in passed.hidden], dim=1)
        return AnswerOutput(logits_BAW, states_BLSD, back_S <= tail_B[:, None])

    def hear(self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int, states: bool) -> AnswerOutput:
        """What the receiver makes of rows, teacher-forced on the reference answer."""
        (passed,) = self.forward([self.hearing(layout, prefix_BKD, answer_len, states)])
        return self.heard(layout, answer_len, passed)

    def logits(self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int) -> Tensor:
        """Logits [B, A, vocabulary] that predict the answer tokens, teacher-forced on the reference answer."""
        return self.hear(layout, prefix_BKD, answer_len, states=False).logits_BAW

    def standing(
        self, episodes: Sequence[Episode], embeds_BTD: Tensor, place: Place, grad: bool
    ) -> ForwardRequest:
        """The pass over vectors that stand in a place of the episodes' prompts.

        It yields hidden states at these; those behind the last layer nothing reads.
        """
        halves = [self.prompt(episode) for episode in episodes]
        starts = [{"message": before, "before": [], "after": before + after}[place] for before, after in halves]
        return ForwardRequest(embeds_BTD.to(self.dtype), starts, True, grad)

    def targets(self, episodes: Sequence[Episode], with_message: bool = True) -> Tensor:
        """What a perfect reasoner writes, who holds the message or B's half only.

        Returns:
            [B, V, N] probability of each value in each place, given the reference answer's values before it.
        """
        rows = [
            e.level.value_probabilities((e.sender if with_message else ()) + e.receiver, e.solution)
            for e in episodes
        ]
        return torch.tensor(rows, device=self.device)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> EncodedMessage:
        """The receiver's own token embeddings and hidden states of messages, padded on the right."""
        return self.read_ids([self.tokens(text) for text in texts])

    @torch.no_grad()
    def read_ids(self, rows: Sequence[Sequence[int]]) -> EncodedMessage:
        """`read` for messages that are token ids already. What was read lately is not read again."""
        ids_BT = pad(rows, self.tokenizer.eos_token_id).to(self.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BT = torch.arange(ids_BT.shape[1], device=self.device) < lengths_B[:, None]
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        now = autocast_dtype(self.device)
        keys = [(now, tuple(row)) for row in rows]
        known = {key: self._read[key] for key in keys if key in self._read}
        if fresh := {key: i for i, key in enumerate(keys) if key not in known}:
            fresh_FTD = embeds_BTD[list(fresh.values())]
            out = self.model.get_decoder()(inputs_embeds=fresh_FTD, use_cache=False, output_hidden_states=True)
            both_FT2D = torch.stack([out.hidden_states[1], out[0]], dim=2)
            for key, both_T2D in zip(fresh, both_FT2D, strict=True):
                self._read[key] = known[key] = both_T2D[: len(key[1])].clone()
        first_BTD, states_BTD = pad_sequence([known[key] for key in keys], batch_first=True).unbind(2)
        return EncodedMessage(ids_BT, mask_BT, embeds_BTD, first_BTD, states_BTD)

    def forget(self) -> None:
        """Give back the memory of what it has read: messages, beginnings of prompts, answers behind zeros."""
        self._read.clear()
        self.nulls.clear()
        self.starts.forget()

    # --- decode ---

    def decode(
        self,
        episodes: Sequence[Episode],
        texts: Sequence[str] | int,
        prefix_BKD: Tensor | None = None,
        place: Place = "message",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> list[str]:
        """B's answers as text, decoded as one batch with a KV cache; `play` without the logits."""
        return self.play(episodes, texts, prefix_BKD, place, temperature, max_new_tokens, seed)[0]

    @torch.no_grad()
    def play(
        self,
        episodes: Sequence[Episode],
        texts: Sequence[str] | int,
        prefix_BKD: Tensor | None = None,
        place: Place = "message",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> tuple[list[str], Tensor]:
        """B's answers as text, and the logits [B, V, vocabulary] that predict the reference answers' values.

        Prompt and reference answer are read once for both: as far as B agrees with the reference, that has been
        decoded as well (`m2ray.decoding`).

        Args:
            episodes: B rows of one level.
            texts: Text per row in the message's place, or k open slots that `prefix_BKD` fills.
            prefix_BKD: The prefix.
            place: Where open slots go.
            temperature: 0 decodes greedily. Else samples, with noise that depends on `seed` and the episode
                only, so an episode's answer is the same in any batch and paired across conditions.
            max_new_tokens: Longest answer; the receiver's context may end it sooner.
            seed: Of the sampling noise.
        """
        layout = self.layout(episodes, texts, place)
        level = episodes[0].level
        drafts = self.answers(level, torch.tensor([e.solution for e in episodes])).tolist()
        primed = self._prime(self.embed(layout, prefix_BKD), layout.answer_B, layout.starts(), len(drafts[0]) - 1)
        seeds = [seed * 1_000_003 + episode.seed for episode in episodes]
        places = self.frame(level).places_V.tolist()
        texts_out, logits_BVW = self._write(primed, drafts, places, seeds, temperature, max_new_tokens)
        assert logits_BVW is not None
        return texts_out, logits_BVW

    @torch.no_grad()
    def generate(
        self,
        embeds_BTD: Tensor,
        lengths_B: Tensor,
        seeds: Sequence[int],
        temperature: float = 0.0,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Continue rows of input embeddings, padded on the right, each of its own length; see `play`."""
        nothing: list[list[int]] = [[] for _ in lengths_B]
        primed = self._prime(embeds_BTD, lengths_B, nothing, 0)
        return self._write(primed, nothing, [], seeds, temperature, max_new_tokens)[0]

    def _prime(
        self, embeds_BTD: Tensor, lengths_B: Tensor, starts: Sequence[Sequence[int]], guessed: int
    ) -> Prefill:
        """Read rows of embeddings, padded on the right: prompts, of which the first tokens are known, and behind
        them so many tokens of a guess.
        """
        self._check_context(int(lengths_B.max()) + 1)
        known_B = torch.tensor([len(start) for start in starts], device=self.device)
        rest_B = lengths_B + guessed - known_B
        length = int(rest_B.max())
        # Move the padding from right to left, so that all rows end, and go on, in the same column.
        shift_BT = torch.arange(length, device=self.device) - (length - rest_B)[:, None]
        source_BT = known_B[:, None] + shift_BT.clamp(min=0)
        embeds_BTD = embeds_BTD.gather(1, source_BT[..., None].expand(-1, -1, embeds_BTD.shape[2]))
        past = self.starts.before(starts, length)
        longest = int(known_B.max())
        places_P = torch.arange(longest, device=self.device)
        mask_BT = torch.cat([places_P >= longest - known_B[:, None], shift_BT >= 0], dim=1)
        out = self.model.get_decoder()(
            inputs_embeds=embeds_BTD,
            use_cache=True,
            **{**past, "position_ids": source_BT, "attention_mask": mask_BT},
        )
        return Prefill(out[self.starts.past], out[0][:, -1 - guessed :], mask_BT, lengths_B)

    def _write(
        self,
        primed: Prefill,
        drafts: Sequence[Sequence[int]],
        places: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
    ) -> tuple[list[str], Tensor | None]:
        limits = [min(max_new_tokens, self.max_positions - length) for length in primed.lengths_B.tolist()]
        rows, logits_BVW = decode_rows(
            self.model, self.starts.past, primed, drafts, places, seeds, temperature, limits, self.end_ids
        )
        return [self._text(row) for row in rows], logits_BVW

    def _text(self, row: list[int]) -> str:
        stop = next((i for i, token in enumerate(row) if token in self.end_ids), len(row))
        return str(self.tokenizer.decode(row[:stop], skip_special_tokens=True))
