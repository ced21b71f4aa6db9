"""Sending a prefix in so many bits: what a codec's numbers cost, and what arrives.

A VQ codec says itself how many bits it sends: k groups log2(codebook). A continuous one sends numbers. They are
rounded to b bits each, or each part of the prefix (all of it, a slot, a piece of a slot) is sent as the number of
its nearest code in a codebook. Ranges and codebooks are fitted on messages of their own.

Shapes: M messages that fit a quantiser, E episodes, K slots, D width, P parts of a prefix, C codes, F entries of a
part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.config.trial import CodecConfig

Restore = Callable[[Tensor], Tensor]


UNCHANGED = "as it is"


ENTRY_BITS = (1, 2, 3, 4, 6, 8, 16)


# Sizes of the codebooks, by what gets a code.
CODES = {
    "whole prefix": (2, 16, 256, 1024),
    "slot": (2, 4, 8, 16, 64, 256, 1024, 4096),
    "quarter slot": (16, 256),
    "16th of a slot": (16, 256),
}


PIECES = {"slot": 1, "quarter slot": 4, "16th of a slot": 16}  # in a slot


PER_CODE = 2  # messages, at least: a codebook fitted to fewer would only list them


STEPS = 10  # of k-means


class TransmissionScheme(NamedTuple):
    """A way to send a prefix."""

    scheme: str
    setting: str
    bits: float  # a message
    restore: Restore  # the prefixes [E, K, D] that arrive, of those that are sent


def vq_bits(config: CodecConfig) -> float:
    """Bits of a message through a VQ bottleneck."""
    return config.k * config.groups * math.log2(config.codebook)


def rounded(fit_MKD: Tensor, bits: int) -> Restore:
    """Each entry as one of 2^bits even steps of its range over the fitting messages, per slot and dimension."""
    low_KD, high_KD = fit_MKD.amin(0), fit_MKD.amax(0)
    step_KD = ((high_KD - low_KD) / 2**bits).clamp(min=torch.finfo(torch.float32).tiny)

    def restore(prefix_EKD: Tensor) -> Tensor:
        code_EKD = ((prefix_EKD - low_KD) / step_KD).floor().clamp(0, 2**bits - 1)
        return low_KD + (code_EKD + 0.5) * step_KD

    return restore


def coded(fit_MKD: Tensor, parts: int, codes: int) -> Restore:
    """Each of `parts` equal parts of the flattened prefix as its nearest code, by k-means over the messages."""
    from scipy.cluster.vq import kmeans2

    books = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a code that no message uses does no harm
        for part_MF in split(fit_MKD, parts).cpu().numpy():
            dice = np.random.default_rng(0)
            books.append(kmeans2(part_MF, codes, STEPS, minit="points", rng=dice)[0])
    codes_PCF = torch.from_numpy(np.stack(books)).to(fit_MKD)

    def restore(prefix_EKD: Tensor) -> Tensor:
        nearest_PE = torch.cdist(split(prefix_EKD, parts), codes_PCF).argmin(-1)
        arrived_PEF = codes_PCF.gather(1, nearest_PE[..., None].expand(-1, -1, codes_PCF.shape[2]))
        return arrived_PEF.transpose(0, 1).reshape(prefix_EKD.shape)

    return restore


def split(prefix_EKD: Tensor, parts: int) -> Tensor:
    """The equal parts of flattened prefixes, [P, E, F]."""
    return prefix_EKD.reshape(len(prefix_EKD), parts, -1).transpose(0, 1)


def transmission_schemes(codec: Codec, fit_MKD: Tensor) -> Iterator[TransmissionScheme]:
    """The ways to send a codec's prefixes, and the prefix as it is, with the bits of its numbers.

    Args:
        codec: Whose prefixes.
        fit_MKD: Prefixes of the messages that fit ranges and codebooks, float32.
    """
    _, k, width = fit_MKD.shape
    if codec.quantiser is not None:
        groups, codebook = codec.config.groups, codec.config.codebook
        yield TransmissionScheme(
            "VQ", f"{k * groups} codes of {codebook}", vq_bits(codec.config), lambda prefix_EKD: prefix_EKD
        )
        return
    for scheme, sizes in CODES.items():
        pieces = PIECES.get(scheme, 0)
        parts = k * pieces or 1
        for codes in sizes:
            if codes * PER_CODE <= len(fit_MKD) and (not pieces or width % pieces == 0):
                setting = f"{parts} codes of {codes}" if parts > 1 else f"a code of {codes}"
                yield TransmissionScheme(scheme, setting, parts * math.log2(codes), coded(fit_MKD, parts, codes))
    for bits in ENTRY_BITS:
        yield TransmissionScheme("entry", f"{k * width} of {bits} bits", k * width * bits, rounded(fit_MKD, bits))
    yield TransmissionScheme(UNCHANGED, f"{k * width} of 32 bits", k * width * 32, lambda prefix_EKD: prefix_EKD)
