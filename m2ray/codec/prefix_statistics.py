"""Statistics of prefixes: their size, how much they differ, and how many codes they use.

Shapes: H rows (messages), K slots, D width of the receiver, E examples, F features, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.codec.codec import CodecOutput


def mean_cosine(prefix_HKD: Tensor) -> Tensor:
    """Return the mean cosine over pairs of different rows, each flattened; 1 is total collapse."""
    unit_HF = F.normalize(prefix_HKD.flatten(1), dim=-1)
    rows = len(unit_HF)
    total = unit_HF.sum(0).square().sum() - unit_HF.square().sum()
    return total / max(1, rows * (rows - 1))


def centered(features_EF: Tensor) -> Tensor:
    """Return the rows minus their mean, in float64."""
    return features_EF.double() - features_EF.double().mean(0)


def effective_rank(features_EF: Tensor) -> float:
    """Return exp of the entropy of the centered rows' spectrum (Roy and Vetterli 2007); 1 where all are equal."""
    centered_EF = centered(features_EF)
    wide = len(centered_EF) < centered_EF.shape[1]
    gram = centered_EF @ centered_EF.T if wide else centered_EF.T @ centered_EF
    share_R = torch.linalg.eigvalsh(gram).clamp(min=0)
    share_R = share_R / share_R.sum().clamp(min=1e-12)
    return float(torch.exp(-(share_R * share_R.clamp(min=1e-12).log()).sum()))


@torch.no_grad()
def prefix_metrics(encoded: CodecOutput, unit: float) -> dict[str, Tensor]:
    """Return the logged statistics of a batch of prefixes.

    Args:
        encoded: The codec's output for the whole batch.
        unit: Mean norm of a token embedding, which norms are divided by.
    """
    prefix_HKD = encoded.prefix_BKD.float()
    # The loss reports a broken optimization; the decomposition of NaN would only raise an error.
    rank = effective_rank(torch.nan_to_num(prefix_HKD.flatten(1)))
    metrics = {
        "prefix_norm": prefix_HKD.norm(dim=-1).mean() / unit,
        "prefix_cosine": mean_cosine(prefix_HKD),
        "effective_rank": prefix_HKD.new_tensor(rank),
    }
    if encoded.codes_BKG is not None:
        used = torch.bincount(encoded.codes_BKG.flatten()).float()
        used = used[used > 0] / used.sum()
        metrics["code_perplexity"] = torch.exp(-(used * used.log()).sum())
    return metrics
