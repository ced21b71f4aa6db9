"""Strict reading of YAML files into pydantic models.

Unknown keys, values of another type, tags and anchors are refused with one line that names file, key and fix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from m2ray.util.errors import UserError, describe_error

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

MAX_YAML_BYTES = 1_000_000
SEED_RANGE = re.compile(r"([0-9]{1,15}):([0-9]{1,15})")


class StrictModel(BaseModel):
    """Base of all configuration models: refuses unknown keys, type coercion and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class UnknownKey(ValueError):
    """Error that a model raises for an unknown key where it checks its keys itself. The message is the key."""


Model = TypeVar("Model", bound=StrictModel)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without anchors (a few bytes of them can expand to gigabytes), tags and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"line {line}: anchors and aliases (& and *) are not supported; write it out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"line {line}: tags ({event.tag}) are not supported; leave it out")
        return super().compose_node(parent, index)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # YAML 1.1 reads the range `10:50` as the number 650, in base 60.
        if kind is yaml.ScalarNode and implicit[0] and SEED_RANGE.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            if isinstance(key, (str, int, float, bool)):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3`, the usual form of a learning rate, as text.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UserError: the file is missing, a folder, larger than 1 MB, not plain YAML, or not a mapping.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a YAML file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; give a configuration file (a few kilobytes)")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({describe_error(error)}); check the file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: bytes that are not UTF-8, and text that only looks like a date or number (2020-13-45).
        raise UserError(f"{path}: not valid YAML ({describe_error(error)}); fix the syntax") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise UserError(
            f"{path}: expected a mapping of keys at the top level, found {found}; write `key: value` lines"
        )
    return data


# User-facing messages, with a fix, by pydantic's error type.
_FAULTS = {
    "missing": "missing; add it",
    "greater_than": "{given} is not above {gt:g}; write a larger number",
    "greater_than_equal": "{given} is below {ge:g}; write {ge:g} or more",
    "less_than": "{given} is not below {lt:g}; write a smaller number",
    "less_than_equal": "{given} is above {le:g}; write {le:g} or less",
    "multiple_of": "{given} is not a multiple of {multiple_of}; write one",
    "finite_number": "{given} is not finite; write a finite number",
    "int_type": "{given} is not a whole number; write one",
    "int_from_float": "{given} is not a whole number; write one",
    "int_parsing": "{given} is not a whole number; write one",
    "float_type": "{given} is not a number; write one such as 0.001",
    "float_parsing": "{given} is not a number; write one such as 0.001",
    "string_type": "{given} is not text; write text, in quotes if YAML reads it as another type",
    "list_type": "{given} is not a list; write one such as [a, b]",
    "tuple_type": "{given} is not a list; write one such as [1, 2]",
    "dict_type": "expected a mapping of keys, not {given}; write `key: value` lines",
    "model_type": "expected a mapping of keys, not {given}; write `key: value` lines",
    "literal_error": "{given} does not exist; use {expected}",
    "too_short": "{given} is too short; write at least {min_length}",
    "too_long": "{given} is too long; write at most {max_length}",
    "string_pattern_mismatch": "{given} is not a plain name; use letters, digits, ., - and _, at most 64 of them",
}


def validate(model: type[Model], data: Any, source: str | Callable[[str], str]) -> Model:
    """Check `data` against `model`.

    Args:
        model: The configuration model.
        data: The tree of keys and values, as read from a file.
        source: The text that errors start with, usually the file; or a function that returns it for a dotted key.

    Raises:
        UserError: names the source, the key and the fix of the first fault.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        key, fix = _describe_fault(model, error.errors()[0])
        where = source if isinstance(source, str) else source(key)
        raise UserError(": ".join(part for part in (where, key, fix) if part)) from None


def _describe_fault(model: type[BaseModel], fault: ErrorDetails) -> tuple[str, str]:
    """Return the dotted key of a fault that pydantic found, and the message that states it with its fix."""
    key = ".".join(f"{part!s:.60}" for part in fault["loc"] if part != "[key]")
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, UnknownKey):
        key = f"{key}.{raised!s:.60}".lstrip(".")
    if fault["type"] == "extra_forbidden" or isinstance(raised, UnknownKey):
        close = difflib.get_close_matches(key.rpartition(".")[2], sorted(set(_known_keys(model))), n=1)
        return key, "unknown key; " + (f"did you mean `{close[0]}`?" if close else "remove it")
    if fault["type"] == "value_error":
        return key, str(raised)
    message = _FAULTS.get(fault["type"], fault["msg"].replace("{", "(") + ", not {given}; fix it")
    return key, message.format(given=f"{fault['input']!r:.60}", **fault.get("ctx", {}))


def _known_keys(model: Any) -> Iterator[str]:
    """Yield all keys of a model and of the models inside it."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield field.alias or name
            yield from _known_keys(field.annotation)
    for argument in getattr(model, "__args__", ()):
        yield from _known_keys(argument)


def load_yaml(model: type[Model], path: Path) -> Model:
    """Read a YAML file and check it against a model.

    Raises:
        UserError: see `read_yaml` and `validate`.
    """
    return validate(model, read_yaml(path), str(path))
