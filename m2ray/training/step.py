"""A training step's loss: from a batch of episodes to the weighted sum of the objectives.

    episodes -> messages -> codec -> prefix -> receiver, teacher-forced -> signals -> objectives -> loss

`CodecLoss.loss_steps` is a generator: it yields the forward passes it needs of the receiver and is sent their
outputs. `run_batched` runs the passes of several codecs on one receiver together.

Shapes: B rows of this worker, H rows of the global batch, K slots, D width, A answer tokens, M negatives,
L layers, T message tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.codec.codec import Codec, CodecOutput
from m2ray.codec.encoders import Segments, mean_state
from m2ray.codec.prefix_statistics import prefix_metrics
from m2ray.config.trial import TrialConfig
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.layout import Layout
from m2ray.receiver.model.kv_cache import autocast_dtype
from m2ray.receiver.model.requests import AnswerOutput, EncodedMessage, ForwardOutput, ForwardRequest
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.references import References
from m2ray.receiver.scoring import reference_nll
from m2ray.tasks.episodes import AnyEpisode
from m2ray.training.distributed import gather, gather_encoded, world
from m2ray.training.objectives import (
    Heads,
    RepeatedMessage,
    Signals,
    SlotStates,
    needs_answer,
    value_weight,
    weighted_nll,
    weighted_sum,
)

T = TypeVar("T")
LossSteps = Generator[ForwardRequest, ForwardOutput, T]
Loss = tuple[Tensor, dict[str, Tensor]]  # the total, and each objective and metric by name


class CodecLoss(nn.Module):
    """Codec and heads as one module whose forward pass is the loss, so that DDP can wrap it."""

    def __init__(self, config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver) -> None:
        super().__init__()
        self.codec, self.heads = codec, heads
        self.config = config
        # In a tuple: frozen, not part of this module.
        self._receiver = (open_channel(receiver, config.codec.channel, config.codec.channel_layers),)
        self.rows_at_once: int | None = None

    def forward(self, batch: Sequence[AnyEpisode], k: int, step: int, log: bool) -> Loss:
        """Run `loss_steps` of this codec alone."""
        return run_batched(self._receiver[0], [self.loss_steps(batch, k, step, log)], self.rows_at_once)[0]

    def loss_steps(self, batch: Sequence[AnyEpisode], k: int, step: int, log: bool) -> LossSteps[Loss]:
        """Compute the loss on this worker's rows of a global batch.

        Args:
            batch: The global batch, the same on every worker.
            k: Slots to encode into.
            step: Optimizer steps done; objectives are weighted by it.
            log: Compute what only the log shows, too.
        """
        (receiver,), losses, steps = self._receiver, self.config.losses, self.config.training.steps
        rank, workers = world()
        share = len(batch) // workers
        own = slice(rank * share, (rank + 1) * share)
        message_ids = [receiver.tokens(episode.message) for episode in batch]
        messages = receiver.encode_token_ids(message_ids[own])
        encoded = self.codec(messages, k, gather)
        everything = gather_encoded(encoded)
        # Objectives that compare tokens need the messages of the whole batch.
        every_message = (
            receiver.encode_token_ids(message_ids) if losses.reconstruction_tokens and workers > 1 else messages
        )
        signals = Signals(
            encoded=everything,
            inputs_HD=gather(mean_state(messages)),
            message_ids_HT=every_message.ids_BT,
            message_mask_HT=every_message.mask_BT,
            heads=self.heads,
        )
        gaps: dict[str, Tensor] = {}
        if losses.slots and (log or losses.slots.weight_at(step, steps)):
            signals.slots = yield from self._slot_states(batch[own], messages, encoded)
        if losses.autoencoding and (log or workers > 1 or losses.autoencoding.weight_at(step, steps)):
            signals.repeated = yield from self._repeated(messages, encoded)
        if log or any(term.weight_at(step, steps) for name, term in losses.terms().items() if needs_answer(name)):
            gaps = yield from self._answer_signals(signals, batch, own, encoded, log)
        total, metrics = weighted_sum(signals, losses, step, steps)
        metrics |= gaps
        if log:
            metrics |= prefix_metrics(everything, receiver.channel.unit)
        return total, {name: value.detach() for name, value in metrics.items()}

    def _slot_states(
        self, episodes: Sequence[AnyEpisode], messages: EncodedMessage, encoded: CodecOutput
    ) -> LossSteps[SlotStates]:
        """Compute the receiver's states at the prefix, and at the words that its slots stand for, in its place."""
        (receiver,), place = self._receiver, self.config.codec.place
        encoder = self.codec.encoder
        assert isinstance(encoder, Segments)
        words_BK = encoder.word_positions(messages, encoded.prefix_BKD.shape[1])
        request = receiver.message_request(episodes, messages, place)
        text = yield request._replace(key=("words", place, *episodes))
        text_BTLD = torch.stack(text.hidden[:-1], dim=1).transpose(1, 2)
        rows_B1 = torch.arange(len(words_BK), device=words_BK.device)[:, None]
        text_BLKD = text_BTLD[rows_B1, words_BK.clamp(min=0)].transpose(1, 2)
        prefix = yield receiver.slot_request(episodes, encoded.prefix_BKD, place, grad=True)
        return SlotStates(torch.stack(prefix.hidden[:-1], dim=1), text_BLKD, words_BK >= 0)

    def _repeated(self, messages: EncodedMessage, encoded: CodecOutput) -> LossSteps[RepeatedMessage]:
        """Compute what the receiver predicts of messages behind their prefixes and the embedding that asks."""
        (receiver,), prefix_BKD, repeat_D = self._receiver, encoded.prefix_BKD, self.heads.repeat_D
        assert repeat_D is not None
        (rows, k), tokens = prefix_BKD.shape[:2], messages.ids_BT.shape[1]
        ids_BT = F.pad(messages.ids_BT, (k + 1, 0), value=receiver.slot_id)
        columns_BK = torch.arange(k, device=ids_BT.device).expand(rows, -1)
        embeds_BTD = receiver.causal.embed(ids_BT)
        if receiver.channel.kind == "embeddings":
            embeds_BTD = torch.cat([prefix_BKD.to(embeds_BTD.dtype), embeds_BTD[:, k:]], dim=1)
        asks_B1D = repeat_D.to(embeds_BTD.dtype).expand(rows, 1, -1)
        embeds_BTD = torch.cat([embeds_BTD[:, :k], asks_B1D, embeds_BTD[:, k + 1 :]], dim=1)
        lengths = (messages.mask_BT.sum(dim=1) + k + 1).tolist()
        cached = [receiver.opening_ids] * rows
        slots = receiver.slots(columns_BK, prefix_BKD)
        output = yield ForwardRequest(embeds_BTD, ids_BT, lengths, cached, False, grad=True, slots=slots)
        logits_BTW = receiver.causal.head(output.last_BTD[:, k : k + tokens])
        return RepeatedMessage(logits_BTW, messages.ids_BT, messages.mask_BT)

    def _answer_signals(
        self, signals: Signals, batch: Sequence[AnyEpisode], own: slice, encoded: CodecOutput, log: bool
    ) -> LossSteps[dict[str, Tensor]]:
        """Fill the signals that come from answers: under the right prefix, wrong ones, zeros and the text.

        Returns:
            Nats per answer value: `nll` under the right message, and by how much zeros (`null_gap`) and a wrong
            message (`shuffle_gap`) are worse.
        """
        (receiver,), losses = self._receiver, self.config.losses
        episodes, weight = batch[own], value_weight(losses)
        signals.references = references = receiver.references(episodes)
        answer_len = references.length
        rows, k = encoded.prefix_BKD.shape[:2]
        layout, states = receiver.layout(episodes, k, self.config.codec.place), losses.states is not None
        wrong = [signals.encoded.prefix_BKD[_partners(batch, by)[own]] for by in self._negatives(batch, log)]
        # A wrong prefix that only the log looks at needs no gradient, whose activations would double the memory.
        learned = wrong if losses.contrast or losses.infonce else []
        repeated = layout.repeat(1 + len(learned))
        prefixes = torch.cat([encoded.prefix_BKD, *learned])
        output = yield receiver.answer_request(repeated, prefixes, answer_len, states, grad=True)
        answer = receiver.gather_answer(repeated, answer_len, output)
        every_BA = reference_nll(answer.logits_BAW, references.repeat(1 + len(learned)))
        nll_BA, *wrong_BA = torch.split(every_BA, rows)
        if wrong and not learned:
            output = yield receiver.answer_request(layout, wrong[0].detach(), answer_len, False, grad=False)
            logits_BAW = receiver.gather_answer(layout, answer_len, output).logits_BAW
            wrong_BA = [reference_nll(logits_BAW, references)]
        signals.answer, signals.nll_BA = _without_padding(answer.first(rows), references), nll_BA
        signals.nll_B = weighted_nll(nll_BA, references, weight)
        gaps = {"nll": references.value_mean(nll_BA).mean()}
        if losses.infonce:
            signals.negatives_MBA = torch.stack(wrong_BA)
        if losses.help or log:
            null_BA = yield from self._null_nll(episodes, k, answer_len)
            signals.null_B = weighted_nll(null_BA, references, weight)
            gaps["null_gap"] = references.value_mean(null_BA - nll_BA).mean()
        if wrong_BA:
            signals.shuffled_B = weighted_nll(wrong_BA[0], references, weight)
            gaps["shuffle_gap"] = references.value_mean(wrong_BA[0] - nll_BA).mean()
        if losses.kl or losses.states:
            text = receiver.layout(episodes, [episode.message for episode in episodes])
            request = receiver.answer_request(text, None, answer_len, states, grad=False)
            output = yield request._replace(key=("text", *episodes))
            signals.text_answer = receiver.gather_answer(text, answer_len, output)
        return gaps

    def _null_nll(self, episodes: Sequence[AnyEpisode], k: int, answer_len: int) -> LossSteps[Tensor]:
        """Compute the answer NLL [B, A] with zeros in the slots, once per episode; A is `answer_len`."""
        (receiver,), place = self._receiver, self.config.codec.place
        dtype, cache = autocast_dtype(receiver.device), receiver.null_nll_cache
        keys = [(episode, k, place, dtype) for episode in episodes]
        known = {key: cache[key] for key in keys if key in cache}
        if new := [key[0] for key in keys if key not in known]:
            layout: Layout = receiver.layout(new, k, place)
            zeros_BKD = torch.zeros(len(new), k, receiver.channel.width, device=receiver.device)
            references = receiver.references(new)
            request = receiver.answer_request(layout, zeros_BKD, references.length, False, grad=False)
            output = yield request._replace(key=("null", k, place, receiver.channel, *new))
            with torch.no_grad():
                logits_BAW = receiver.gather_answer(layout, references.length, output).logits_BAW
                nll_BA = reference_nll(logits_BAW, references)
            for episode, nll_A in zip(new, nll_BA.unbind(), strict=True):
                cache[episode, k, place, dtype] = known[episode, k, place, dtype] = nll_A
        # An episode's answer may have been padded to another length.
        return torch.stack([F.pad(known[key], (0, answer_len))[:answer_len] for key in keys])

    def _negatives(self, batch: Sequence[AnyEpisode], log: bool) -> range:
        """Return how far on in the batch each wrong message is taken from."""
        losses = self.config.losses
        if losses.infonce:
            return range(1, 1 + min(losses.infonce.negatives, len(batch) - 1))
        return range(1, 2) if losses.contrast or log else range(0)


