"""Score answers: likelihood of the reference answer, choices by likelihood, and the exact probability of success.

Shapes: B episodes, A answer tokens, V values of an answer, N values of a domain, R right answers or choices of all
episodes together, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver.layout import Place
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.references import AnswerFrame, References
from m2ray.tasks.episodes import AnyEpisode, Episode, solutions
from m2ray.tasks.scorers import Choice
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError
from m2ray.util.memory import halve_on_oom


def reference_nll(logits_BAW: Tensor, references: References) -> Tensor:
    """Return the negative log-likelihood of reference answers per token, [B, A], in nats; 0 at padding.

    A puzzle's values are scored against a distribution, since several answers may be right; all other tokens
    against the reference. Any end token counts as the end.
    """
    if references.targets is not None:
        return answer_nll(logits_BAW, *references.targets)
    log_probs_BAW = F.log_softmax(logits_BAW.float(), dim=-1)
    each_BA = log_probs_BAW.gather(2, references.ids_BA[..., None])[..., 0]
    ends_BA = log_probs_BAW[..., references.ends_E].logsumexp(-1)
    return -each_BA.where(references.values_BA, ends_BA).where(references.mask_BA, each_BA.new_zeros(()))


def answer_nll(logits_BAW: Tensor, frame: AnswerFrame, targets_BVN: Tensor) -> Tensor:
    """Return `reference_nll` of a puzzle's answers, whose values have the distributions of `Receiver.targets`."""
    nll_BA = -answer_log_probs(logits_BAW, frame.ids_A.to(logits_BAW.device).expand(len(logits_BAW), -1), frame)
    positions_V = frame.positions_V.to(logits_BAW.device)
    return nll_BA.index_copy(1, positions_V, values_nll(logits_BAW[:, positions_V], frame, targets_BVN))


def answer_log_probs(logits_BAW: Tensor, ids_BA: Tensor, frame: AnswerFrame) -> Tensor:
    """Return the log-probability of each token of answers, [B, A]; of the last, the total over all end tokens."""
    log_probs_BAW = F.log_softmax(logits_BAW.float(), dim=-1)
    ends_B1 = log_probs_BAW[:, -1:, frame.ends_E.to(logits_BAW.device)].logsumexp(-1)
    each_BA = log_probs_BAW.gather(2, ids_BA[..., None])[..., 0]
    return torch.cat([each_BA[:, :-1], ends_B1], dim=1)


def values_nll(logits_BVW: Tensor, frame: AnswerFrame, targets_BVN: Tensor) -> Tensor:
    """Return the cross-entropy of the answer's values against their distributions, [B, V], in nats."""
    log_probs_BVW = F.log_softmax(logits_BVW.float(), dim=-1)
    values_VN = frame.values_VN.to(logits_BVW.device)
    return -(targets_BVN * log_probs_BVW.gather(2, values_VN.expand(len(logits_BVW), -1, -1))).sum(-1)


@torch.no_grad()
def value_nll(
    receiver: Receiver,
    batch: Sequence[AnyEpisode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> Tensor:
    """Run the receiver teacher-forced; return nats per token that carries the answer, [B]."""

    def score(rows: Sequence[int]) -> Tensor:
        some = slice(rows[0], rows[-1] + 1)
        layout = receiver.layout(batch[some], texts if isinstance(texts, int) else texts[some], place)
        prefix, references = None if prefix_BKD is None else prefix_BKD[some], receiver.references(batch[some])
        logits_BAW = receiver.logits(layout, prefix, references.length)
        return references.value_mean(reference_nll(logits_BAW, references))

    return torch.cat(halve_on_oom(range(len(batch)), score))


class Choices(NamedTuple):
    """The likeliest choice of each episode."""

    texts: list[str]
    nll_B: Tensor  # nats per token of the first right answer


@torch.no_grad()
def choose_answers(
    receiver: Receiver,
    batch: Sequence[TextEpisode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> Choices:
    """Return the choice that B finds likeliest, by the log-likelihood that its scorer defines.

    The end of an answer is not scored: more text may follow a choice.
    """
    rows = [(i, choice) for i, episode in enumerate(batch) for choice in episode.choices]

    def score(some: Sequence[int]) -> Tensor:
        picked = [rows[row][0] for row in some]
        answered = [replace(batch[i], targets=(rows[row][1],)) for i, row in zip(picked, some, strict=True)]
        layout = receiver.layout(answered, texts if isinstance(texts, int) else [texts[i] for i in picked], place)
        references = receiver.references(answered)
        logits_RAW = receiver.logits(layout, None if prefix_BKD is None else prefix_BKD[picked], references.length)
        values_RA = references.values_BA.float()
        nll_RA = reference_nll(logits_RAW, references) * values_RA
        return torch.stack([nll_RA.sum(1), values_RA.sum(1)], dim=1)

    scores_R2 = torch.cat(halve_on_oom(range(len(rows)), score)).cpu()
    chosen, nlls = [], []
    for i, episode in enumerate(batch):
        own = [row for row, (episode_row, _) in enumerate(rows) if episode_row == i]
        nll, tokens = scores_R2[own, 0], scores_R2[own, 1]
        scorer = episode.rules.scorer
        assert isinstance(scorer, Choice)
        chosen.append(scorer.pick(episode.choices, (-nll).tolist(), [int(count) for count in tokens]))
        right = episode.choices.index(episode.targets[0])
        nlls.append(nll[right] / tokens[right])
    return Choices(chosen, torch.stack(nlls))


@torch.no_grad()
def success_probability(
    receiver: Receiver,
    batch: Sequence[AnyEpisode],
    texts: Sequence[str] | int,
    prefix_BKD: Tensor | None,
    place: Place,
) -> Tensor:
    """Return the probability that B, sampling at temperature 1, answers right, [B]; exact, without sampling noise.

    It is the sum over all right answers in the form of `m2ray.tasks.answers.write_answer`, end token included.
    Right answers in another form, which the verifier would accept, are not counted.

    Raises:
        UserError: the episodes are in free text, whose right answers cannot be listed.
    """
    puzzles = [episode for episode in batch if isinstance(episode, Episode)]
    if len(puzzles) < len(batch):
        raise UserError("evaluation.score: success needs a task with countable answers; use gain")
    level = puzzles[0].level
    frame = receiver.answer_frame(level)
    rows = [(i, values) for i, e in enumerate(puzzles) for values in solutions(level, e.sender + e.receiver)]
    ids_RA = receiver.answer_ids(level, torch.tensor([values for _, values in rows])).to(receiver.device)

    def score(some: Sequence[int]) -> Tensor:
        picked = [rows[row][0] for row in some]
        answered = [replace(puzzles[i], solution=rows[row][1]) for i, row in zip(picked, some, strict=True)]
        layout = receiver.layout(answered, texts if isinstance(texts, int) else [texts[i] for i in picked], place)
        logits_RAW = receiver.logits(layout, None if prefix_BKD is None else prefix_BKD[picked], ids_RA.shape[1])
        return answer_log_probs(logits_RAW, ids_RA[list(some)], frame).sum(1).exp()

    each_R = torch.cat(halve_on_oom(range(len(rows)), score))
    episode_R = torch.tensor([i for i, _ in rows], device=each_R.device)
    return each_R.new_zeros(len(batch)).index_add(0, episode_R, each_R)
