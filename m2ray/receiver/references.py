"""Reference answers of a batch as tokens, and what training and scores compare B's predictions with.

Shapes: B rows, A tokens of the longest answer, V values of a puzzle's answer, N values of a domain, E end tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AnswerFrame(NamedTuple):
    """The tokens that all answers of a puzzle level share, and where the values go."""

    ids_A: Tensor  # the all-zero answer, ending in the end-of-turn token
    positions_V: Tensor
    values_VN: Tensor  # the token for value n at position v
    ends_E: Tensor  # each of these tokens ends an answer


class ValueTargets(NamedTuple):
    """Distributions of a puzzle's values: several answers may be right."""

    frame: AnswerFrame
    targets_BVN: Tensor  # probability of each value, given the reference answer's values before it


class References(NamedTuple):
    """Reference answers, padded on the right to the longest.

    Attributes:
        ids_BA: Their tokens, each answer's end token included.
        mask_BA: True at these, False at padding.
        values_BA: True at tokens that carry the answer: a puzzle's values, a text's tokens but the end.
        ends_E: Each of these tokens ends an answer.
        targets: Of a puzzle; None in free text, where the reference's own tokens are the targets.
    """

    ids_BA: Tensor
    mask_BA: Tensor
    values_BA: Tensor
    ends_E: Tensor
    targets: ValueTargets | None

    @property
    def length(self) -> int:
        """Return A."""
        return self.ids_BA.shape[1]

    def repeat(self, times: int) -> References:
        """Return the batch repeated along its rows."""
        targets = self.targets
        if targets is not None:
            targets = targets._replace(targets_BVN=targets.targets_BVN.repeat(times, 1, 1))
        ids_BA, mask_BA, values_BA = (field.repeat(times, 1) for field in self[:3])
        return References(ids_BA, mask_BA, values_BA, self.ends_E, targets)

    def value_mean(self, each_BA: Tensor) -> Tensor:
        """Return the mean over the tokens that carry the answer, [B]."""
        values_BA = self.values_BA.to(each_BA)
        return (each_BA * values_BA).sum(1) / values_BA.sum(1)

    def position_nll(self, position: int, logits_BW: Tensor) -> Tensor:
        """Return the NLL of the reference at one position, [B], in nats; 0 where it carries no part of the answer.

        Args:
            position: The token's number in the answer.
            logits_BW: Logits over the vocabulary that predict it.
        """
        log_probs_BW = torch.log_softmax(logits_BW.float(), dim=-1)
        if self.targets is None:
            nll_B = -log_probs_BW.gather(1, self.ids_BA[:, position, None])[:, 0]
            return nll_B.where(self.values_BA[:, position], nll_B.new_zeros(()))
        frame, targets_BVN = self.targets
        (value,) = (frame.positions_V == position).nonzero()[0].tolist()
        tokens_N = frame.values_VN[value].to(logits_BW.device)
        return -(targets_BVN[:, value] * log_probs_BW[:, tokens_N]).sum(-1)

    def positions(self) -> list[int]:
        """Return the positions at which some row's token carries a part of the answer."""
        return self.values_BA.any(0).nonzero()[:, 0].tolist()
