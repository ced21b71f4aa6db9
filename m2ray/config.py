"""Pydantic models of every YAML the engine reads. Strict: an unknown or misspelt key is an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from m2ray.command import UserError

MAX_YAML_BYTES = 1_000_000


class Strict(BaseModel):
    """Base of all configuration models: unknown keys, coercions and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without anchors (a few bytes of them can expand to gigabytes) and without twice-given keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: anchors and aliases (& and *) are not supported; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            if isinstance(key, (str, int, float, bool)):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` as text; every paper writes learning rates so.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        UserError: missing, not a file, larger than 1 MB, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; a configuration is a few kilobytes")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({error}); mend the syntax") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top level, found {type(data).__name__}")
    return data


def _known_keys(model: Any) -> Iterator[str]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield name
            yield from _known_keys(field.annotation)
    for argument in getattr(model, "__args__", ()):
        yield from _known_keys(argument)


def validate(model: type[Model], data: Any, source: str) -> Model:
    """Check `data` against `model`; the first fault becomes a `UserError` naming source, key and mend."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        mend = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(fault["loc"][-1]), sorted(set(_known_keys(model))), n=1)
            mend = "unknown key; " + (f"did you mean `{close[0]}`?" if close else "remove it")
        elif fault["type"] == "missing":
            mend = "missing; add it"
        elif fault["type"] != "value_error":
            mend += f", not {fault['input']!r}"
        raise UserError(f"{source}: {key}: {mend}") from None


def load(model: type[Model], path: Path) -> Model:
    """Read and check one YAML file."""
    return validate(model, read_yaml(path), str(path))
