"""The receiver: a frozen causal LM that reads a prefix in its own embedding space, scores answers and decodes.

All Hugging Face causal LMs load the same way, the embedded `mini` included. `FrozenModel` holds the model and its
forward pass; this file holds the tasks built on it.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain, D width,
L layers, S tokens after the slots, W words of the vocabulary, P cached tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from m2ray.receiver.layout import Layout, Place, pad
from m2ray.receiver.model.decoding import DecodedTokens, Kept
from m2ray.receiver.model.frozen_model import FrozenModel
from m2ray.receiver.model.generation import PromptDecoder
from m2ray.receiver.model.requests import (
    AnswerOutput,
    DecodedAnswers,
    EncodedMessage,
    ForwardOutput,
    ForwardRequest,
    Prompts,
)
from m2ray.receiver.references import References, ValueTargets
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.tasks.text_episodes import TextEpisode

SEED_STRIDE = 1_000_003  # keeps the sampling noise of different seeds apart


class Receiver(FrozenModel):
    """A frozen causal LM as agent B. Gradients flow through it only to what is injected."""

    # --- teacher-forced answers ---

    def answer_request(
        self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int, states: bool, grad: bool = True
    ) -> ForwardRequest:
        """Return the forward pass over prompt and reference answer; `gather_answer` takes its output."""
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.cached_B
        # The last token is needed for states only: what it predicts is not part of the answer.
        length = int(answer_B.max()) + answer_len - (not states)
        # Each row's leading tokens come from the cache, so what follows them moves to the front.
        columns_BT = layout.cached_B[:, None] + torch.arange(length, device=self.device)
        columns_BT = columns_BT.clamp(max=layout.ids_BT.shape[1] - 1)
        slots_BK = layout.slots_BK - layout.cached_B[:, None]
        ids_BT = layout.ids_BT[rows_B1, columns_BT]
        embeds_BTD = self._embed_ids(ids_BT, slots_BK, prefix_BKD)
        lengths = (answer_B + answer_len - int(not states)).tolist()
        slots = self.slots(slots_BK, prefix_BKD)
        return ForwardRequest(embeds_BTD, ids_BT, lengths, layout.cached_tokens(), states, grad, slots=slots)

    def gather_answer(self, layout: Layout, answer_len: int, output: ForwardOutput) -> AnswerOutput:
        """Return the logits of the answer and, where requested, the hidden states after the message's place.

        The last tokens of a row are the same whatever stands in the message's place, so the states of two layouts
        of the same episodes can be compared token by token.
        """
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.cached_B
        predict_BA = answer_B[:, None] - 1 + torch.arange(answer_len, device=self.device)
        logits_BAW = self.causal.head(output.last_BTD[rows_B1, predict_BA])
        if not output.hidden:
            return AnswerOutput(logits_BAW, None, None)
        tail_B = layout.after_B + answer_len
        back_S = torch.arange(int(tail_B.max()), 0, -1, device=self.device)
        columns_BS = (answer_B[:, None] + answer_len - back_S).clamp(min=0)
        states_BLSD = torch.stack([layer_BTD[rows_B1, columns_BS] for layer_BTD in output.hidden], dim=1)
        return AnswerOutput(logits_BAW, states_BLSD, back_S <= tail_B[:, None])

    def score_answers(
        self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int, states: bool
    ) -> AnswerOutput:
        """Run one teacher-forced forward pass on the reference answers."""
        (output,) = self.forward([self.answer_request(layout, prefix_BKD, answer_len, states)])
        return self.gather_answer(layout, answer_len, output)

    def logits(self, layout: Layout, prefix_BKD: Tensor | None, answer_len: int) -> Tensor:
        """Return the logits [B, A, W] that predict the answer tokens, teacher-forced on the reference answer."""
        return self.score_answers(layout, prefix_BKD, answer_len, states=False).logits_BAW

    def slot_request(
        self, episodes: Sequence[AnyEpisode], prefix_BKD: Tensor, place: Place, grad: bool
    ) -> ForwardRequest:
        """Return the forward pass over vectors in a place of the episodes' prompts, with hidden states at them."""
        ids_BK = torch.full(prefix_BKD.shape[:2], self.slot_id, device=self.device)
        lengths = [prefix_BKD.shape[1]] * len(episodes)
        cached = self._tokens_before(episodes, place)
        return ForwardRequest(prefix_BKD.to(self.dtype), ids_BK, lengths, cached, True, grad)

    def message_request(
        self, episodes: Sequence[AnyEpisode], messages: EncodedMessage, place: Place = "message"
    ) -> ForwardRequest:
        """Return the forward pass over messages as text in a place, with hidden states, without gradients."""
        lengths = messages.mask_BT.sum(dim=1).tolist()
        cached = self._tokens_before(episodes, place)
        return ForwardRequest(messages.embeds_BTD.to(self.dtype), messages.ids_BT, lengths, cached, True, False)

    @torch.no_grad()
    def message_vectors(self, episodes: Sequence[AnyEpisode]) -> list[Tensor]:
        """Return the model's own vectors in its channel at the tokens of messages in their place, [T, D] each."""
        rows = [self.tokens(episode.message) for episode in episodes]
        if self.channel.kind == "embeddings":
            return self.own_vectors(rows)
        request = self.message_request(episodes, self.encode_token_ids(rows))._replace(states=self.channel)
        (output,) = self.forward([request])
        return [own_TD[: len(row)] for row, own_TD in zip(rows, output.hidden[0], strict=True)]

    def _tokens_before(self, episodes: Sequence[AnyEpisode], place: Place) -> list[list[int]]:
        prompts = [self.prompt_ids(episode) for episode in episodes]
        rows = zip(episodes, prompts, strict=True)
        return [(b + a)[: self._slots_at(episode, len(b), len(b + a), place)] for episode, (b, a) in rows]

    def targets(self, episodes: Sequence[Episode], with_message: bool = True) -> Tensor:
        """Return what a perfect reasoner would answer, with the message or with B's half only.

        Returns:
            [B, V, N] probability of each value of each variable, given the reference answer's values before it.
        """
        rows = [
            e.level.value_probabilities((e.sender if with_message else ()) + e.receiver, e.solution)
            for e in episodes
        ]
        return torch.tensor(rows, device=self.device)

    def references(self, episodes: Sequence[AnyEpisode]) -> References:
        """Return the reference answers of a batch, and what predictions are compared with."""
        rows, device = self.reference_ids(episodes), self.device
        ids_BA = pad(rows, self.pad_id).to(device)
        columns_A = torch.arange(ids_BA.shape[1], device=device)
        lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
        mask_BA = columns_A < lengths_B1
        first = episodes[0]
        if isinstance(first, TextEpisode):
            ends_E = torch.tensor(sorted(self.end_ids | self.stop_tokens(first.rules)), device=device)
            return References(ids_BA, mask_BA, columns_A < lengths_B1 - 1, ends_E, None)
        frame = self.answer_frame(first.level)
        values_BA = torch.isin(columns_A, frame.positions_V.to(device)).expand_as(mask_BA)
        targets = ValueTargets(frame, self.targets([e for e in episodes if isinstance(e, Episode)]))
        return References(ids_BA, mask_BA, values_BA, frame.ends_E.to(device), targets)

    # --- decoding ---

    def decode(
        self,
        episodes: Sequence[AnyEpisode],
        texts: Sequence[str] | int,
        prefix_BKD: Tensor | None = None,
        place: Place = "message",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> list[str]:
        """Return B's answers as text; the arguments are those of `generate_and_score`."""
        arguments = (prefix_BKD, place, temperature, max_new_tokens, seed)
        return self.generate_and_score(episodes, texts, *arguments).texts

    @torch.no_grad()
    def generate_and_score(
        self,
        episodes: Sequence[AnyEpisode],
        texts: Sequence[str] | int,
        prefix_BKD: Tensor | None = None,
        place: Place = "message",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> DecodedAnswers:
        """Decode B's answers, and score the reference answers in the same forward passes.

        The reference answer serves as the draft of B's answer (see `m2ray.receiver.model.decoding`): as far as B
        agrees with it, one forward pass does both.

        Args:
            episodes: B rows of one task.
            texts: A text per row for the message's place, or k open slots that `prefix_BKD` fills.
            prefix_BKD: The prefix; with texts, it takes the place of their tokens' embeddings.
            place: Where open slots go.
            temperature: 0 decodes greedily. Otherwise the noise depends on `seed` and the episode only, so an
                episode's answer is the same in any batch and paired across conditions.
            max_new_tokens: Longest answer; the receiver's context may end it sooner.
            seed: Seed of the sampling noise.
        """
        references, first = self.references(episodes), episodes[0]
        keeps = Kept(references.positions(), references.position_nll)
        ends: Collection[int] = self.end_ids
        stops: tuple[str, ...] = ()
        if isinstance(first, TextEpisode):
            ends, stops = self.end_ids | self.stop_tokens(first.rules), self.stop_texts(first.rules)
        tokens = self.decode_answers(
            episodes, texts, references, keeps, ends, prefix_BKD, place, temperature, max_new_tokens, seed
        )
        assert tokens.kept_BV is not None
        nll_B = tokens.kept_BV.sum(1) / references.values_BA.sum(1)
        cut = [cut_at(self.text(row), stops) for row in tokens.rows]
        truncated = [late and not found for late, (_, found) in zip(tokens.truncated, cut, strict=True)]
        return DecodedAnswers([text for text, _ in cut], nll_B, truncated)

    @torch.no_grad()
    def decode_answers(
        self,
        episodes: Sequence[AnyEpisode],
        texts: Sequence[str] | int,
        references: References,
        keeps: Kept,
        ends: Collection[int],
        prefix_BKD: Tensor | None,
        place: Place,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> DecodedTokens:
        """Decode B's answers, with the reference answers as drafts; see `generate_and_score`."""
        # Vectors in a text's place stand for its tokens, which some models read more from than embeddings.
        open_texts = prefix_BKD is not None and not isinstance(texts, int)
        layout = self.layout(episodes, texts, place, open_texts)
        # The padding of a shorter draft is never reached: a row that agrees with its draft's end has ended.
        drafts = references.ids_BA.tolist()
        seeds = [seed * SEED_STRIDE + episode.seed for episode in episodes]
        prompts = Prompts(
            self.embed(layout, prefix_BKD),
            layout.ids_BT,
            layout.answer_B.tolist(),
            layout.cached_tokens(),
            self.slots(layout.slots_BK, prefix_BKD),
        )
        return PromptDecoder(self).run(prompts, drafts, keeps, seeds, temperature, max_new_tokens, ends)

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Sequence[int]],
        seeds: Sequence[int],
        temperature: float = 0.0,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Continue rows of token ids; the sampling noise of each depends on its seed."""
        ids_BT = pad(rows, self.pad_id).to(self.device)
        nothing: list[list[int]] = [[] for _ in rows]
        prompts = Prompts(self.causal.embed(ids_BT), ids_BT, [len(row) for row in rows], nothing)
        tokens = PromptDecoder(self).run(prompts, nothing, None, seeds, temperature, max_new_tokens)
        return [self.text(row) for row in tokens.rows]

    def text(self, row: Sequence[int]) -> str:
        """Return the text of decoded tokens up to the first that ends an answer."""
        stop = next((i for i, token in enumerate(row) if token in self.end_ids), len(row))
        return str(self.tokenizer.decode(list(row[:stop]), skip_special_tokens=True))


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first of some texts that end it, and whether there is one."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
