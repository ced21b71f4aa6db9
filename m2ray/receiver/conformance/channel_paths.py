"""Measure whether a receiver reads the vectors of a channel exactly, in the ways it is run.

The reference is the model's own plain forward pass, one row at a time without padding or cache, in which the
outputs of the channel's modules are overwritten, and the attention masks of layers that no vector enters. Slots of
zeros are held against the prompt without slots, its positions as if they were there.

Shapes: B rows, T positions, K slots, A answer tokens, D width of the channel, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from m2ray.receiver.channel import Channel
from m2ray.receiver.conformance.measurement import ANSWER, Measurement, compared
from m2ray.receiver.conformance.own_path import OwnPath, RandomRows, horizon, with_slots
from m2ray.receiver.layout import PLACES, Layout, Place
from m2ray.receiver.model.generation import PromptDecoder
from m2ray.receiver.model.requests import Prompts
from m2ray.receiver.receiver import Receiver

COLUMNS, SLOTS, NEW_TOKENS = 48, 3, 6


class ChannelMeasurer:
    """Runs a receiver, as `FrozenModel.through` returns it, with vectors in slots, and compares."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver, self._channel = receiver, receiver.channel
        self._own, self._random = OwnPath(receiver), RandomRows(receiver)
        # A sliding window counts slots as columns, also those of zeros: rows without slots would reach farther
        # back.
        most = min(receiver.max_positions, horizon(receiver.model.config) - 1) - SLOTS - NEW_TOKENS
        self._rows = self._random.draw(max(2 * ANSWER, min(COLUMNS, most)))
        self._bound = self._own.bound(self._rows)

    def problem(self) -> str:
        """Return what the receiver does not read exactly; empty if it reads everything so."""
        for measured in self._measurements():
            if measured.failure or not measured.relative_error <= self._bound:
                return f"{measured.path}: {measured.problem()}"
        gradient = self._gradient_error()
        return "" if gradient <= 10 * self._bound else f"gradients differ by {gradient:.3g} of the largest"

    def _measurements(self) -> Iterator[Measurement]:
        for place in PLACES:
            yield self._slots(place)
        yield self._decoding()
        yield self._fillers()
        if self._channel.kind == "kv":
            yield self._zeros()
            if len(self._channel.layers) == len(self._channel.every_layer):
                yield self._identity()

    # --- the measurements ---

    def _slots(self, place: Place) -> Measurement:
        """Compare logits with vectors of other tokens in the slots."""
        layout, vectors_BKD = self._layout(place), self._vectors()
        with torch.no_grad():
            ours = list(self._receiver.logits(layout, vectors_BKD, ANSWER))
            own = [self._own_answer(layout, row, vectors_BKD[row]) for row in range(len(ours))]
        return compared(f"slots {place}", layout.ids_BT.shape[1], ours, own, self._rows)

    def _fillers(self) -> Measurement:
        """Compare logits over one filler token with those over others."""
        layout, vectors_BKD = self._layout("message"), self._vectors()
        with torch.no_grad():
            own, ours = (
                list(self._receiver.logits(each, vectors_BKD, ANSWER)) for each in (layout, self._refilled(layout))
            )
        return compared("other filler tokens", layout.ids_BT.shape[1], ours, own, self._rows)

    def _zeros(self) -> Measurement:
        """Compare logits with slots of zeros, whatever their filler tokens, with those of rows without slots."""
        layout = self._layout("message")
        zeros_BKD = torch.zeros_like(self._vectors())
        own = []
        with torch.no_grad():
            ours = list(self._receiver.logits(self._refilled(layout), zeros_BKD, ANSWER))
            for row, slots in zip(self._rows, layout.slots_BK.tolist(), strict=True):
                ids_1T = torch.tensor([row[:-1]], device=self._receiver.device)
                positions_1T = torch.arange(len(row) - 1, device=self._receiver.device)[None]
                positions_1T = positions_1T + SLOTS * (positions_1T >= slots[0])
                # A mask keeps the gap from being read as the border of two rows.
                arguments = {"attention_mask": torch.ones_like(ids_1T), "use_cache": False}
                logits_TW = self._own.model(input_ids=ids_1T, position_ids=positions_1T, **arguments).logits[0]
                own.append(logits_TW[-ANSWER:])
        return compared("slots of zeros", layout.ids_BT.shape[1], ours, own, self._rows)

    def _identity(self) -> Measurement:
        """Compare logits of a text with those of its own keys and values, behind filler tokens."""
        layout = self._layout("message")
        text = self._refilled(layout)
        lists = text.ids_BT.tolist()
        with torch.no_grad():
            own = [self._own.logits(row[:end])[-ANSWER:] for row, end in zip(lists, self._ends(text), strict=True)]
            vectors = []
            for row, slots in zip(lists, text.slots_BK.tolist(), strict=True):
                ids_1T = torch.tensor([row[: slots[-1] + 1]], device=self._receiver.device)
                embeds_1TD = self._receiver.causal.embed(ids_1T)
                states = self._receiver.causal.run(embeds_1TD, ids_1T, self._channel).hidden[0]
                vectors.append(states[0, slots[0] :])
            ours = list(self._receiver.logits(layout, torch.stack(vectors), ANSWER))
        return compared("a text's own keys and values", layout.ids_BT.shape[1], ours, own, self._rows)

    def _decoding(self) -> Measurement:
        """Compare the logits of the tokens that B picks with those that the model's own pass gives them."""
        layout, vectors_BKD = self._layout("message"), self._vectors()
        vectors_BKD[0] = 0
        receiver, lengths = self._receiver, layout.answer_B.tolist()
        prompts = Prompts(
            receiver.embed(layout, vectors_BKD),
            layout.ids_BT,
            lengths,
            layout.cached_tokens(),
            receiver.slots(layout.slots_BK, vectors_BKD),
        )
        picked: list[list[float]] = [[] for _ in lengths]
        drafts = [row[-ANSWER:] for row in self._rows]
        with torch.no_grad():
            answers = (
                PromptDecoder(receiver)
                .run(prompts, drafts, None, range(len(lengths)), 0.0, NEW_TOKENS, picked_logits=picked)
                .rows
            )
            worst = 0.0
            for row, (answer, length, ours) in enumerate(zip(answers, lengths, picked, strict=True)):
                ids = [*layout.ids_BT[row, :length].tolist(), *answer]
                own_AW = self._own_logits(ids, layout.slots_BK[row], vectors_BKD[row])[length - 1 : -1].float()
                chosen_A = own_AW.gather(1, torch.tensor(answer, device=own_AW.device)[:, None])[:, 0]
                errors_A = (chosen_A - torch.tensor(ours, device=own_AW.device)).abs() / own_AW.std(dim=1)
                worst = max(worst, float(errors_A.max()))
        return Measurement("answers", layout.ids_BT.shape[1], worst, 0.0, worst)

    def _gradient_error(self) -> float:
        """Return the largest difference of a gradient to vectors, relative to the largest gradient."""
        layout = self._layout("message")
        one, vectors_1KD = Layout(*(field[:1] for field in layout)), self._vectors()[:1]
        end = int(one.answer_B) + ANSWER
        targets_A1 = one.ids_BT[0, end - ANSWER : end, None]

        def gradient(logits_of: Callable[[Tensor], Tensor]) -> Tensor:
            leaf_1KD = vectors_1KD.clone().requires_grad_()
            log_probs_AW = logits_of(leaf_1KD).float().log_softmax(-1)
            (gradient_1KD,) = torch.autograd.grad(log_probs_AW.gather(1, targets_A1).sum(), leaf_1KD)
            return gradient_1KD.float()

        ours = gradient(lambda leaf_1KD: self._receiver.logits(one, leaf_1KD, ANSWER)[0])
        own = gradient(lambda leaf_1KD: self._own_answer(one, 0, leaf_1KD[0]))
        return float((ours - own).abs().max() / own.abs().max().clamp(min=1e-12))

    # --- their inputs ---

    def _layout(self, place: Place) -> Layout:
        """Return the random rows with `SLOTS` open slots, and what precedes them kept."""
        return with_slots(self._receiver, self._rows, place, SLOTS, kept=True)

    def _refilled(self, layout: Layout) -> Layout:
        """Return a layout with ordinary tokens in its slots."""
        tokens = [self._random.replaced(row[:SLOTS]) for row in self._rows]
        tokens_BK = torch.tensor(tokens, device=layout.ids_BT.device)
        return layout._replace(ids_BT=layout.ids_BT.scatter(1, layout.slots_BK, tokens_BK))

    def _vectors(self) -> Tensor:
        """Return the model's own vectors at other tokens, [B, K, D].

        Noise of that size would be far from what a model computes with, which amplifies the rounding of 16 bits.
        """
        others = [self._random.replaced(row) for row in self._rows]
        with torch.no_grad():
            return torch.stack([own_TD[-SLOTS:] for own_TD in self._receiver.own_vectors(others)])

    def _ends(self, layout: Layout) -> list[int]:
        ends: list[int] = (layout.answer_B + ANSWER - 1).tolist()
        return ends

    def _own_answer(self, layout: Layout, row: int, vectors_KD: Tensor) -> Tensor:
        """Return the logits [A, W] of a row's answer in the model's own pass."""
        end = self._ends(layout)[row]
        return self._own_logits(layout.ids_BT[row, :end].tolist(), layout.slots_BK[row], vectors_KD)[-ANSWER:]

    def _own_logits(self, ids: Sequence[int], columns_K: Tensor, vectors_KD: Tensor) -> Tensor:
        """Return the logits [T, W] of a row, with vectors in its slots, in the model's own pass."""
        with _overwritten(self._channel, columns_K, vectors_KD):
            ids_1T = torch.tensor([list(ids)], device=self._receiver.device)
            logits_TW: Tensor = self._own.model(input_ids=ids_1T, use_cache=False).logits[0]
            return logits_TW


