"""The reference for receivers: the model's own logits and greedy answers, a row at a time, without any cache.

Nothing here uses m2ray's forward passes. Vectors enter as `inputs_embeds` or, where a model reads more from token
ids than embeddings, through a hook behind its embedding layer.
Shapes: B rows, T positions, K slots, A answer tokens, D width, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from m2ray.receiver.layout import PLACES, Layout
from m2ray.receiver.model.decoding import Kept
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level

EASY = level("easy")
EPISODES = episodes(EASY, range(6), "search")
MESSAGES = [episode.message for episode in EPISODES]
SLOTS = 3
BOUND = 1e-3  # in standard deviations of a position's logits, float32


def own_logits(
    model: Any, ids: Sequence[int], slots_K: Sequence[int] = (), vectors_KD: Tensor | None = None
) -> Tensor:
    """Return the model's own logits [T, W] of one row, with vectors at some of its positions."""
    if vectors_KD is None:
        return _run(model, input_ids=torch.tensor([list(ids)]))
    if _reads_embeddings_only(model, frozenset(ids)):
        embeds_1TD = model.get_input_embeddings()(torch.tensor([list(ids)])).clone()
        embeds_1TD[0, list(slots_K)] = vectors_KD
        return _run(model, inputs_embeds=embeds_1TD)
    return _with_hook(model, ids, slots_K, vectors_KD)


def _run(model: Any, **arguments: Tensor) -> Tensor:
    logits_TW: Tensor = model(**arguments, use_cache=False).logits[0]
    return logits_TW


def _with_hook(model: Any, ids: Sequence[int], slots_K: Sequence[int], vectors_KD: Tensor) -> Tensor:
    """Give the model token ids, and replace what its embedding layer gives at the slots."""

    def replace(_module: Any, _arguments: Any, embeds_1TD: Tensor) -> Tensor:
        changed_1TD = embeds_1TD.clone()
        changed_1TD[0, list(slots_K)] = vectors_KD
        return changed_1TD

    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        return _run(model, input_ids=torch.tensor([list(ids)]))
    finally:
        handle.remove()


@lru_cache(64)
@torch.no_grad()
def _reads_embeddings_only(model: Any, ids: frozenset[int]) -> bool:
    """Return whether a model can be given embeddings alone, in rows of some tokens.

    Some also read token ids, or look them up. Some read positions off their padding token.
    """
    row = [*ids, *(3 + i * i % 17 for i in range(12))]
    text_TD = model.get_input_embeddings()(torch.tensor([row]))[0]
    vectors_TD = (text_TD + text_TD.flip(0)) / 2
    try:
        pairs = [
            (own_logits(model, row), _run(model, inputs_embeds=text_TD[None])),
            (_with_hook(model, row, range(len(row)), vectors_TD), _run(model, inputs_embeds=vectors_TD[None])),
        ]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return all(error([ids_TW], [embeds_TW]) < BOUND for ids_TW, embeds_TW in pairs)


def own_answer_logits(model: Any, layout: Layout, vectors_BKD: Tensor | None, count: int) -> list[Tensor]:
    """Return the model's own logits [A, W] at the reference answer of each row."""
    rows = []
    for i, (ids, start) in enumerate(zip(layout.ids_BT.tolist(), layout.answer_B.tolist(), strict=True)):
        vectors_KD = None if vectors_BKD is None else vectors_BKD[i]
        logits_TW = own_logits(model, ids[: start + count - 1], layout.slots_BK[i].tolist(), vectors_KD)
        rows.append(logits_TW[start - 1 :])
    return rows


@torch.no_grad()
def own_answers(receiver: Receiver, layout: Layout, vectors_BKD: Tensor | None, tokens: int) -> list[str]:
    """Return the model's own greedy answers: every token is picked after reading the whole row again."""
    answers = []
    for i, (ids, start) in enumerate(zip(layout.ids_BT.tolist(), layout.answer_B.tolist(), strict=True)):
        slots_K = layout.slots_BK[i].tolist()
        row: list[int] = []
        while len(row) < tokens and not (row and row[-1] in receiver.end_ids):
            vectors_KD = None if vectors_BKD is None else vectors_BKD[i]
            logits_TW = own_logits(receiver.model, ids[:start] + row, slots_K, vectors_KD)
            row.append(int(logits_TW[-1].argmax()))
        written = [token for token in row if token not in receiver.end_ids]
        answers.append(receiver.tokenizer.decode(written, skip_special_tokens=True))
    return answers


