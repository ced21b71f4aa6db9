"""The reference for receivers: the model's own logits and greedy answers, a row at a time, without any cache.

Nothing here uses m2ray's forward passes. Vectors enter through a hook behind the model's embedding layer.
Shapes: B rows, T positions, K slots, A answer tokens, D width, W words of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from m2ray.receiver.layout import Layout, Place
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

EASY = level("easy")
EPISODES = episodes(EASY, range(6), "search")
MESSAGES = [episode.message for episode in EPISODES]
PLACES: tuple[Place, ...] = ("before", "message", "after")
SLOTS = 3
BOUND = 1e-3  # in standard deviations of a position's logits, float32


@contextmanager
def vectors_in_slots(model, slots_K: Sequence[int], vectors_KD: Tensor | None) -> Iterator[None]:
    """Let vectors take the place of what the embedding layer gives at some positions of a row."""

    def replace(_module, _arguments, embeds_1TD):
        changed_1TD = embeds_1TD.clone()
        changed_1TD[0, list(slots_K)] = vectors_KD.to(embeds_1TD.dtype)
        return changed_1TD

    if vectors_KD is None or not len(vectors_KD):
        yield
        return
    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def own_logits(model, ids: Sequence[int], slots_K: Sequence[int] = (), vectors_KD: Tensor | None = None) -> Tensor:
    """Return the model's own logits [T, W] of one row."""
    with vectors_in_slots(model, slots_K, vectors_KD):
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def own_answer_logits(model, layout: Layout, vectors_BKD: Tensor | None, count: int) -> list[Tensor]:
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
