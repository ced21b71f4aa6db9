"""Pairs of near-duplicate texts, found by MinHash (Broder 1997) and compared exactly.

The sketches are those of `datasketch` with CRC-32 as its hash function, computed for many texts at once.

Shapes: N texts, H different hash values, P permutations, S pieces of a text.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2ray.util.text import with_progress

SHINGLE = 5  # characters
_PERMUTATIONS = 128
# Weights of false positives, which cost time (each is checked), and of false negatives, which let a near-duplicate
# slip. At the bound of 0.8 they find 87 % of the pairs with a similarity of 0.8, and 99.9 % of those with 0.9.
_WEIGHTS = (0.1, 0.9)
# Texts from one template share many bands of their sketches. Comparing a text with the last few of each band only
# keeps the time proportional to the number of texts; near-duplicates share other bands too.
_MOST_PER_BAND = 10
_AT_ONCE = 1024  # texts hashed at once, and pieces of a text permuted at once

Words = npt.NDArray[np.uint32]


def similar_pairs(
    texts: Sequence[str], similarity: float, connected: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of similar texts, by their places.

    Args:
        texts: The texts, all different.
        similarity: The least Jaccard similarity of their sets of five-character pieces.
        connected: Tells of two texts whether they belong together already; such pairs are not compared.
    """
    from datasketch import MinHash, MinHashLSH  # slow to import

    # Chooses the number and width of the bands; for bounds above 0.99 it finds none.
    best = MinHashLSH(threshold=min(similarity, 0.99), num_perm=_PERMUTATIONS, weights=_WEIGHTS)
    multipliers_P, offsets_P = MinHash(_PERMUTATIONS, hashfunc=zlib.crc32).permutations[:, : best.b * best.r]
    sketches_NP = _sketches(texts, multipliers_P, offsets_P)
    bands = [np.ascontiguousarray(sketches_NP[:, k * best.r : (k + 1) * best.r]) for k in range(best.b)]
    repeated_NB = np.stack([_repeated(band) for band in bands], axis=1)
    recent: defaultdict[tuple[int, bytes], deque[int]] = defaultdict(lambda: deque(maxlen=_MOST_PER_BAND))
    for i in np.flatnonzero(repeated_NB.any(axis=1)).tolist():
        shared = [recent[k, bands[k][i].tobytes()] for k in np.flatnonzero(repeated_NB[i]).tolist()]
        for j in sorted(set().union(*shared)):
            if not connected(i, j) and _jaccard(texts[i], texts[j]) >= similarity:
                yield i, j
        for band in shared:
            band.append(i)


def _sketches(texts: Sequence[str], multipliers_P: Words, offsets_P: Words) -> Words:
    """Return the MinHash sketch [P] of each text."""
    sketches_NP = np.empty((len(texts), len(multipliers_P)), np.uint32)
    hashed = itertools.chain.from_iterable(
        _piece_hashes(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)
    )
    for i, hashes_S in zip(with_progress(range(len(texts)), "near-duplicates: {} messages"), hashed, strict=True):
        parts = (hashes_S[s : s + _AT_ONCE, None] for s in range(0, len(hashes_S), _AT_ONCE))
        least = [(part_S1 * multipliers_P + offsets_P).min(axis=0) for part_S1 in parts]
        sketches_NP[i] = least[0] if len(least) == 1 else np.min(least, axis=0)
    return sketches_NP


def _piece_hashes(texts: Sequence[str]) -> Iterator[Words]:
    """Yield the mixed hash values of each text's pieces."""
    from datasketch.minhash import _fmix

    plain = "".join(text for text in texts if text.isascii())
    codes = np.frombuffer(plain.encode("ascii"), np.uint8)
    hashes = _fmix(_crc32_of_windows(codes), 32)
    start = 0
    for text in texts:
        if not text.isascii() or len(text) < SHINGLE:
            values = [zlib.crc32(piece.encode()) for piece in shingles(text)]
            yield _fmix(np.array(values, np.uint32), 32)
        else:
            yield hashes[start : start + len(text) - SHINGLE + 1]
        start += len(text) if text.isascii() else 0


def _crc32_of_windows(codes: npt.NDArray[np.uint8]) -> Words:
    """Return `zlib.crc32` of all windows of `SHINGLE` bytes.

    CRC-32 is an affine function of the bits: each byte at each place flips bits of the value of all zeros.
    """
    zeros = zlib.crc32(bytes(SHINGLE))
    windows = max(0, len(codes) - SHINGLE + 1)
    found = np.full(windows, zeros, np.uint32)
    for place in range(SHINGLE):
        flips = [zlib.crc32(bytes(place) + bytes([v]) + bytes(SHINGLE - 1 - place)) ^ zeros for v in range(256)]
        found ^= np.array(flips, np.uint32)[codes[place : place + windows]]
    return found


def _repeated(band: Words) -> npt.NDArray[np.bool_]:
    """Return which rows of a band another row equals; others can match nothing, and are most."""
    _, place, counts = np.unique(_as_bytes(band), return_inverse=True, return_counts=True)
    return np.asarray(counts[place] > 1)


def _as_bytes(band: Words) -> npt.NDArray[Any]:
    return band.view(f"S{band.shape[1] * band.itemsize}").ravel()


def shingles(text: str) -> set[str]:
    """Return the pieces of a text: all runs of `SHINGLE` characters."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def _jaccard(a: str, b: str) -> float:
    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second)
