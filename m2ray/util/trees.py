"""Nested dictionaries that are read and written by dotted keys, such as `codec.k`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, in place; missing dictionaries on the way are created.

    Raises:
        ValueError: a value on the way is not a dictionary.
    """
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise ValueError(f"{key}: {part} is {tree!r:.60}, expected a mapping of keys; fix either")
    tree[last] = value


def merge_trees(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` with the values of `over` set; mappings in both are merged."""
    merged = {key: merge_trees(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge_trees(merged[key], value) if both else value
    return merged


def get_key(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or None where it is not set."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
