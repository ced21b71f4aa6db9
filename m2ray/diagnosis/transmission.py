"""Send a prefix in a given number of bits: what it costs, and what arrives.

A VQ codec sends k groups log2(codebook) bits. A continuous codec sends numbers, in one of two ways: each number is
rounded to b bits, or each part of the prefix (all of it, a slot, a piece of a slot) is sent as the index of its
nearest code in a codebook. Ranges and codebooks are fitted on messages that are not sent.

Shapes: M messages that fit ranges and codebooks, E episodes, K slots, D width, P parts of a prefix, C codes,
F numbers in a part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.codec.sent_size import vq_bits
from m2ray.evaluation.rounding import Restore, rounded

UNCHANGED = "as it is"
NUMBER_BITS = (1, 2, 3, 4, 6, 8, 16)

# Codebook sizes, by what one code stands for.
CODES = {
    "whole prefix": (2, 16, 256, 1024),
    "slot": (2, 4, 8, 16, 64, 256, 1024, 4096),
    "quarter slot": (16, 256),
    "16th of a slot": (16, 256),
}
PIECES = {"slot": 1, "quarter slot": 4, "16th of a slot": 16}  # codes per slot
PER_CODE = 2  # fewest messages a code: a codebook fitted to fewer would only list them
STEPS = 10  # of k-means


class TransmissionScheme(NamedTuple):
    """A way to send a prefix."""

    scheme: str
    setting: str
    bits: float  # a message
    restore: Restore


def transmission_schemes(codec: Codec, fit_MKD: Tensor) -> Iterator[TransmissionScheme]:
    """Yield the ways to send a codec's prefixes, among them the prefix unchanged, as 32-bit numbers.

    Args:
        codec: The codec that makes the prefixes.
        fit_MKD: Prefixes of the messages that fit ranges and codebooks, float32.
    """
    _, k, width = fit_MKD.shape
    if codec.quantiser is not None:
        setting = f"{k * codec.config.groups} codes of {codec.config.codebook}"
        yield TransmissionScheme("VQ", setting, vq_bits(codec.config), _unchanged)
        return
    for scheme, sizes in CODES.items():
        pieces = PIECES.get(scheme, 0)
        parts = k * pieces or 1
        for codes in sizes:
            if codes * PER_CODE <= len(fit_MKD) and (not pieces or width % pieces == 0):
                setting = f"{parts} codes of {codes}" if parts > 1 else f"a code of {codes}"
                yield TransmissionScheme(scheme, setting, parts * math.log2(codes), coded(fit_MKD, parts, codes))
    for bits in NUMBER_BITS:
        yield TransmissionScheme("entry", f"{k * width} of {bits} bits", k * width * bits, rounded(fit_MKD, bits))
    yield TransmissionScheme(UNCHANGED, f"{k * width} of 32 bits", k * width * 32, _unchanged)


def _unchanged(prefix_EKD: Tensor) -> Tensor:
    return prefix_EKD


def coded(fit_MKD: Tensor, parts: int, codes: int) -> Restore:
    """Send each of `parts` equal parts of the flattened prefix as its nearest code, fitted by k-means."""
    from scipy.cluster.vq import kmeans2  # slow to import

    books = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a code that no message uses does no harm
        for part_MF in split_parts(fit_MKD, parts).cpu().numpy():
            generator = np.random.default_rng(0)
            books.append(kmeans2(part_MF, codes, STEPS, minit="points", rng=generator)[0])
    codes_PCF = torch.from_numpy(np.stack(books)).to(fit_MKD)

    def restore(prefix_EKD: Tensor) -> Tensor:
        nearest_PE = torch.cdist(split_parts(prefix_EKD, parts), codes_PCF).argmin(-1)
        arrived_PEF = codes_PCF.gather(1, nearest_PE[..., None].expand(-1, -1, codes_PCF.shape[2]))
        return arrived_PEF.transpose(0, 1).reshape(prefix_EKD.shape)

    return restore


def split_parts(prefix_EKD: Tensor, parts: int) -> Tensor:
    """Return the equal parts of flattened prefixes, [P, E, F]."""
    return prefix_EKD.reshape(len(prefix_EKD), parts, -1).transpose(0, 1)
