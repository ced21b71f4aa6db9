"""Send vectors as whole numbers of b bits.

Shapes: M messages that fit the ranges, E episodes, K slots, D width of the channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.util.errors import UserError

Restore = Callable[[Tensor], Tensor]  # from the prefixes that are sent, [E, K, D], to those that arrive


def rounded(fit_MKD: Tensor, bits: int) -> Restore:
    """Send each number as one of 2^bits equal steps of its range, fitted per slot and dimension."""
    low_KD, high_KD = fit_MKD.amin(0), fit_MKD.amax(0)
    step_KD = ((high_KD - low_KD) / 2**bits).clamp(min=torch.finfo(torch.float32).tiny)

    def restore(prefix_EKD: Tensor) -> Tensor:
        code_EKD = ((prefix_EKD - low_KD) / step_KD).floor().clamp(0, 2**bits - 1)
        return low_KD + (code_EKD + 0.5) * step_KD

    return restore


def bits(inputs: ConditionInputs, count: int) -> Injection:
    """Inject the right message's prefix, each number of it sent in `count` bits.

    The ranges of each half of the episodes are fitted on the other half, never on what is sent.

    Raises:
        UserError: the codec sends codes, or there is one episode only.
    """
    prefixes_EKD = inputs.prefixes_EKD.float()
    if inputs.tested_codec.quantiser is not None:
        raise UserError(f"condition bits-{count}: the codec sends codes, not numbers; leave it out")
    if len(prefixes_EKD) < 2:
        raise UserError(f"condition bits-{count}: needs two episodes, to fit ranges on one; use more")
    even_E = torch.arange(len(prefixes_EKD), device=prefixes_EKD.device) % 2 == 0
    arrived_EKD = torch.empty_like(prefixes_EKD)
    for half_E in (even_E, ~even_E):
        arrived_EKD[half_E] = rounded(prefixes_EKD[~half_E], count)(prefixes_EKD[half_E])
    return inputs.inject(arrived_EKD)
