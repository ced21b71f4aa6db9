# NEWDOC
"""One codec under training: its objectives on a batch, in one process or in many that see the same global batch.

The forward passes that it wants of the receiver it yields, and is sent what they give: `together` makes those of
several trainees on one receiver at once.

Shapes: B rows of this worker, H rows of the global batch, K slots, D width, A answer tokens, M negatives.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

from m2ray.codec.codec import CodecOutput


def world() -> tuple[int, int]:
    """(rank, number of workers) of this process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def world_mean(values: Tensor) -> Tensor:
    """Mean over workers."""
    if world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values = values / world()[1]
    return values


def gather(tensor_B: Tensor) -> Tensor:
    """The rows of all workers in order. Gradients flow back to where the rows came from, summed over workers,
    which is what the mean that DDP then takes needs for a loss that every worker computes on the whole batch.
    """
    if world()[1] == 1:
        return tensor_B
    return torch.cat(dist_nn.all_gather(tensor_B.contiguous()))  # type: ignore[no-untyped-call]


def gather_encoded(encoded: CodecOutput) -> CodecOutput:
    """The forward pass of the whole batch, from every worker's share."""
    rest = [None if field is None else gather(field) for field in encoded[2:]]
    return CodecOutput(gather(encoded.prefix_BKD), gather(encoded.latent_BKD), *rest)
