"""Score answers: likelihood of the reference answer, and the exact probability of answering right.

Shapes: B episodes, A answer tokens, V variables of an answer, N values of a domain, R right answers of all
episodes together, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.layout import AnswerFrame, Place
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, solutions
from m2ray.util.memory import halve_on_oom


def answer_nll(logits_BAW: Tensor, frame: AnswerFrame, targets_BVN: Tensor) -> Tensor:
    """Return the negative log-likelihood of the answer per token, [B, A], in nats.

    Values are scored against a distribution (`Receiver.targets`), all other tokens against the reference.
    """
    nll_BA = -answer_log_probs(logits_BAW, frame.ids_A.to(logits_BAW.device).expand(len(logits_BAW), -1), frame)
    positions_V = frame.positions_V.to(logits_BAW.device)
    return nll_BA.index_copy(1, positions_V, values_nll(logits_BAW[:, positions_V], frame, targets_BVN))


def answer_log_probs(logits_BAW: Tensor, ids_BA: Tensor, frame: AnswerFrame) -> Tensor:
    """Return the log-probability of each token of answers, [B, A]; of the last, that of any end token."""
    log_probs_BAW = F.log_softmax(logits_BAW.float(), dim=-1)
    ends_B1 = log_probs_BAW[:, -1:, frame.ends_E.to(logits_BAW.device)].logsumexp(-1)
    each_BA = log_probs_BAW.gather(2, ids_BA[..., None])[..., 0]
    return torch.cat([each_BA[:, :-1], ends_B1], dim=1)


def values_nll(logits_BVW: Tensor, frame: AnswerFrame, targets_BVN: Tensor) -> Tensor:
    """Return the cross-entropy of the answer's values against their distributions, [B, V], in nats."""
    log_probs_BVW = F.log_softmax(logits_BVW.float(), dim=-1)
    values_VN = frame.values_VN.to(logits_BVW.device)
    return -(targets_BVN * log_probs_BVW.gather(2, values_VN.expand(len(logits_BVW), -1, -1))).sum(-1)


def mean_value_nll(receiver: Receiver, batch: Sequence[Episode], logits_BVW: Tensor) -> Tensor:
    """Return the mean of `values_nll` over an answer's values, [B], in nats."""
    return values_nll(logits_BVW, receiver.answer_frame(batch[0].level), receiver.targets(batch)).mean(dim=1)


@torch.no_grad()
def value_nll(
    receiver: Receiver,
    batch: Sequence[Episode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> Tensor:
    """Run the receiver teacher-forced and return `mean_value_nll`, [B], in nats."""
    frame = receiver.answer_frame(batch[0].level)

    def score(rows: Sequence[int]) -> Tensor:
        some = slice(rows[0], rows[-1] + 1)
        layout = receiver.layout(batch[some], texts if isinstance(texts, int) else texts[some], place)
        prefix = None if prefix_BKD is None else prefix_BKD[some]
        logits_BAW = receiver.logits(layout, prefix, len(frame.ids_A))
        return mean_value_nll(receiver, batch[some], logits_BAW[:, frame.positions_V.to(logits_BAW.device)])

    return torch.cat(halve_on_oom(range(len(batch)), score))


@torch.no_grad()
def success_probability(
    receiver: Receiver,
    batch: Sequence[Episode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> Tensor:
    """Return the probability that B, sampling at temperature 1, answers right, [B]; exact, without sampling noise.

    It is the sum over all right answers in the form of `m2ray.tasks.answers.write_answer`, end token included.
    Right answers in another form, which the verifier would accept, are not counted.
    """
    level = batch[0].level
    frame = receiver.answer_frame(level)
    rows = [(i, values) for i, e in enumerate(batch) for values in solutions(level, e.sender + e.receiver)]
    ids_RA = receiver.answer_ids(level, torch.tensor([values for _, values in rows])).to(receiver.device)

    def score(some: Sequence[int]) -> Tensor:
        picked = [rows[row][0] for row in some]
        answered = [replace(batch[i], solution=rows[row][1]) for i, row in zip(picked, some, strict=True)]
        layout = receiver.layout(answered, texts if isinstance(texts, int) else [texts[i] for i in picked], place)
        logits_RAW = receiver.logits(layout, None if prefix_BKD is None else prefix_BKD[picked], ids_RA.shape[1])
        return answer_log_probs(logits_RAW, ids_RA[list(some)], frame).sum(1).exp()

    each_R = torch.cat(halve_on_oom(range(len(rows)), score))
    episode_R = torch.tensor([i for i, _ in rows], device=each_R.device)
    return each_R.new_zeros(len(batch)).index_add(0, episode_R, each_R)
