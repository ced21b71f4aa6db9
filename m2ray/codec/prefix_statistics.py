# NEWDOC
"""The training objectives, each a named function of tensors; what they weigh is configuration.

Shapes: B rows (this worker's), H rows of the whole batch over all workers, A answer tokens, W words of the
vocabulary, V values of an answer, N values of a domain, M negatives, K slots, D width, G groups, C codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.codec.codec import CodecOutput


def mean_cosine(prefix_HKD: Tensor) -> Tensor:
    """Mean cosine over pairs of different rows, each flattened: 1 is total collapse."""
    unit_HF = F.normalize(prefix_HKD.flatten(1), dim=-1)
    rows = len(unit_HF)
    total = unit_HF.sum(0).square().sum() - unit_HF.square().sum()
    return total / max(1, rows * (rows - 1))


def centred(features_EF: Tensor) -> Tensor:
    """Rows less their mean."""
    return features_EF.double() - features_EF.double().mean(0)


def effective_rank(features_EF: Tensor) -> float:
    """Exp of the entropy of the spectrum of the centred rows (Roy and Vetterli 2007); 1 where all are equal."""
    apart_EF = centred(features_EF)
    gram = apart_EF @ apart_EF.T if len(apart_EF) < apart_EF.shape[1] else apart_EF.T @ apart_EF
    share_R = torch.linalg.eigvalsh(gram).clamp(min=0)
    share_R = share_R / share_R.sum().clamp(min=1e-12)
    return float(torch.exp(-(share_R * share_R.clamp(min=1e-12).log()).sum()))


@torch.no_grad()
def prefix_metrics(whole: CodecOutput, unit: float) -> dict[str, Tensor]:
    """How large and how different prefixes are, and how many codes they use."""
    prefix_HKD = whole.prefix_BKD.float()
    # A broken optimisation is named by the loss; the decomposition would only refuse its numbers.
    rank = effective_rank(torch.nan_to_num(prefix_HKD.flatten(1)))
    metrics = {
        "prefix_norm": prefix_HKD.norm(dim=-1).mean() / unit,
        "prefix_cosine": mean_cosine(prefix_HKD),
        "effective_rank": prefix_HKD.new_tensor(rank),
    }
    if whole.codes_BKG is not None:
        used = torch.bincount(whole.codes_BKG.flatten()).float()
        used = used[used > 0] / used.sum()
        metrics["code_perplexity"] = torch.exp(-(used * used.log()).sum())
    return metrics