def error(own: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference of logits, in standard deviations of a position's own logits."""
    worst = 0.0
    for own_AW, other_AW in zip(own, other, strict=True):
        worst = max(worst, float(((own_AW - other_AW).abs() / own_AW.std(dim=1, keepdim=True)).max()))
    return worst


def random_vectors(receiver: Receiver, rows: int = len(EPISODES), slots: int = SLOTS) -> Tensor:
    """Return vectors [B, K, D] as large as embeddings."""
    generator = torch.Generator().manual_seed(0)
    drawn_BKD = torch.randn(rows, slots, receiver.width, generator=generator)
    return drawn_BKD * receiver.embedding_norm / receiver.width**0.5


def answer_len(receiver: Receiver) -> int:
    """Return A."""
    return len(receiver.answer_frame(EASY).ids_A)


def decoded_logits(
    receiver: Receiver,
    episodes: Sequence[Episode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None = None,
    max_new_tokens: int = 128,
) -> Tensor:
    """Return the logits [B, V, W] that decoding sees at the values of the reference answers."""
    references = receiver.references(episodes)
    keeps = Kept(references.positions(), lambda position, logits_BW: logits_BW)
    kept_BVW = receiver.decode_answers(
        episodes, texts, references, keeps, receiver.end_ids, prefix_BKD, "message", 0.0, max_new_tokens, 0
    ).kept_BV
    assert kept_BVW is not None
    return kept_BVW


@torch.no_grad()
def logit_error(receiver: Receiver) -> float:
    """Return the largest error of teacher-forced logits: of text, of decoding, and of vectors in each place."""
    count, model = answer_len(receiver), receiver.model
    text, vectors_BKD = receiver.layout(EPISODES, MESSAGES), random_vectors(receiver)
    own = own_answer_logits(model, text, None, count)
    worst = error(own, list(receiver.logits(text, None, count)))
    values_V = receiver.answer_frame(EASY).positions_V
    decoded = decoded_logits(receiver, EPISODES, MESSAGES, max_new_tokens=2)
    worst = max(worst, error([each[values_V] for each in own], list(decoded)))
    for place in PLACES:
        layout = receiver.layout(EPISODES, SLOTS, place)
        own = own_answer_logits(model, layout, vectors_BKD, count)
        worst = max(worst, error(own, list(receiver.logits(layout, vectors_BKD, count))))
    return worst


def answers_that_differ(receiver: Receiver, tokens: int) -> tuple[int, int]:
    """Return how many greedy answers are not the model's own, and of how many: of text and of vectors."""
    vectors_BKD = random_vectors(receiver)
    ours = receiver.decode(EPISODES, MESSAGES, max_new_tokens=tokens)
    own = own_answers(receiver, receiver.layout(EPISODES, MESSAGES), None, tokens)
    ours += receiver.decode(EPISODES, SLOTS, vectors_BKD, "after", max_new_tokens=tokens)
    own += own_answers(receiver, receiver.layout(EPISODES, SLOTS, "after"), vectors_BKD, tokens)
    return sum(a != b for a, b in zip(ours, own, strict=True)), len(own)


def gradient_error(receiver: Receiver) -> float:
    """Return the largest difference of a gradient to vectors behind the prompt, relative to the largest gradient.

    The receiver runs all rows as one batch, with a kept prompt prefix where it uses one.
    """
    layout, count = receiver.layout(EPISODES, SLOTS, "after"), answer_len(receiver)

    def gradient(own: bool) -> Tensor:
        leaf_BKD = random_vectors(receiver).requires_grad_()
        if own:
            logits_BAW = torch.stack(own_answer_logits(receiver.model, layout, leaf_BKD, count))
        else:
            logits_BAW = receiver.logits(layout, leaf_BKD, count)
        (gradient_BKD,) = torch.autograd.grad(logits_BAW.log_softmax(2)[..., 3].sum(), leaf_BKD)
        return gradient_BKD

    ours_BKD, own_BKD = gradient(own=False), gradient(own=True)
    return float((ours_BKD - own_BKD).abs().max() / own_BKD.abs().max())