def backpropagate(loss: Tensor) -> None:
    """Run the backward pass of a loss, unless no weight that it depends on is trained."""
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def _without_padding(answer: AnswerOutput, references: References) -> AnswerOutput:
    """Return the output with padding behind shorter answers left out of the states' mask."""
    if answer.mask_BS is None:
        return answer
    padded_BA = F.pad(references.mask_BA, (answer.mask_BS.shape[1] - references.length, 0), value=True)
    return answer._replace(mask_BS=answer.mask_BS & padded_BA)


def _partners(batch: Sequence[AnyEpisode], by: int) -> list[int]:
    """Return for each row another row, `by` places on or the next after it with a different content."""
    partners = []
    for i, episode in enumerate(batch):
        rows = [(i + by + j) % len(batch) for j in range(len(batch))]
        partners.append(next((row for row in rows if batch[row].content != episode.content), rows[0]))
    return partners


def run_batched(
    receiver: Receiver, generators: Sequence[LossSteps[T]], rows_at_once: int | None = None
) -> list[T]:
    """Run generators to their results; the forward passes that they wait for are run as one batch.

    Requests with equal keys, such as the same messages as text, are run once.

    Args:
        receiver: The receiver of all requests.
        generators: What `CodecLoss.loss_steps` returns.
        rows_at_once: Rows per model call; see `Receiver.forward`.
    """
    results: dict[int, T] = {}
    waiting: dict[int, ForwardRequest] = {}

    def advance(i: int, output: ForwardOutput | None) -> None:
        try:
            waiting[i] = next(generators[i]) if output is None else generators[i].send(output)
        except StopIteration as end:
            results[i] = end.value

    for i in range(len(generators)):
        advance(i, None)
    while waiting:
        kind = next(_kind(request) for request in waiting.values())
        alike = {i: waiting.pop(i) for i in list(waiting) if _kind(waiting[i]) == kind}
        unique = {i if request.key is None else request.key: request for i, request in alike.items()}
        outputs = dict(zip(unique, receiver.forward(list(unique.values()), rows_at_once), strict=True))
        for i, request in alike.items():
            advance(i, outputs[i if request.key is None else request.key])
    return [results[i] for i in range(len(generators))]


def _kind(request: ForwardRequest) -> tuple[object, ...]:
    """Return what requests have in common that run in one batch."""
    return request.states, request.grad, request.slots.channel if request.slots else None
