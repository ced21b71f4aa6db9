"""The training objectives, each a named function of tensors; what they weigh is configuration.

Shapes: B rows, A answer tokens, W words of the vocabulary, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.receiver import AnswerFrame


def answer_nll(logits_BAW: Tensor, frame: AnswerFrame, targets_BVN: Tensor) -> Tensor:
    """Negative log-likelihood of the answer per token, [B, A], in nats.

    Values are scored against a distribution (`Receiver.targets`), the rest of the answer against its token.
    """
    log_probs_BAW = F.log_softmax(logits_BAW, dim=-1)
    ids_A1 = frame.ids_A.to(logits_BAW.device)[:, None]
    nll_BA = -log_probs_BAW.gather(2, ids_A1.expand(len(logits_BAW), -1, -1))[..., 0]
    values_VN = frame.values_VN.to(logits_BAW.device)
    at_values_BVW = log_probs_BAW[:, frame.places_V]
    values_BVN = at_values_BVW.gather(2, values_VN.expand(len(logits_BAW), -1, -1))
    return nll_BA.index_copy(1, frame.places_V.to(nll_BA.device), -(targets_BVN * values_BVN).sum(-1))
