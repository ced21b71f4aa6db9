"""Settings on the command line: `--set codec.k=8`, read and checked like the same key in a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import parse_yaml
from m2ray.util.trees import merge_trees, set_key

OPTION = "--set"
HELP = "set a key of the YAML file, such as codec.k=8; the value is YAML, and the option may be repeated"


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` texts by dotted key.

    Raises:
        UserError: a text has another form, its value is not plain YAML, or a key is given twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UserError(f"{OPTION}: {text!r:.60} is not KEY=VALUE; write it as codec.k=8")
        if key in settings:
            raise UserError(f"{OPTION}: {key}: given twice; keep one")
        settings[key] = parse_yaml(value, f"{OPTION}: {key}")
    return settings


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any], source: str = OPTION) -> dict[str, Any]:
    """Return a copy of a tree with dotted keys set; `source` is what sets them, for errors.

    Raises:
        UserError: a key lies below a plain value.
    """
    changed = merge_trees(tree, {})
    for key, value in settings.items():
        try:
            set_key(changed, key, value)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None
    return changed


def overlap(key: str, other: str) -> bool:
    """Return whether two dotted keys are the same, or one lies within the other."""
    return f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")


def is_set(key: str, settings: Iterable[str]) -> bool:
    """Return whether a key, or one around or below it, is among the settings."""
    return bool(key) and any(overlap(key, other) for other in settings)
