"""Names and values for sentences about people and places, from the package `mimesis` (MIT licence).

A value is drawn by consistent hashing: its name decides which draws yield it, not its position in a list. So when
another version of the package adds or removes some values, nearly all episodes stay the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

PACKAGE = "mimesis"
# The places of each kind of value in the package's English data: the file, and the keys of its lists.
_SOURCES: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "person": ("person.json", (("names", "female"), ("names", "male"))),
    "occupation": ("person.json", (("occupation",),)),
    "language": ("person.json", (("language",),)),
    "city": ("address.json", (("city",),)),
    "country": ("address.json", (("country", "name"),)),
    "street": ("address.json", (("street", "name"),)),
    "company": ("finance.json", (("company", "name"),)),
    "dish": ("food.json", (("dishes",),)),
    "drink": ("food.json", (("drinks",),)),
    "fruit": ("food.json", (("fruits",),)),
}
# One to three words of ASCII letters: others are spelled in several ways, or are faults of the data.
_PLAIN = re.compile(r"[A-Z][A-Za-z]+(?: [A-Za-z]+){0,2}")
# Countries that English gives an article (`the Netherlands`), which the sentences do not write.
_ARTICLE = re.compile(
    "Bahamas|Comoros|Gambia|Islands|Isle|Maldives|Netherlands|Philippines|Republic|Territor|United"
)
_POINTS = 16  # of each value on the ring; the more, the more evenly values are drawn


class Pool:
    """All values of a kind, on a ring of hashes."""

    def __init__(self, kind: str, values: list[str]) -> None:
        self.values = tuple(sorted(values))
        ring = sorted((_hash(f"{kind}/{value}/{i}"), value) for value in self.values for i in range(_POINTS))
        self._points = [point for point, _ in ring]
        self._owners = [value for _, value in ring]

    def pick(self, position: int) -> str:
        """Return the value at a position of the ring, from 0 to 2**32 - 1."""
        return self._owners[bisect(self._points, position) % len(self._owners)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


@lru_cache
def pool(kind: str) -> Pool:
    """Return the values of a kind: a key of the table above."""
    name, keys = _SOURCES[kind]
    values: set[str] = set()
    for path in keys:
        found: Any = _read(name)
        for key in path:
            found = found[key]
        values.update(value for value in found if _PLAIN.fullmatch(value))
    if kind == "country":
        values = {value for value in values if not _ARTICLE.search(value)}
    return Pool(kind, sorted(values))


@lru_cache
def _read(name: str) -> Any:
    path = Path(str(distribution(PACKAGE).locate_file(f"{PACKAGE}/datasets/en/{name}")))
    return json.loads(path.read_text(encoding="utf-8"))


@lru_cache
def data_version() -> str:
    """Return the package's version, and a digest of all values, which tells whether two data sets are equal."""
    values = {kind: pool(kind).values for kind in _SOURCES}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{PACKAGE}-{distribution(PACKAGE).version}-{digest}"
