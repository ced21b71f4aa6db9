"""The reference attempt's training loss and evaluation, written plainly.

Training: per sample two message encodings and three receiver forward passes at batch size 1, with logits over the
whole vocabulary at every position. Evaluation: one episode at a time, with the message encoded again for each
condition. Nothing is cached.

Shapes: B samples, T tokens, D receiver width, K slots, A answer tokens, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peer import attempt_objectives
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.conditions import derangement
from m2ray.receiver.layout import Place
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import Episode
from m2ray.training.objectives import Heads, weighted_nll


def encode_message(receiver: Receiver, message: str) -> EncodedMessage:
    """Return the receiver's hidden states of one message, computed anew."""
    ids_1T = torch.tensor([receiver.tokens(message)], device=receiver.device)
    with torch.no_grad():
        states = receiver.model(ids_1T, use_cache=False, output_hidden_states=True).hidden_states
    mask_1T = torch.ones_like(ids_1T, dtype=torch.bool)
    return EncodedMessage(ids_1T, mask_1T, states[0], states[1], states[-1], own_BTD=states[0])


def nll_per_token(receiver: Receiver, episode: Episode, prefix_KD: Tensor, place: Place) -> Tensor:
    """Return the answer's NLL per token, [A], from a forward pass that computes logits at every position."""
    layout = receiver.layout([episode], len(prefix_KD), place)
    embeds_1TD = receiver.embed(layout, prefix_KD[None])
    logits_1TW = receiver.model(inputs_embeds=embeds_1TD, use_cache=False).logits
    frame = receiver.answer_frame(episode.level)
    first = int(layout.answer_B[0]) - 1
    return answer_nll(logits_1TW[:, first : first + len(frame.ids_A)], frame, receiver.targets([episode]))[0]


def batch_loss(
    config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver, batch: Sequence[Episode]
) -> Tensor:
    """Return the attempt's total loss over a batch, computed one sample at a time."""
    assert config.losses.ce is not None
    weight, place = config.losses.ce.value_weight, config.codec.place
    latents, inputs, nlls = [], [], []
    for i, episode in enumerate(batch):
        references = receiver.references([episode])
        wrong_episode = batch[(i + 1) % len(batch)]
        encoded = encode_message(receiver, episode.message)
        right, wrong = codec(encoded), codec(encode_message(receiver, wrong_episode.message))
        prefixes = (right.prefix_BKD[0], wrong.prefix_BKD[0], torch.zeros_like(right.prefix_BKD[0]))
        nlls.append(
            [
                weighted_nll(nll_per_token(receiver, episode, each, place)[None], references, weight)[0]
                for each in prefixes
            ]
        )
        latents.append(right.latent_BKD[0])
        inputs.append(encoded.states_BTD[0].float().mean(0))
    right_B, wrong_B, null_B = (torch.stack(column) for column in zip(*nlls, strict=True))
    latent_BKD, inputs_BD = torch.stack(latents), torch.stack(inputs)
    return attempt_objectives(config.losses, heads, latent_BKD, inputs_BD, right_B, wrong_B, null_B)


def answer_condition(
    receiver: Receiver, codec: Codec, episodes: Sequence[Episode], condition: str, noise: Sequence[Tensor]
) -> list[str]:
    """Return the greedy answers under one condition, generated one episode at a time.

    Args:
        receiver: Frozen model.
        codec: Codec in evaluation mode.
        episodes: Episodes to answer.
        condition: One of normal, shuffle, null, random, P0 and P1.
        noise: Prefix of each episode under `random`, [K, D].
    """
    answers, partners = [], derangement(episodes)
    for i, episode in enumerate(episodes):
        prefix_1KD = codec(encode_message(receiver, episode.message)).prefix_BKD  # even where it is replaced
        slots: list[str] | int = codec.config.k
        if condition == "shuffle":
            prefix_1KD = codec(encode_message(receiver, episodes[partners[i]].message)).prefix_BKD
        elif condition == "null":
            prefix_1KD = torch.zeros_like(prefix_1KD)
        elif condition == "random":
            prefix_1KD = noise[i][None]
        elif condition in ("P0", "P1"):
            slots = [episode.message if condition == "P1" else ""]
        layout = receiver.layout([episode], slots, codec.config.place)
        embeds_1TD = receiver.embed(layout, prefix_1KD)[:, : int(layout.answer_B[0])]
        generated = receiver.model.generate(
            inputs_embeds=embeds_1TD,
            attention_mask=torch.ones(embeds_1TD.shape[:2], dtype=torch.long, device=receiver.device),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=next(iter(receiver.end_ids)),
            eos_token_id=sorted(receiver.end_ids),
        )
        answers.append(str(receiver.tokenizer.decode(generated[0], skip_special_tokens=True)))
    return answers
