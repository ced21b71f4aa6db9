"""YAML files read strictly: an unknown or misspelt key, a coercion, a tag or an anchor is an error in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2ray.util.errors import UserError, describe_error

Share = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


NonNegative = Annotated[float, Field(ge=0)]


Count = Annotated[int, Field(ge=1)]


MAX_YAML_BYTES = 1_000_000


SEED_RANGE = re.compile(r"([0-9]{1,15}):([0-9]{1,15})")


class StrictModel(BaseModel):
    """Base of all configuration models: unknown keys, coercions and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class UnknownKey(ValueError):
    """Raised by a model that sees for itself which keys it knows, of one that it does not."""


Model = TypeVar("Model", bound=StrictModel)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without anchors (a few bytes of them can expand to gigabytes), tags and twice-given keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"line {line}: anchors and aliases (& and *) are not supported; write it out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"line {line}: tags ({event.tag}) are not supported; leave it out")
        return super().compose_node(parent, index)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # YAML 1.1 reads the range `10:50` as 650, in base 60.
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
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a YAML file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; give a configuration, of a few kilobytes")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({describe_error(error)}); check the file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: bytes that are no UTF-8, and what only looks like a date or a number (2020-13-45).
        raise UserError(f"{path}: not valid YAML ({describe_error(error)}); fix the syntax") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise UserError(
            f"{path}: expected a mapping of keys at the top level, found {found}; write `key: value` lines"
        )
    return data


def _known_keys(model: Any) -> Iterator[str]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield field.alias or name
            yield from _known_keys(field.annotation)
    for argument in getattr(model, "__args__", ()):
        yield from _known_keys(argument)


# What pydantic finds, in words that say what to write.
_FAULTS = {
    "missing": "missing; add it",
    "greater_than": "{given} is not above {gt:g}; write more",
    "greater_than_equal": "{given} is below {ge:g}; write {ge:g} or more",
    "less_than": "{given} is not below {lt:g}; write less",
    "less_than_equal": "{given} is above {le:g}; write {le:g} or less",
    "multiple_of": "{given} is no multiple of {multiple_of}; write one",
    "finite_number": "{given} is not finite; write a number that is",
    "int_type": "{given} is no whole number; write one",
    "int_from_float": "{given} is no whole number; write one",
    "int_parsing": "{given} is no whole number; write one",
    "float_type": "{given} is no number; write one such as 0.001",
    "float_parsing": "{given} is no number; write one such as 0.001",
    "string_type": "{given} is no text; write text, in quotes where it looks like something else",
    "list_type": "{given} is no list; write one such as [a, b]",
    "tuple_type": "{given} is no list; write one such as [1, 2]",
    "dict_type": "expected a mapping of keys, not {given}; write `key: value` lines",
    "model_type": "expected a mapping of keys, not {given}; write `key: value` lines",
    "literal_error": "{given} does not exist; use {expected}",
    "too_short": "{given} is too short; write at least {min_length}",
    "too_long": "{given} is too long; write at most {max_length}",
    "string_pattern_mismatch": "{given} is no plain name; use letters, digits, ., - and _, 64 at most",
}


def validate(model: type[Model], data: Any, source: str | Callable[[str], str]) -> Model:
    """Check `data` against `model`; the first fault becomes a `UserError` naming source, key and fix.

    Args:
        model: What it should be.
        data: What it is.
        source: Where it comes from, or a function that says so of a dotted key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(f"{part!s:.60}" for part in fault["loc"] if part != "[key]")
        raised = fault.get("ctx", {}).get("error")
        if isinstance(raised, UnknownKey):
            key = f"{key}.{raised!s:.60}".lstrip(".")
        if fault["type"] == "extra_forbidden" or isinstance(raised, UnknownKey):
            close = difflib.get_close_matches(key.rpartition(".")[2], sorted(set(_known_keys(model))), n=1)
            fix = "unknown key; " + (f"did you mean `{close[0]}`?" if close else "remove it")
        elif fault["type"] == "value_error":
            fix = str(raised)
        else:
            form = _FAULTS.get(fault["type"], fault["msg"].replace("{", "(") + ", not {given}; fix it")
            fix = form.format(given=f"{fault['input']!r:.60}", **fault.get("ctx", {}))
        where = source if isinstance(source, str) else source(key)
        raise UserError(": ".join(part for part in (where, key, fix) if part)) from None


def load_yaml(model: type[Model], path: Path) -> Model:
    """Read and check one YAML file."""
    return validate(model, read_yaml(path), str(path))
