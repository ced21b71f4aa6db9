"""The receiver: a frozen causal LM that reads a prefix in its own embedding space, scores answers and decodes.

All Hugging Face causal LMs load the same way, the embedded `mini` included. `FrozenModel` holds the model and its
forward pass; this file holds the tasks built on it.

Shapes: B rows, T positions, K slots, A answer tokens, V variables of an answer, N values of a domain, D width,
L layers, S tokens after the slots, W words of the vocabulary, P cached tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m2ray.receiver.decoding import DecodedTokens, Decoder, Prefill
from m2ray.receiver.frozen_model import FrozenModel
from m2ray.receiver.layout import Layout, Place
from m2ray.receiver.requests import AnswerOutput, DecodedAnswers, ForwardOutput, ForwardRequest
from m2ray.tasks.episodes import Episode

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
        embeds_BTD = self._embed_ids(layout.ids_BT[rows_B1, columns_BT], slots_BK, prefix_BKD)
        return ForwardRequest(embeds_BTD, layout.cached_tokens(), states, grad)

    def gather_answer(self, layout: Layout, answer_len: int, output: ForwardOutput) -> AnswerOutput:
        """Return the logits of the answer and, where requested, the hidden states after the message's place.

        The last tokens of a row are the same whatever stands in the message's place, so the states of two layouts
        of the same episodes can be compared token by token.
        """
        rows_B1 = torch.arange(len(layout.ids_BT), device=self.device)[:, None]
        answer_B = layout.answer_B - layout.cached_B
        predict_BA = answer_B[:, None] - 1 + torch.arange(answer_len, device=self.device)
        logits_BAW = self.model.get_output_embeddings()(output.last_BTD[rows_B1, predict_BA])
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
        self, episodes: Sequence[Episode], embeds_BTD: Tensor, place: Place, grad: bool
    ) -> ForwardRequest:
        """Return the forward pass over vectors in a place of the episodes' prompts, with hidden states at them."""
        prompts = [self.prompt_ids(episode) for episode in episodes]
        cached = [{"message": before, "before": [], "after": before + after}[place] for before, after in prompts]
        return ForwardRequest(embeds_BTD.to(self.dtype), cached, True, grad)

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

    # --- decoding ---

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
        """Return B's answers as text; the arguments are those of `generate_and_score`."""
        arguments = (prefix_BKD, place, temperature, max_new_tokens, seed)
        return self.generate_and_score(episodes, texts, *arguments).texts

    @torch.no_grad()
    def generate_and_score(
        self,
        episodes: Sequence[Episode],
        texts: Sequence[str] | int,
        prefix_BKD: Tensor | None = None,
        place: Place = "message",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> DecodedAnswers:
        """Decode B's answers, and score the reference answers in the same forward passes.

        The reference answer serves as the draft of B's answer (see `m2ray.receiver.decoding`): as far as B agrees
        with it, one forward pass does both.

        Args:
            episodes: B rows of one level.
            texts: A text per row for the message's place, or k open slots that `prefix_BKD` fills.
            prefix_BKD: The prefix.
            place: Where open slots go.
            temperature: 0 decodes greedily. Otherwise the noise depends on `seed` and the episode only, so an
                episode's answer is the same in any batch and paired across conditions.
            max_new_tokens: Longest answer; the receiver's context may end it sooner.
            seed: Seed of the sampling noise.
        """
        layout = self.layout(episodes, texts, place)
        level = episodes[0].level
        drafts = self.answer_ids(level, torch.tensor([e.solution for e in episodes])).tolist()
        embeds_BTD = self.embed(layout, prefix_BKD)
        prefill = self._prefill(embeds_BTD, layout.answer_B, layout.cached_tokens(), len(drafts[0]) - 1)
        seeds = [seed * SEED_STRIDE + episode.seed for episode in episodes]
        positions = self.answer_frame(level).positions_V.tolist()
        tokens = self._decode(prefill, drafts, positions, seeds, temperature, max_new_tokens)
        assert tokens.logits_BVW is not None
        return DecodedAnswers([self._text(row) for row in tokens.rows], tokens.logits_BVW, tokens.truncated)

    @torch.no_grad()
    def generate(
        self,
        embeds_BTD: Tensor,
        lengths_B: Tensor,
        seeds: Sequence[int],
        temperature: float = 0.0,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Continue rows of input embeddings, padded on the right, each of its own length."""
        nothing: list[list[int]] = [[] for _ in lengths_B]
        prefill = self._prefill(embeds_BTD, lengths_B, nothing, 0)
        tokens = self._decode(prefill, nothing, [], seeds, temperature, max_new_tokens)
        return [self._text(row) for row in tokens.rows]

    def _prefill(
        self, embeds_BTD: Tensor, lengths_B: Tensor, cached: Sequence[Sequence[int]], drafted: int
    ) -> Prefill:
        """Run prompts, padded on the right, each with `drafted` draft tokens; leading tokens may be cached."""
        self._check_context(int(lengths_B.max()) + 1)
        cached_B = torch.tensor([len(tokens) for tokens in cached], device=self.device)
        rest_B = lengths_B + drafted - cached_B
        length = int(rest_B.max())
        # Move the padding from right to left, so that all rows end, and continue, in the same column.
        shift_BT = torch.arange(length, device=self.device) - (length - rest_B)[:, None]
        source_BT = cached_B[:, None] + shift_BT.clamp(min=0)
        embeds_BTD = embeds_BTD.gather(1, source_BT[..., None].expand(-1, -1, embeds_BTD.shape[2]))
        arguments = self.prompt_cache.forward_arguments(cached, length)
        longest = int(cached_B.max())
        columns_P = torch.arange(longest, device=self.device)
        mask_BT = torch.cat([columns_P >= longest - cached_B[:, None], shift_BT >= 0], dim=1)
        output = self.model.get_decoder()(
            inputs_embeds=embeds_BTD,
            use_cache=True,
            **{**arguments, "position_ids": source_BT, "attention_mask": mask_BT},
        )
        return Prefill(output[self.prompt_cache.argument], output[0][:, -1 - drafted :], mask_BT, lengths_B)

    def _decode(
        self,
        prefill: Prefill,
        drafts: Sequence[Sequence[int]],
        positions: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
    ) -> DecodedTokens:
        limits = [min(max_new_tokens, self.max_positions - length) for length in prefill.lengths_B.tolist()]
        decoder = Decoder(self.model, self.prompt_cache.argument, self.end_ids, temperature)
        return decoder.run(prefill, drafts, positions, seeds, limits)

    def _text(self, row: list[int]) -> str:
        stop = next((i for i, token in enumerate(row) if token in self.end_ids), len(row))
        return str(self.tokenizer.decode(row[:stop], skip_special_tokens=True))
