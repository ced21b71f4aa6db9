"""The receiver: a frozen causal LM that reads a prefix in its own embedding space, scores answers and decodes.

Any Hugging Face causal LM is loaded the same way, the embedded `mini` included.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain, D width,
L layers, S tokens behind the slots, W words of the vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from m2ray.command import UserError
from m2ray.layout import Layout, Place, Wording, pad
from m2ray.starts import Starts
from m2ray.task import Episode, value_probabilities

READ_BYTES = 64 << 20  # of the last hidden states of messages that are kept


class Heard(NamedTuple):
    """What the receiver makes of its prompt, teacher-forced on the reference answer."""

    logits_BAW: Tensor  # that predict the answer tokens
    states_BLSD: Tensor | None  # behind each of L layers, at the last S tokens of prompt and answer
    mask_BS: Tensor | None  # which of those lie behind the message's place

    def first(self, rows: int) -> Heard:
        """The first rows of a batch."""
        states_BLSD, mask_BS = (None if field is None else field[:rows] for field in self[1:])
        return Heard(self.logits_BAW[:rows], states_BLSD, mask_BS)


class Primed(NamedTuple):
    """A prompt that the receiver has read, padded on the left: ready to be continued or scored."""

    cache: Any
    logits_BW: Tensor  # that predict the first answer token
    mask_BT: Tensor
    lengths_B: Tensor

    def rows(self, picked: list[int]) -> Primed:
        """Some of the rows; their cache is no longer that of all."""
        if len(picked) < len(self.lengths_B):
            self.cache.batch_select_indices(torch.tensor(picked, device=self.lengths_B.device))
        return Primed(self.cache, self.logits_BW[picked], self.mask_BT[picked], self.lengths_B[picked])


class Reading(NamedTuple):
    """What the receiver makes of messages on their own: the codec's input."""

    ids_BT: Tensor
    mask_BT: Tensor
    embeds_BTD: Tensor
    states_BTD: Tensor  # last hidden layer


