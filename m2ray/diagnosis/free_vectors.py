# NEWDOC
"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from m2ray.receiver.layout import Place
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import Episode

FREE_EPISODES, FREE_STEPS, FREE_SHARE = 32, 60, 20  # at most; steps; of a sweep's episodes, one in so many


def free_vectors(receiver: Receiver, episodes: Sequence[Episode], k: int, place: Place, steps: int) -> Tensor:
    """Vectors for each episode, fitted to its own answers against the frozen receiver: what k slots can do.

    They start as random token embeddings and follow Adam on the answer's cross-entropy, whatever the message.

    Returns:
        [E, K, D]
    """
    unit = receiver.embedding_norm / math.sqrt(receiver.width)
    dice = torch.Generator().manual_seed(0)
    picks_EK = torch.randint(len(receiver.embedding_ND), (len(episodes), k), generator=dice).to(receiver.device)
    # In units of an embedding's entries, so that a step means the same for any receiver.
    free_EKD = (receiver.embedding_ND[picks_EK].float() / unit).requires_grad_()
    optimizer = torch.optim.Adam([free_EKD], lr=0.2)
    frame, layout = receiver.answer_frame(episodes[0].level), receiver.layout(episodes, k, place)
    targets_EVN = receiver.targets(episodes)
    for _ in range(steps):
        nll_EA = answer_nll(receiver.logits(layout, unit * free_EKD, len(frame.ids_A)), frame, targets_EVN)
        (free_EKD.grad,) = torch.autograd.grad(nll_EA.sum(), free_EKD)
        optimizer.step()
    return (unit * free_EKD).detach()
