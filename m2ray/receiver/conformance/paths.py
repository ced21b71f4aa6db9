"""Measure how far ways of running a receiver are from the model's own numbers.

Shapes: B rows, T positions, K slots, A answer tokens, D width, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from m2ray.receiver.conformance.measurement import ANSWER, Measurement, compared, largest
from m2ray.receiver.conformance.own_path import FAILURES, OwnPath, RandomRows, with_slots
from m2ray.receiver.layout import UNLIMITED, Layout, Place, pad
from m2ray.receiver.model.causal_model import Ways
from m2ray.receiver.model.generation import PromptDecoder
from m2ray.receiver.model.requests import Prompts
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import describe_error

SLOTS, NEW_TOKENS = 3, 8


class PathMeasurer:
    """Runs a twin of a receiver, which shares its model, in given ways, and compares."""

    def __init__(self, receiver: Receiver, own: OwnPath, rows: RandomRows) -> None:
        self._receiver, self._own, self._rows = receiver, own, rows

    def twin(self, ways: Ways) -> Receiver:
        """Return the receiver, run in given ways at any length."""
        return self._receiver.run_in(ways._replace(tested=UNLIMITED))

    def text(
        self, path: str, ways: Ways, rows: list[list[int]], together: bool = True, kept: bool = False
    ) -> Measurement:
        """Compare teacher-forced logits of text."""
        try:
            twin = self.twin(ways)
            groups = [rows] if together else [[row] for row in rows]
            with torch.no_grad():
                ours = [
                    logits_AW
                    for group in groups
                    for layout in self._layouts(group, kept)
                    for logits_AW in twin.logits(layout.to(twin.device), None, ANSWER)
                ]
            own = [self._own.answer_logits(tuple(row)) for row in rows]
            return compared(path, max(map(len, rows)), ours, own * (len(ours) // len(own)), rows)
        except FAILURES as error:
            return Measurement(path, max(map(len, rows)), failure=describe_error(error))

    def _layouts(self, rows: list[list[int]], kept: bool) -> Iterator[Layout]:
        """Yield rows as layouts: with nothing kept, or with kept prefixes of different lengths and of one."""
        different, same = [len(row) // 2 - i for i, row in enumerate(rows)], [len(rows[-1]) // 3] * len(rows)
        for cached in (different, same) if kept else ([0] * len(rows),):
            yield Layout(
                pad(rows, self._receiver.pad_id),
                torch.zeros(len(rows), 0, dtype=torch.long),
                torch.tensor([len(row) - ANSWER for row in rows]),
                torch.zeros(len(rows), dtype=torch.long),
                torch.tensor(cached),
            )

    def decoding(self, path: str, ways: Ways, rows: list[list[int]], bound: float) -> Measurement:
        """Compare greedy answers, drafted with right and wrong tokens, with the model's own choice of each token.

        A choice within twice the bound of the model's best is a tie. The logits of the chosen tokens are compared
        as well: small errors seldom change a choice.
        """
        columns, worst, relative, differ = max(map(len, rows)), 0.0, 0.0, 0
        try:
            twin = self.twin(ways)
            # Answers that end at once would test nothing. What follows a padding token is never decoded.
            twin.end_ids = {token for token in twin.end_ids if token == twin.model_pad_id}
            prompts = [row[: max(2, len(row) - 2 * NEW_TOKENS)] for row in rows]
            picked: list[list[float]] = [[] for _ in prompts * 2]
            first = self._decode(twin, prompts, [row[-NEW_TOKENS:] for row in rows], picked[: len(rows)])
            # Drafts that B agrees with up to some token, and from there not: rejected in the middle.
            drafts = [self._spoiled(tokens, i) for i, tokens in enumerate(first)]
            answers = [*first, *self._decode(twin, prompts, drafts, picked[len(rows) :])]
            for prompt, answer, ours in zip(prompts * 2, answers, picked, strict=True):
                logits_AW = self._choices(prompt, answer, whole=len(prompt) + len(answer) <= ways.reread)
                chosen_A = logits_AW.gather(1, torch.tensor(answer, device=logits_AW.device)[:, None])[:, 0]
                short = float(((logits_AW.max(dim=1).values - chosen_A) / logits_AW.std(dim=1)).max())
                differ += short > 2 * bound
                errors_A = (chosen_A - torch.tensor(ours, device=logits_AW.device)).abs()
                worst = max(worst, largest(errors_A))
                relative = max(relative, largest(errors_A / logits_AW.std(dim=1)))
            return Measurement(path, columns, worst, 0.0, relative, differ, len(answers))
        except FAILURES as error:
            return Measurement(path, columns, failure=describe_error(error))

    def _choices(self, prompt: list[int], answer: list[int], whole: bool) -> Tensor:
        """Return the model's own logits [A, W] at each choice; `whole` if the later tokens do not change them."""
        if whole:
            return self._own.logits(prompt + answer, len(answer) + 1)[:-1].float()
        rows = [prompt + answer[:i] for i in range(len(answer))]
        return torch.cat([self._own.logits(row, 1) for row in rows]).float()

    def followed(self, rows: list[list[int]], known: int) -> Measurement:
        """Compare the model's own logits of a row's beginnings with those of the whole row.

        Args:
            rows: Rows, the longest first.
            known: A length up to which they were compared before.
        """
        path, row = "tokens that follow", rows[0]
        lengths = [min(max(length, ANSWER + 1), len(row)) for length in (known, len(row) // 2)]
        try:
            whole_TW = self._own.logits(row)
            whole = [whole_TW[length - ANSWER - 1 : length - 1] for length in lengths]
            begun = [self._own.logits(row[:length], ANSWER + 1)[:-1] for length in lengths]
            return compared(path, len(row), begun, whole, [row[:length] for length in lengths])
        except FAILURES as error:
            return Measurement(path, len(row), failure=describe_error(error))

    def _decode(
        self, twin: Receiver, prompts: list[list[int]], drafts: list[list[int]], picked: list[list[float]]
    ) -> list[list[int]]:
        ids_BT = pad([a + b for a, b in zip(prompts, drafts, strict=True)], twin.pad_id).to(twin.device)
        cached = [prompt[: len(prompt) // 2] for prompt in prompts]
        batch = Prompts(twin.causal.embed(ids_BT), ids_BT, list(map(len, prompts)), cached)
        seeds = range(len(prompts))
        with torch.no_grad():
            return PromptDecoder(twin).run(batch, drafts, None, seeds, 0.0, NEW_TOKENS, picked_logits=picked).rows

    def _spoiled(self, tokens: list[int], at: int) -> list[int]:
        padded = (tokens + self._rows.replaced(tokens or [0]) * NEW_TOKENS)[:NEW_TOKENS]
        at = min(at + 1, NEW_TOKENS - 2)
        return [*padded[:at], *self._rows.replaced(padded[at : at + 1]), *padded[at + 1 :]]

    def slots(self, place: Place, ways: Ways, rows: list[list[int]]) -> Measurement:
        """Compare logits with random vectors in slots before, within or behind the prompt."""
        path = f"slots {place}"
        try:
            ours, own = [], []
            twin, layout, vectors_BKD = self._slots(place, ways, rows)
            with torch.no_grad():
                ours = list(twin.logits(layout, vectors_BKD, ANSWER))
                embeds_BTD = twin.embed(layout, vectors_BKD)
                for embeds_TD, ids_T, answer in zip(
                    embeds_BTD, layout.ids_BT, layout.answer_B.tolist(), strict=True
                ):
                    end = answer + ANSWER - 1
                    own.append(self._own.logits_of_vectors(embeds_TD[:end], ids_T[:end], ANSWER))
            return compared(path, layout.ids_BT.shape[1], ours, own, rows)
        except FAILURES as error:
            return Measurement(path, max(map(len, rows)), failure=describe_error(error))

    def _slots(self, place: Place, ways: Ways, rows: list[list[int]]) -> tuple[Receiver, Layout, Tensor]:
        """Return a twin, rows with `SLOTS` open slots, and vectors for them of an embedding's size."""
        twin = self.twin(ways)
        rows = [row[: max(ANSWER + 2, len(row) - SLOTS)] for row in rows]
        layout = with_slots(twin, rows, place, SLOTS, bool(ways.kept))
        generator = torch.Generator().manual_seed(len(place))
        width, norm = self._receiver.width, self._receiver.embedding_norm
        vectors_BKD = torch.randn(len(rows), SLOTS, width, generator=generator).to(twin.device)
        return twin, layout, (vectors_BKD * norm / width**0.5).to(twin.dtype)

    def widths(self, ways: Ways, row: list[int]) -> set[int]:
        """Return the widths of the hidden states after the layers."""
        causal = self.twin(ways).causal
        ids_BT = torch.tensor([row], device=self._receiver.device)
        with torch.no_grad():
            return {layer.shape[-1] for layer in causal.run(causal.embed(ids_BT), ids_BT, states=True).hidden}

    def identity_error(self, ways: Ways, rows: list[list[int]]) -> tuple[float, float]:
        """Return the largest absolute and relative error of logits with a text's own embeddings in slots."""
        twin, layout, _ = self._slots("message", ways, rows)
        ids_BT = layout.ids_BT.clone()
        text = [[*self._rows.replaced(row[:SLOTS])] for row in ids_BT.tolist()]
        text_BK = torch.tensor(text, device=ids_BT.device)
        ids_BT.scatter_(1, layout.slots_BK, text_BK)
        layout = layout._replace(ids_BT=ids_BT)
        with torch.no_grad():
            ours = list(twin.logits(layout, twin.causal.embed(text_BK), ANSWER))
        ends = (layout.answer_B + ANSWER - 1).tolist()
        own = [self._own.logits(ids[:end], ANSWER) for ids, end in zip(ids_BT.tolist(), ends, strict=True)]
        measured = compared("identity", ids_BT.shape[1], ours, own, rows)
        return measured.logit_error, measured.relative_error

    def gradient_error(self, ways: Ways, rows: list[list[int]]) -> float:
        """Return the largest difference of a gradient to vectors, relative to the largest gradient."""
        twin, layout, vectors_BKD = self._slots("message", ways, rows)
        one = Layout(*(field[:1] for field in layout))
        end = int(one.answer_B) + ANSWER
        targets_A1 = one.ids_BT[0, end - ANSWER : end, None]

        def gradient(logits_of: Callable[[Tensor], Tensor]) -> Tensor:
            leaf_BKD = vectors_BKD[:1].clone().requires_grad_()
            log_probs_AW = logits_of(leaf_BKD).float().log_softmax(-1)
            (gradient_BKD,) = torch.autograd.grad(log_probs_AW.gather(1, targets_A1).sum(), leaf_BKD)
            return gradient_BKD.float()

        ours = gradient(lambda leaf: twin.logits(one, leaf, ANSWER)[0])
        own = gradient(
            lambda leaf: self._own.logits_of_vectors(
                twin.embed(one, leaf)[0, : end - 1], one.ids_BT[0, : end - 1], ANSWER
            )
        )
        return float((ours - own).abs().max() / own.abs().max().clamp(min=1e-12))
