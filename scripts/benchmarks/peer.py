"""The yardstick of the benchmarks: the attempt's training loss and evaluation, batched, in plain PyTorch.

It is what one would write in an hour with Hugging Face: the rows of a step share a forward pass, logits are
computed where the answer stands only, and answers come from `generate` in batches of 64. Nothing is kept from one
step, or from one checkpoint, to the next.

Shapes: B rows, T positions, D receiver width, K slots, A answer tokens, F flattened latent (K x D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.codec.codec import Codec
from m2ray.codec.encoders import mean_state
from m2ray.config.objectives import Losses
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.conditions import derangement
from m2ray.receiver.layout import Layout, Place, pad
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import Episode
from m2ray.training.objectives import Heads, weighted_nll

BATCH = 64  # rows of a `generate` call
NEW_TOKENS = 32


class Rows(NamedTuple):
    """Rows padded on the left, so that all end in the same column."""

    embeds_BTD: Tensor
    mask_BT: Tensor
    positions_BT: Tensor


def left_padded(receiver: Receiver, layout: Layout, prefix_BKD: Tensor | None, answer_len: int) -> Rows:
    """Return prompts, each followed by `answer_len` tokens of its reference answer, the prefix in its slots."""
    length_B1 = layout.answer_B[:, None] + answer_len
    shift_B1 = length_B1.max() - length_B1
    columns_BT = torch.arange(int(length_B1.max()), device=receiver.device) - shift_B1
    positions_BT = columns_BT.clamp(min=0)
    embeds_BTD = receiver.model.get_input_embeddings()(layout.ids_BT.gather(1, positions_BT))
    if prefix_BKD is not None:
        rows_B1 = torch.arange(len(embeds_BTD), device=receiver.device)[:, None]
        slots = (rows_B1, layout.slots_BK + shift_B1)
        embeds_BTD = embeds_BTD.index_put(slots, prefix_BKD.to(embeds_BTD.dtype))
    return Rows(embeds_BTD, (columns_BT >= 0).long(), positions_BT)


@torch.no_grad()
def encode_messages(receiver: Receiver, messages: Sequence[str]) -> EncodedMessage:
    """Return the receiver's hidden states of messages, from one forward pass."""
    opening = receiver.opening_ids
    rows = [receiver.tokens(message) for message in messages]
    ids_BT = pad([[*opening, *row] for row in rows], receiver.pad_id).to(receiver.device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=receiver.device)
    mask_BT = torch.arange(ids_BT.shape[1], device=receiver.device) < lengths_B1 + len(opening)
    states = receiver.model(
        ids_BT, attention_mask=mask_BT.long(), use_cache=False, output_hidden_states=True, logits_to_keep=1
    ).hidden_states
    own = slice(len(opening), None)
    return EncodedMessage(ids_BT[:, own], mask_BT[:, own], *(states[i][:, own] for i in (0, 1, -1, 0)))


def answer_nlls(receiver: Receiver, episodes: Sequence[Episode], prefix_BKD: Tensor, place: Place) -> Tensor:
    """Return the NLL of each answer token, [B, A], from one teacher-forced forward pass."""
    frame = receiver.answer_frame(episodes[0].level)
    answer_len = len(frame.ids_A)
    rows = left_padded(receiver, receiver.layout(episodes, prefix_BKD.shape[1], place), prefix_BKD, answer_len)
    logits_BTW = receiver.model(
        inputs_embeds=rows.embeds_BTD,
        attention_mask=rows.mask_BT,
        position_ids=rows.positions_BT,
        use_cache=False,
        logits_to_keep=answer_len + 1,
    ).logits
    return answer_nll(logits_BTW[:, :-1], frame, receiver.targets(episodes))