@contextmanager
def _overwritten(channel: Channel, columns_K: Tensor, vectors_KD: Tensor) -> Iterator[None]:
    """Overwrite a channel's modules in the passes of one row, and the masks of layers that no vector enters."""

    def overwrite(part_KF: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            main_1TF = (output[0] if isinstance(output, tuple) else output).clone()
            main_1TF[0, columns_K] = part_KF.to(main_1TF.dtype)
            return (main_1TF, *output[1:]) if isinstance(output, tuple) else main_1TF

        return hook

    def hide(columns: Tensor) -> Callable[[nn.Module, Any, dict[str, Any]], Any]:
        def hook(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
            length = (arguments[0] if arguments else named["hidden_states"]).shape[1]
            seen_TT = torch.ones(length, length, dtype=torch.bool, device=columns.device).tril()
            seen_TT[:, columns] = False
            seen_TT.fill_diagonal_(True)
            mask = named["attention_mask"]
            if mask is None or mask.dtype == torch.bool:
                mask = seen_TT[None, None] if mask is None else seen_TT & mask
            else:
                mask = mask + torch.where(seen_TT, 0, torch.finfo(mask.dtype).min / 2)
            return arguments, named | {"attention_mask": mask}

        return hook

    with ExitStack() as hooks:
        each = dict(zip(channel.parts, channel.split(vectors_KD), strict=True))
        for part, part_KF in each.items():
            hooks.callback(part.module.register_forward_hook(overwrite(part_KF)).remove)
        for number, layer in enumerate(channel.every_layer):
            own = [part_KF for part, part_KF in each.items() if part.layer == number]
            silent_K = torch.stack([~part_KF.bool().any(1) for part_KF in own]).all(0) if own else columns_K >= 0
            if channel.kind == "hidden":
                silent_K = (columns_K >= 0) & (number <= channel.layers[0])
            if bool(silent_K.any()):
                hook = layer.register_forward_pre_hook(hide(columns_K[silent_K]), with_kwargs=True)
                hooks.callback(hook.remove)
        yield
