"""One codec under training: its objectives on a batch, in one process or in many that see the same global batch.

The forward passes that it wants of the receiver it yields, and is sent what they give: `together` makes those of
several trainees on one receiver at once.

Shapes: B rows of this worker, H rows of the global batch, K slots, D width, A answer tokens, M negatives.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from m2ray.codec.codec import Codec, CodecOutput
from m2ray.codec.encoders import Segments, mean_state
from m2ray.codec.prefix_statistics import prefix_metrics
from m2ray.config.trial import TrialConfig
from m2ray.receiver.prefix_cache import autocast_dtype
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.requests import EncodedMessage, ForwardOutput, ForwardRequest
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import Episode
from m2ray.training.distributed import gather, gather_encoded, world
from m2ray.training.objectives import (
    Heads,
    Signals,
    SlotStates,
    needs_answer,
    value_weight,
    weighted_nll,
    weighted_sum,
)

T = TypeVar("T")


LossSteps = Generator[ForwardRequest, ForwardOutput, T]


def run_batched(receiver: Receiver, asking: Sequence[LossSteps[T]], at_once: int | None = None) -> list[T]:
    """Let several go on until each has its result; what they ask of the receiver at the same time is one pass, of
    which it reads `at_once` rows at a time. What several ask alike, such as what it makes of the same messages as
    text, it is asked once.
    """
    results: dict[int, T] = {}
    waiting: dict[int, ForwardRequest] = {}

    def go_on(i: int, passed: ForwardOutput | None) -> None:
        try:
            waiting[i] = next(asking[i]) if passed is None else asking[i].send(passed)
        except StopIteration as end:
            results[i] = end.value

    for i in range(len(asking)):
        go_on(i, None)
    while waiting:
        kind = next((one.states, one.grad) for one in waiting.values())
        alike = {i: waiting.pop(i) for i in list(waiting) if (waiting[i].states, waiting[i].grad) == kind}
        asked = {i if one.key is None else one.key: one for i, one in alike.items()}
        made = dict(zip(asked, receiver.forward(list(asked.values()), at_once), strict=True))
        for i, one in alike.items():
            go_on(i, made[i if one.key is None else one.key])
    return [results[i] for i in range(len(asking))]


class CodecLoss(nn.Module):
    """Codec and heads as one module with the loss as its forward pass, so that DDP can wrap it."""

    def __init__(self, config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver) -> None:
        super().__init__()
        self.codec, self.heads = codec, heads
        self.config = config
        self._receiver = (receiver,)  # in a tuple: frozen, no part of this module
        self.rows_at_once: int | None = None

    def forward(self, batch: Sequence[Episode], k: int, step: int, log: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """`ask`, answered for this trainee alone."""
        return run_batched(self._receiver[0], [self.loss_steps(batch, k, step, log)], self.rows_at_once)[0]

    def loss_steps(
        self, batch: Sequence[Episode], k: int, step: int, log: bool
    ) -> LossSteps[tuple[Tensor, dict[str, Tensor]]]:
        """Total loss and each objective, on the rows of a global batch that are this worker's."""
        (receiver,), losses = self._receiver, self.config.losses
        rank, workers = world()
        share = len(batch) // workers
        mine = slice(rank * share, (rank + 1) * share)
        message_ids = [receiver.tokens(episode.message) for episode in batch]
        reading = receiver.encode_token_ids(message_ids[mine])
        encoded = self.codec(reading, k, gather)
        whole = gather_encoded(encoded)
        signals = Signals(
            frame=receiver.answer_frame(batch[0].level),
            encoded=whole,
            inputs_HD=gather(mean_state(reading)),
            message_ids_HT=reading.ids_BT,
            message_mask_HT=reading.mask_BT,
            heads=self.heads,
        )
        if losses.reconstruction_tokens and workers > 1:
            whole_reading = receiver.encode_token_ids(message_ids)
            signals.message_ids_HT, signals.message_mask_HT = whole_reading.ids_BT, whole_reading.mask_BT
        steps, values = self.config.training.steps, dict[str, Tensor]()
        if losses.slots and (log or losses.slots.weight_at(step, steps)):
            signals.slots = yield from self._slots(batch[mine], reading, encoded)
        if log or any(term.weight_at(step, steps) for name, term in losses.terms().items() if needs_answer(name)):
            values = yield from self._listen(signals, batch, mine, encoded, log)
        total, metrics = weighted_sum(signals, losses, step, steps)
        metrics |= values
        if log:
            metrics |= prefix_metrics(whole, receiver.embedding_norm)
        return total, {name: value.detach() for name, value in metrics.items()}

    def _slots(
        self, rows: Sequence[Episode], reading: EncodedMessage, encoded: CodecOutput
    ) -> LossSteps[SlotStates]:
        """What the receiver holds at the prefix, and at the words that its slots stand for."""
        (receiver,), place = self._receiver, self.config.codec.place
        encoder = self.codec.encoder
        assert isinstance(encoder, Segments)
        words_BK = encoder.stands_for(reading, encoded.prefix_BKD.shape[1])
        words = receiver.slot_request(rows, reading.embeds_BTD, "message", grad=False)
        told = yield words._replace(key=("words", *rows))
        told_BLTD = torch.stack(told.hidden[:-1], dim=1)
        rows_B1 = torch.arange(len(words_BK), device=words_BK.device)[:, None]
        theirs_BLKD = told_BLTD.transpose(1, 2)[rows_B1, words_BK.clamp(min=0)].transpose(1, 2)
        held = yield receiver.slot_request(rows, encoded.prefix_BKD, place, grad=True)
        return SlotStates(torch.stack(held.hidden[:-1], dim=1), theirs_BLKD, words_BK >= 0)

    def _listen(
        self, signals: Signals, batch: Sequence[Episode], mine: slice, encoded: CodecOutput, log: bool
    ) -> LossSteps[dict[str, Tensor]]:
        """Let the receiver read prefix and answer, and whatever else the objectives compare that with.

        Returns:
            Nats per answer value: nll under the right message; what null and a wrong one cost more, for the log.
        """
        (receiver,), losses, place = self._receiver, self.config.losses, self.config.codec.place
        rows, frame, weight = batch[mine], signals.frame, value_weight(losses)
        share, k = encoded.prefix_BKD.shape[:2]
        targets_BVN, answer_len = receiver.targets(rows), len(frame.ids_A)
        wrong = [signals.encoded.prefix_BKD[self._partners(batch, by)[mine]] for by in self._negatives(batch, log)]
        layout, hidden = receiver.layout(rows, k, place), losses.states is not None
        # What only the log looks at needs no gradient, whose activations would double the step's memory.
        learnt = wrong if losses.contrast or losses.infonce else []
        prefixes = torch.cat([encoded.prefix_BKD, *learnt])
        every = layout.repeat(1 + len(learnt))
        passed = yield receiver.answer_request(every, prefixes, answer_len, hidden, grad=True)
        heard = receiver.gather_answer(every, answer_len, passed)
        every_BA = answer_nll(heard.logits_BAW, frame, targets_BVN.repeat(1 + len(learnt), 1, 1))
        nll_BA, *wrong_BA = torch.split(every_BA, share)
        if wrong and not learnt:
            passed = yield receiver.answer_request(layout, wrong[0].detach(), answer_len, False, grad=False)
            wrong_BA = [
                answer_nll(receiver.gather_answer(layout, answer_len, passed).logits_BAW, frame, targets_BVN)
            ]
        signals.answer, signals.nll_BA = heard.first(share), nll_BA
        signals.nll_B = weighted_nll(nll_BA, frame, weight)
        if wrong_BA:
            signals.shuffled_B = weighted_nll(wrong_BA[0], frame, weight)
        if losses.infonce:
            signals.negatives_MBA = torch.stack(wrong_BA)
        positions_V = frame.positions_V.to(nll_BA.device)
        values = {"nll": nll_BA[:, positions_V].mean()}
        if losses.help or log:
            null_BA = yield from self._null(rows, k, signals)
            signals.null_B = weighted_nll(null_BA, frame, weight)
            values["null_gap"] = (null_BA - nll_BA)[:, positions_V].mean()
        if wrong_BA:
            values["shuffle_gap"] = (wrong_BA[0] - nll_BA)[:, positions_V].mean()
        if losses.kl or losses.states:
            text = receiver.layout(rows, [episode.message for episode in rows])
            hearing = receiver.answer_request(text, None, answer_len, hidden, grad=False)
            passed = yield hearing._replace(key=("text", *rows))
            signals.text_answer = receiver.gather_answer(text, answer_len, passed)
        return values

    def _null(self, rows: Sequence[Episode], k: int, signals: Signals) -> LossSteps[Tensor]:
        """Answer NLL [B, A] with zeros in the slots, of each episode computed once."""
        (receiver,), frame, place = self._receiver, signals.frame, self.config.codec.place
        now = autocast_dtype(receiver.device)
        keys = [(episode, k, place, now) for episode in rows]
        known = {key: receiver.null_nll_cache[key] for key in keys if key in receiver.null_nll_cache}
        fresh = [key[0] for key in keys if key not in known]
        if fresh:
            layout = receiver.layout(fresh, k, place)
            zeros_BKD = signals.encoded.prefix_BKD.new_zeros(len(fresh), k, receiver.width)
            hearing = receiver.answer_request(layout, zeros_BKD, len(frame.ids_A), False, grad=False)
            passed = yield hearing._replace(key=("null", k, place, *fresh))
            with torch.no_grad():
                logits_BAW = receiver.gather_answer(layout, len(frame.ids_A), passed).logits_BAW
                nll_BA = answer_nll(logits_BAW, frame, receiver.targets(fresh))
            for episode, nll_A in zip(fresh, nll_BA.unbind(), strict=True):
                receiver.null_nll_cache[episode, k, place, now] = known[episode, k, place, now] = nll_A
        return torch.stack([known[key] for key in keys])

    def _negatives(self, batch: Sequence[Episode], log: bool) -> range:
        losses = self.config.losses
        if losses.infonce:
            return range(1, 1 + min(losses.infonce.negatives, len(batch) - 1))
        return range(1, 2) if losses.contrast or log else range(0)

    @staticmethod
    def _partners(batch: Sequence[Episode], by: int) -> list[int]:
        """For each row another row, `by` places on or the next beyond with a different content."""
        partners = []
        for i, episode in enumerate(batch):
            places = [(i + by + j) % len(batch) for j in range(len(batch))]
            partners.append(next((p for p in places if batch[p].content != episode.content), places[0]))
        return partners
