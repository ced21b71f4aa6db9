"""Content-free conditions: prefixes that do not depend on the right message, or from which none can be read.

Vectors are those of the codec's channel, whichever it is.

Shapes: E episodes, K slots, D width of the channel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from m2ray.evaluation.inputs import ConditionInputs, Injection

ROTATION_SEED = 0


def null(inputs: ConditionInputs) -> Injection:
    """Inject true zeros; not decode(0), which leaks through its bias. No token attends to a `kv` slot of zeros."""
    return inputs.inject(torch.zeros_like(inputs.prefixes_EKD))


def random(inputs: ConditionInputs) -> Injection:
    """Inject the codec's decode of latents drawn from N(0, 1)."""
    codec = inputs.tested_codec
    latent_EKD = inputs.noise((codec.config.k, codec.width), stream=1)
    if codec.config.calibration == "none":  # which gives the noise no norm
        latent_EKD = latent_EKD * codec.unit / codec.width**0.5
    with torch.no_grad():
        return inputs.inject(codec.decode(latent_EKD).prefix_BKD)


def constant(inputs: ConditionInputs) -> Injection:
    """Inject a trained prefix without content: the ceiling of mere priming."""
    codec = inputs.constant
    assert codec is not None, "the condition constant needs a trained content-free codec"
    prefixes_EKD = inputs.encode(lambda messages: codec(messages).prefix_BKD)
    return inputs.inject(prefixes_EKD)


def mean(inputs: ConditionInputs) -> Injection:
    """Inject the mean prefix of the split."""
    prefixes_EKD = inputs.prefixes_EKD
    return inputs.inject(prefixes_EKD.mean(0, keepdim=True).expand_as(prefixes_EKD))


def matched(inputs: ConditionInputs) -> Injection:
    """Inject Gaussian prefixes with the mean and covariance of the split's prefixes.

    mean + (w / sqrt(E)) (X - mean), w ~ N(0, I_E), has exactly the sample covariance of X and needs no
    factorization of it.
    """
    prefixes_EKD = inputs.prefixes_EKD
    mean_KD = prefixes_EKD.mean(0)
    weights_EE = inputs.noise((len(prefixes_EKD),), stream=2) / len(prefixes_EKD) ** 0.5
    return inputs.inject(mean_KD + torch.einsum("ef,fkd->ekd", weights_EE, prefixes_EKD - mean_KD))


def rotate(inputs: ConditionInputs) -> Injection:
    """Inject the right message's prefix under one random rotation, the same for all episodes and codecs.

    Norms and angles between vectors stay; all that B knows of directions is lost. The keys, and the values, of
    each layer of a channel `kv` are rotated on their own.
    """
    parts = torch.split(inputs.prefixes_EKD, inputs.view.channel.part_widths, dim=-1)
    rotated = [part_EKF @ rotation(part_EKF.shape[-1]).to(part_EKF) for part_EKF in parts]
    return inputs.inject(torch.cat(rotated, dim=-1))


@lru_cache(maxsize=4)
def rotation(width: int) -> Tensor:
    """Return a random orthogonal matrix [D, D], uniform over all (QR with positive diagonal; Mezzadri 2007)."""
    generator = torch.Generator().manual_seed(ROTATION_SEED)
    q_DD, r_DD = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q_DD * r_DD.diagonal().sign()


def noise(inputs: ConditionInputs, scale: float) -> Injection:
    """Inject vectors in random directions, of `scale` times the channel's unit (the mean embedding norm)."""
    codec = inputs.tested_codec
    noise_EKD = inputs.noise((codec.config.k, codec.width), stream=3)
    return inputs.inject(torch.nn.functional.normalize(noise_EKD, dim=-1) * scale * inputs.view.channel.unit)
