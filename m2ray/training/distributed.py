"""Workers of one DDP training: their number, means over them, and the rows of all of them.

Shapes: B rows of this worker.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

from m2ray.codec.codec import CodecOutput


def world() -> tuple[int, int]:
    """Return (rank, number of workers) of this process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def world_mean(values: Tensor) -> Tensor:
    """Return the mean over workers."""
    if world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values = values / world()[1]
    return values


def gather(tensor_B: Tensor) -> Tensor:
    """Return the rows of all workers, in order.

    Gradients flow back to the worker that a row came from, summed over workers. DDP then takes the mean, which is
    right for a loss that every worker computes on the whole batch.
    """
    if world()[1] == 1:
        return tensor_B
    return torch.cat(dist_nn.all_gather(tensor_B.contiguous()))  # type: ignore[no-untyped-call]


def gather_encoded(encoded: CodecOutput) -> CodecOutput:
    """Return the codec's output for the whole batch."""
    rest = [None if field is None else gather(field) for field in encoded[2:]]
    return CodecOutput(gather(encoded.prefix_BKD), gather(encoded.latent_BKD), *rest)