def attempt_objectives(
    losses: Losses,
    heads: Heads,
    latent_BKD: Tensor,
    inputs_BD: Tensor,
    nll_B: Tensor,
    shuffled_B: Tensor,
    null_B: Tensor,
) -> Tensor:
    """Return the attempt's total loss, from weighted NLLs under the right message, a wrong one, and zeros."""
    assert losses.ce is not None
    assert losses.contrast is not None
    assert losses.help is not None
    assert losses.reconstruction is not None
    assert losses.info_preserve is not None
    assert heads.rebuild is not None
    total_B = losses.ce.weight * nll_B
    total_B = total_B + losses.contrast.weight * F.relu(losses.contrast.margin - (shuffled_B - nll_B))
    total_B = total_B + losses.help.weight * F.relu(nll_B - null_B + losses.help.margin)
    unit_BD = F.normalize(inputs_BD, dim=-1)
    reconstruction = F.mse_loss(F.normalize(heads.rebuild(latent_BKD.flatten(1)), dim=-1), unit_BD)
    flat_BF = F.normalize(latent_BKD.flatten(1), dim=-1)
    preserved = F.mse_loss(flat_BF @ flat_BF.T, unit_BD @ unit_BD.T)
    total = total_B.mean() + losses.reconstruction.weight * reconstruction
    return total + losses.info_preserve.weight * preserved


def batch_loss(
    config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver, batch: Sequence[Episode]
) -> Tensor:
    """Return the attempt's total loss over a batch: one pass over messages, one over answers, one under zeros."""
    losses, place = config.losses, config.codec.place
    assert losses.ce is not None
    references, weight = receiver.references(batch), losses.ce.value_weight
    messages = encode_messages(receiver, [episode.message for episode in batch])
    encoded = codec(messages)
    prefix_BKD = encoded.prefix_BKD
    both_BKD = torch.cat([prefix_BKD, prefix_BKD.roll(-1, 0)])
    answers_BA = answer_nlls(receiver, [*batch, *batch], both_BKD, place)
    with torch.no_grad():
        zeros_BA = answer_nlls(receiver, batch, torch.zeros_like(prefix_BKD), place)
    nll_B, shuffled_B = weighted_nll(answers_BA, references.repeat(2), weight).chunk(2)
    null_B = weighted_nll(zeros_BA, references, weight)
    return attempt_objectives(losses, heads, encoded.latent_BKD, mean_state(messages), nll_B, shuffled_B, null_B)


@torch.no_grad()
def answer(
    receiver: Receiver,
    episodes: Sequence[Episode],
    texts: list[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> list[str]:
    """Return the greedy answers of one batch, with a text in the message's place or a prefix in open slots."""
    rows = left_padded(receiver, receiver.layout(episodes, texts, place), prefix_BKD, 0)
    generated = receiver.model.generate(
        inputs_embeds=rows.embeds_BTD,
        attention_mask=rows.mask_BT,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=next(iter(receiver.end_ids)),
        eos_token_id=sorted(receiver.end_ids),
    )
    return [str(text) for text in receiver.tokenizer.batch_decode(generated, skip_special_tokens=True)]


@torch.no_grad()
def evaluate(
    receiver: Receiver,
    codec: Codec,
    episodes: Sequence[Episode],
    conditions: Sequence[str],
    noise: Sequence[Tensor],
) -> dict[str, list[str]]:
    """Return the greedy answers under each condition.

    Args:
        receiver: Frozen model.
        codec: Codec in evaluation mode.
        episodes: Episodes to answer.
        conditions: Some of normal, shuffle, null, random, P0 and P1.
        noise: Prefix of each episode under `random`, [K, D].
    """
    place = codec.config.place
    starts = range(0, len(episodes), BATCH)
    messages = [[episode.message for episode in episodes[i : i + BATCH]] for i in starts]
    normal_EKD = torch.cat([codec(encode_messages(receiver, batch)).prefix_BKD for batch in messages])
    prefixes: Mapping[str, Tensor | None] = {
        "normal": normal_EKD,
        "shuffle": normal_EKD[derangement(episodes)],
        "null": torch.zeros_like(normal_EKD),
        "random": torch.stack(list(noise)) if "random" in conditions else None,
    }
    texts = {"P0": [""] * len(episodes), "P1": [episode.message for episode in episodes]}
    answers: dict[str, list[str]] = {name: [] for name in conditions}
    for name in conditions:
        prefix_EKD = prefixes.get(name)
        for i in starts:
            some = slice(i, i + BATCH)
            middle = texts[name][some] if name in texts else codec.config.k
            prefix_BKD = None if prefix_EKD is None else prefix_EKD[some]
            answers[name] += answer(receiver, episodes[some], middle, prefix_BKD, place)
    return answers
