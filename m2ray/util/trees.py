# NEWDOC
"""A search space: which configurations a sweep trains. YAML in, configurations and Optuna suggestions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries, making those on the way.

    Raises:
        ValueError: something other than a dictionary is on the way.
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
    """Nested dictionaries, `over` winning."""
    out = {key: merge_trees(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge_trees(out[key], value) if both else value
    return out


def get_key(tree: Mapping[str, Any], key: str) -> Any:
    """A dotted key's value, None where it is not set."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
