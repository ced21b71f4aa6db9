"""Strict reading of YAML files into pydantic models.

Unknown keys, values of another type, tags and anchors are refused with one line that names file, key and fix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
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

    # Models of fields that are plain mappings here and checked later; for suggestions.
    checked_later: ClassVar[Mapping[str, type[BaseModel]]] = {}
    # Keys that earlier versions lack, with their defaults. They are left out where they are not set, so that
    # digests and records of earlier sweeps stay the same.
    added_later: ClassVar[Mapping[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        later = self.added_later
        return {key: value for key, value in tree.items() if key not in later or value != later[key]}


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
            if key_node.tag == "tag:yaml.org,2002:merge":
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: merge keys (<<) are not supported; write the keys out")
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            if isinstance(key, (str, int, float, bool)):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: _PlainLoader, node: Any) -> int:
    """Return a whole number; refuse one that starts with 0, which YAML 1.1 reads in base 8."""
    if _LEADING_ZERO.fullmatch(node.value):
        raise yaml.YAMLError(
            f"line {node.start_mark.line + 1}: {node.value} starts with 0, so that YAML reads it in base 8; leave "
            "the 0 out, or quote it if it is text"
        )
    return int(loader.construct_yaml_int(node))


_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
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


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a text as YAML reads it.

    Raises:
        UserError: names the source; the text is not plain YAML.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML ({describe_error(error)}); fix the syntax") from None


_ANY = "*"  # in the path of a key: a name that the user chooses, or a place in a list

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
        close = _closest_key(model, key)
        return key, "unknown key; " + (f"did you mean `{close}`?" if close else "remove it")
    if fault["type"] == "value_error":
        return key, str(raised)
    message = _FAULTS.get(fault["type"], fault["msg"].replace("{", "(") + ", not {given}; fix it")
    if isinstance(fault["input"], bool) and fault["type"] in ("string_type", "literal_error"):
        message += "; quote a name that YAML reads as true or false (yes, no, on, off)"
    return key, message.format(given=f"{fault['input']!r:.60}", **fault.get("ctx", {}))


def _closest_key(model: type[BaseModel], key: str) -> str:
    """Return the dotted key that an unknown one resembles, one beside it if there is any; empty for none."""
    parent, _, wrong = key.rpartition(".")
    paths = [_insert_names(path, key) for path in dict.fromkeys(_known_keys(model))]
    for candidates in ([path for path in paths if path.rpartition(".")[0] == parent], paths):
        by_name = {path.rpartition(".")[2]: path for path in reversed(candidates)}
        if close := difflib.get_close_matches(wrong, sorted(by_name), n=1):
            return by_name[close[0]]
    return ""


def _insert_names(path: tuple[str, ...], key: str) -> str:
    """Return a path as a dotted key, with the user's own names, such as that of a point, from the unknown key."""
    if _ANY not in path:
        return ".".join(path)
    before, after = path[: path.index(_ANY)], path[path.index(_ANY) + 1 :]
    prefix = ".".join([*before, ""])
    own = key.removeprefix(prefix).rpartition(".")[0] if key.startswith(prefix) else ""
    return ".".join([*before, own or "NAME", *after])


def _known_keys(model: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all keys of a model and of the models inside it; `_ANY` stands for names and places."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            own = (*path, field.alias or name)
            yield own
            yield from _known_keys(field.annotation, own)
        for name, later in getattr(model, "checked_later", {}).items():
            yield from _known_keys(later, (*path, name))
    arguments = getattr(model, "__args__", ())
    inside = (*path, _ANY) if getattr(model, "__origin__", None) in (dict, list) else path
    for argument in arguments:
        yield from _known_keys(argument, inside)


def load_yaml(model: type[Model], path: Path) -> Model:
    """Read a YAML file and check it against a model.

    Raises:
        UserError: see `read_yaml` and `validate`.
    """
    return validate(model, read_yaml(path), str(path))
