"""Near-duplicates: the sketches are those of datasketch."""

import random
import zlib

import numpy as np
import pytest
from datasketch import MinHash

from m2ray.tasks import near_duplicates
from m2ray.tasks.near_duplicates import shingles, similar_pairs

TEXTS = ["", "a", "abcd", "abcde", "abcdef", "é", "über alles", "日本語のテキスト", "z" * 5000, "plain text again"]


def test_sketches_are_datasketches():
    multipliers, offsets = MinHash(hashfunc=zlib.crc32).permutations
    found = near_duplicates._sketches(TEXTS, multipliers, offsets)
    for text, sketch in zip(TEXTS, found, strict=True):
        expected = MinHash(hashfunc=zlib.crc32)
        expected.update_batch(piece.encode() for piece in shingles(text))
        np.testing.assert_array_equal(sketch, expected.hashvalues)


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_pairs_do_not_depend_on_how_many_texts_are_hashed_at_once(monkeypatch, at_once):
    rng = random.Random(0)
    words = [f"w{i}" for i in range(50)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(40)]
    texts += [text.replace(text.split()[5], "other", 1) for text in texts[:20]]
    expected = [(i, 40 + i) for i in range(20)]
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", at_once)
    assert sorted((j, i) for i, j in similar_pairs(texts, 0.7, lambda i, j: False)) == expected
