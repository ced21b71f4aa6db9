"""Free vectors: k vectors fitted to each episode's answer, a ceiling of what k slots can do.

Shapes: E episodes, A answer tokens, V values of an answer, N values of a domain, K slots, D width.
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

FREE_EPISODES = 32  # number of episodes that vectors are fitted to; in a sweep at most
FREE_SHARE = 20  # in a sweep, vectors are fitted to one in so many episodes of a diagnosis
FREE_STEPS = 60  # of the optimizer


def free_vectors(receiver: Receiver, episodes: Sequence[Episode], k: int, place: Place, steps: int) -> Tensor:
    """Fit vectors to each episode's own answer, with the receiver frozen and without the message.

    They start as random token embeddings; Adam then minimizes the answer's cross-entropy.

    Returns:
        One prefix for each episode, [E, K, D].
    """
    unit = receiver.embedding_norm / math.sqrt(receiver.width)
    generator = torch.Generator().manual_seed(0)
    ids_EK = torch.randint(len(receiver.embedding_ND), (len(episodes), k), generator=generator).to(receiver.device)
    # In units of a typical embedding entry, so that a step means the same for any receiver.
    free_EKD = (receiver.embedding_ND[ids_EK].float() / unit).requires_grad_()
    optimizer = torch.optim.Adam([free_EKD], lr=0.2)
    frame, layout = receiver.answer_frame(episodes[0].level), receiver.layout(episodes, k, place)
    targets_EVN = receiver.targets(episodes)
    for _ in range(steps):
        nll_EA = answer_nll(receiver.logits(layout, unit * free_EKD, len(frame.ids_A)), frame, targets_EVN)
        (free_EKD.grad,) = torch.autograd.grad(nll_EA.sum(), free_EKD)
        optimizer.step()
    return (unit * free_EKD).detach()