class Receiver(Wording):
    """A causal LM with its tokenizer and prompt style. Its weights are frozen; gradients flow through it only
    to what is injected.
    """

    def __init__(self, model: Any, tokenizer: Any, style: str, name: str, card: dict[str, Any]) -> None:
        super().__init__(tokenizer, style, name, int(model.config.max_position_embeddings))
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.starts = Starts(model)
        self._read: LRUCache[tuple[int, ...], Tensor] = LRUCache(
            READ_BYTES, getsizeof=lambda states: states.nbytes
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
        embeds_BTD = self.model.get_input_embeddings()(layout.ids_BT)
        if prefix_BKD is None or layout.slots_BK.shape[1] == 0:
            return embeds_BTD
        rows_B1 = torch.arange(len(embeds_BTD), device=self.device)[:, None]
        return embeds_BTD.index_put((rows_B1, layout.slots_BK), prefix_BKD.to(embeds_BTD.dtype))

    def logits(self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int) -> Tensor:
        """Logits [B, A, vocabulary] that predict the answer tokens, teacher-forced on the reference answer."""
        return self.hear(layout, prefix_BKD, answer_len, states=False).logits_BAW

    def hear(self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int, states: bool) -> Heard:
        """`logits`, and where asked the hidden states behind the message's place.

        Rows are padded on the right, behind everything a causal model looks at, so no mask is needed. The last
        tokens of a row are the same whatever stands in the message's place, so states of two layouts of the same
        episodes lie side by side.
        """
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.known_B
        length = int(answer_B.max()) + answer_len
        # A row's first tokens are known; what follows them moves to the front.
        places_BT = layout.known_B[:, None] + torch.arange(length, device=self.device)
        places_BT = places_BT.clamp(max=layout.ids_BT.shape[1] - 1)
        embeds_BTD = self.embed(layout, prefix_BKD)[rows_B1, places_BT]
        past = self.starts.before(layout.starts(), length)
        out = self.model.get_decoder()(
            inputs_embeds=embeds_BTD, use_cache=bool(past), output_hidden_states=states, **past
        )
        predict_BA = answer_B[:, None] - 1 + torch.arange(answer_len, device=self.device)
        logits_BAW = self.model.get_output_embeddings()(out[0][rows_B1, predict_BA])
        if not states:
            return Heard(logits_BAW, None, None)
        tail_B = layout.behind_B + answer_len
        back_S = torch.arange(int(tail_B.max()), 0, -1, device=self.device)
        at_BS = (answer_B[:, None] + answer_len - back_S).clamp(min=0)
        states_BLSD = torch.stack([layer_BTD[rows_B1, at_BS] for layer_BTD in out.hidden_states[1:]], dim=1)
        return Heard(logits_BAW, states_BLSD, back_S <= tail_B[:, None])

    def states_of(self, episodes: Sequence[Episode], embeds_BTD: Tensor, place: Place) -> Tensor:
        """Hidden states [B, L - 1, T, D] at vectors that stand in a place of the episodes' prompts.

        Behind each layer but the last, whose states at these places nothing reads.
        """
        halves = [self.prompt(episode) for episode in episodes]
        starts = [{"message": before, "before": [], "after": before + after}[place] for before, after in halves]
        past = self.starts.before(starts, embeds_BTD.shape[1])
        out = self.model.get_decoder()(
            inputs_embeds=embeds_BTD.to(self.dtype), use_cache=bool(past), output_hidden_states=True, **past
        )
        return torch.stack(out.hidden_states[1:-1], dim=1)

    def targets(self, episodes: Sequence[Episode], with_message: bool = True) -> Tensor:
        """What a perfect reasoner writes, who holds the message or B's half only.

        Returns:
            [B, V, N] probability of each value in each place, given the reference answer's values before it.
        """
        rows = [
            value_probabilities(e.level, (e.sender if with_message else ()) + e.receiver, e.solution)
            for e in episodes
        ]
        return torch.tensor(rows, device=self.device)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Reading:
        """The receiver's own token embeddings and last hidden states of messages, padded on the right."""
        return self.read_ids([self.tokens(text) for text in texts])

    @torch.no_grad()
    def read_ids(self, rows: Sequence[Sequence[int]]) -> Reading:
        """`read` for messages that are token ids already. What was read lately is not read again."""
        ids_BT = pad(rows, self.tokenizer.eos_token_id).to(self.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BT = torch.arange(ids_BT.shape[1], device=self.device) < lengths_B[:, None]
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        keys = [tuple(row) for row in rows]
        known = {key: self._read[key] for key in keys if key in self._read}
        if fresh := {key: i for i, key in enumerate(keys) if key not in known}:
            states_FTD = self.model.get_decoder()(inputs_embeds=embeds_BTD[list(fresh.values())], use_cache=False)[
                0
            ]
            for key, states_TD in zip(fresh, states_FTD, strict=True):
                self._read[key] = known[key] = states_TD[: len(key)].clone()
        states_BTD = pad_sequence([known[key] for key in keys], batch_first=True)
        return Reading(ids_BT, mask_BT, embeds_BTD, states_BTD)

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

        The prompt is read once for both. Where greedy decoding would write the reference answer, which its
        scoring shows, it is not decoded again.

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
        primed = self._prime(self.embed(layout, prefix_BKD), layout.answer_B, layout.starts())
        level = episodes[0].level
        ids_BA = self.answers(level, torch.tensor([e.solution for e in episodes])).to(self.device)
        logits_BVW, follows_B = self._score(primed, ids_BA, self.frame(level).places_V)
        texts_out = [self._text(row) for row in ids_BA.tolist()]
        known = temperature == 0 and ids_BA.shape[1] <= max_new_tokens
        rest = [i for i, follows in enumerate(follows_B.tolist()) if not (known and follows)]
        if rest:
            seeds = [seed * 1_000_003 + episodes[i].seed for i in rest]
            decoded = self._continue(primed.rows(rest), seeds, temperature, max_new_tokens)
            for i, text in zip(rest, decoded, strict=True):
                texts_out[i] = text
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
        return self._continue(self._prime(embeds_BTD, lengths_B, nothing), seeds, temperature, max_new_tokens)

    def _prime(self, embeds_BTD: Tensor, lengths_B: Tensor, starts: Sequence[Sequence[int]]) -> Primed:
        """Read rows of embeddings, padded on the right, of which the first tokens are known."""
        self._check_context(int(lengths_B.max()) + 1)
        known_B = torch.tensor([len(start) for start in starts], device=self.device)
        rest_B = lengths_B - known_B
        length = int(rest_B.max())
        # Move the padding from right to left, so that all rows end, and go on, in the same column.
        shift_BT = torch.arange(length, device=self.device) - (length - rest_B)[:, None]
        source_BT = known_B[:, None] + shift_BT.clamp(min=0)
        embeds_BTD = embeds_BTD.gather(1, source_BT[..., None].expand(-1, -1, embeds_BTD.shape[2]))
        past = self.starts.before(starts, length)
        longest = int(known_B.max())
        places_P = torch.arange(longest, device=self.device)
        mask_BT = torch.cat([places_P >= longest - known_B[:, None], shift_BT >= 0], dim=1)
        out = self.model(
            inputs_embeds=embeds_BTD,
            use_cache=True,
            logits_to_keep=1,
            **{**past, "position_ids": source_BT, "attention_mask": mask_BT},
        )
        return Primed(out[self.starts.past], out.logits[:, -1], mask_BT, lengths_B)

    def _score(self, primed: Primed, ids_BA: Tensor, places_V: Tensor) -> tuple[Tensor, Tensor]:
        """What predicts the ids, teacher-forced behind a prompt; leaves its cache as it is.

        Returns:
            Logits [B, V, W] at some places of the ids, and [B], whether each id is the most likely at its place.
        """
        rest = ids_BA.shape[1] - 1
        out = self.model.get_decoder()(
            input_ids=ids_BA[:, :rest],
            position_ids=primed.lengths_B[:, None] + torch.arange(rest, device=self.device),
            attention_mask=F.pad(primed.mask_BT, (0, rest), value=True),
            use_cache=True,
            **{self.starts.past: copy.deepcopy(primed.cache)},
        )
        head, places = self.model.get_output_embeddings(), set(places_V.tolist())
        logits_BW, kept = primed.logits_BW, []
        follows_B = torch.ones(len(ids_BA), dtype=torch.bool, device=self.device)
        for place in range(rest + 1):  # one by one: logits over a whole vocabulary at every place are gigabytes
            if place:
                logits_BW = head(out[0][:, place - 1])
            follows_B &= logits_BW.argmax(dim=1) == ids_BA[:, place]
            if place in places:
                kept.append(logits_BW)
        return torch.stack(kept, dim=1), follows_B

    def _continue(
        self, primed: Primed, seeds: Sequence[int], temperature: float, max_new_tokens: int
    ) -> list[str]:
        cache, logits_BW, mask_BT, lengths_B = primed
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        done_B = torch.zeros(len(mask_BT), dtype=torch.bool, device=self.device)
        ends = torch.tensor(sorted(self.end_ids), device=self.device)
        written: list[Tensor] = []
        for _ in range(min(max_new_tokens, self.max_positions - mask_BT.shape[1])):
            if written:
                mask_BT = F.pad(mask_BT, (0, 1), value=True)
                places_B1 = (lengths_B + len(written) - 1)[:, None]
                out = self.model(
                    input_ids=written[-1][:, None],
                    position_ids=places_B1,
                    attention_mask=mask_BT,
                    use_cache=True,
                    **{self.starts.past: cache},
                )
                cache, logits_BW = out[self.starts.past], out.logits[:, -1]
            logits_BW = logits_BW.float()
            if temperature > 0:
                # Gumbel-max: argmax(logits / t + g) is a sample of softmax(logits / t).
                uniform = [torch.rand(logits_BW.shape[1], generator=g, dtype=torch.float64) for g in noise]
                gumbel_BW = -torch.log(-torch.log(torch.stack(uniform).clamp(min=1e-300)))
                logits_BW = logits_BW / temperature + gumbel_BW.to(logits_BW)
            next_B = logits_BW.argmax(dim=1).masked_fill(done_B, int(ends[0]))
            written.append(next_B)
            done_B |= torch.isin(next_B, ends)
            if bool(done_B.all()):
                break
        rows = torch.stack(written, dim=1).tolist()
        return [self._text(row) for row in rows]

    def _text(self, row: list[int]) -> str:
        stop = next((i for i, token in enumerate(row) if token in self.end_ids), len(row))
        return str(self.tokenizer.decode(row[:stop], skip_special_tokens=True))
