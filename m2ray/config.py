"""Pydantic models of every YAML the engine reads. Strict: an unknown or misspelt key is an error."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from m2ray.command import UserError, why
from m2ray.task import level as task_level

MAX_YAML_BYTES = 1_000_000
_RANGE = re.compile(r"([0-9]{1,15}):([0-9]{1,15})")


class Strict(BaseModel):
    """Base of all configuration models: unknown keys, coercions and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


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
        if kind is yaml.ScalarNode and implicit[0] and _RANGE.fullmatch(value):
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
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; give a configuration, of a few kilobytes")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({why(error)}); check the file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: bytes that are no UTF-8, and what only looks like a date or a number (2020-13-45).
        raise UserError(f"{path}: not valid YAML ({why(error)}); mend the syntax") from None
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
    """Check `data` against `model`; the first fault becomes a `UserError` naming source, key and mend.

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
        if fault["type"] == "value_error":
            mend = str(fault["ctx"]["error"])
        elif fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(fault["loc"][-1]), sorted(set(_known_keys(model))), n=1)
            mend = "unknown key; " + (f"did you mean `{close[0]}`?" if close else "remove it")
        else:
            form = _FAULTS.get(fault["type"], fault["msg"].replace("{", "(") + ", not {given}; mend it")
            mend = form.format(given=f"{fault['input']!r:.60}", **fault.get("ctx", {}))
        where = source if isinstance(source, str) else source(key)
        raise UserError(": ".join(part for part in (where, key, mend) if part)) from None


def load(model: type[Model], path: Path) -> Model:
    """Read and check one YAML file."""
    return validate(model, read_yaml(path), str(path))


# --- one training -------------------------------------------------------------------------------------------

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def parse_seeds(text: str) -> range:
    """`42:542` as a range of episode seeds, end excluded.

    Raises:
        ValueError: not of that form, negative, or empty.
    """
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"{text!r} is no range of seeds; write it as 1000:1100 (end excluded)")
    return range(int(match[1]), int(match[2]))


def _check_seeds(text: str) -> str:
    parse_seeds(text)
    return text


Seeds = Annotated[str, AfterValidator(_check_seeds)]


class Splits(Strict):
    """Episode seeds of each split. Disjoint; messages are kept apart by content as well (see `m2ray.task`)."""

    train: Seeds = "100000:1000000"
    search: Seeds = "1000:1200"
    select: Seeds = "4000:4500"
    confirm: Seeds = "2000:3000"

    @model_validator(mode="after")
    def _disjoint(self) -> Splits:
        ranges = {name: parse_seeds(getattr(self, name)) for name in type(self).model_fields}
        for (a, one), (b, other) in itertools.combinations(ranges.items(), 2):
            if one.start < other.stop and other.start < one.stop:
                raise ValueError(
                    f"{a} {one.start}:{one.stop} overlaps {b} {other.start}:{other.stop}; keep them apart"
                )
        return self

    def seeds(self, name: str) -> range:
        """The seeds of a split."""
        return parse_seeds(getattr(self, name))


class TaskConfig(Strict):
    """Which episodes, and in whose words A's message is."""

    level: str = "easy"
    messages: Annotated[str, Field(description="template, or the receiver name of a sender LM")] = "template"
    file: Annotated[str | None, Field(description="JSONL of episodes instead of drawn ones")] = None

    @field_validator("level")
    @classmethod
    def _exists(cls, name: str) -> str:
        return task_level(name).name


class CodecConfig(Strict):
    """The codec: what reads the message, what the latent passes through, how the prefix is scaled."""

    encoder: Literal["last_token", "resampler", "segments", "memory", "constant"] = "segments"
    k: Annotated[int, Field(ge=1, le=4096, description="prefix vectors")] = 8
    place: Annotated[Literal["message", "before", "after"], Field(description="where B's prompt gets them")] = (
        "message"
    )
    width: Annotated[
        int, Field(ge=8, le=8192, multiple_of=4, description="hidden width of the encoder, over 4 heads")
    ] = 256
    layers: Annotated[int, Field(ge=1, le=32, description="resampler, segments: depth")] = 2
    cut: Annotated[
        Literal["tokens", "clauses"], Field(description="segments: what gets an equal share of the slots")
    ] = "tokens"
    lora_rank: Annotated[int, Field(ge=1, le=256, description="memory: rank of the LoRA")] = 16
    calibration: Annotated[
        Literal["layernorm", "norm"],
        Field(description="layernorm: the attempt's, affine; norm: each vector rescaled, direction kept"),
    ] = "norm"
    scale_gate: Annotated[
        Positive, Field(description="starting prefix norm over mean token-embedding norm; learned")
    ] = 1.5
    bottleneck: Literal["none", "vq"] = "none"
    codebook: Annotated[int, Field(ge=2, le=65536, description="vq: codes per group")] = 512
    groups: Annotated[int, Field(ge=1, le=64, description="vq: codes per slot; each covers a share of D")] = 1


class LossTerm(Strict):
    """One objective: its weight, from when it counts, over how many steps that rises, and when it is back at 0."""

    weight: NonNegative = 1.0
    start: Annotated[Share, Field(description="share of all steps before which it does not count")] = 0.0
    warmup: Annotated[int, Field(ge=0, description="steps over which its weight then rises")] = 0
    fade: Annotated[
        Share | None, Field(description="share of all steps over which the weight falls to 0; not set, it stays")
    ] = None

    def weight_at(self, step: int, steps: int) -> float:
        """The weight at a step, counted from 0, of so many."""
        since = step - math.ceil(self.start * steps)
        if since < 0:
            return 0.0
        rise = min(1.0, (since + 1) / self.warmup) if self.warmup else 1.0
        return self.weight * rise * (1.0 if self.fade is None else max(0.0, 1 - step / max(1, self.fade * steps)))


class MarginTerm(LossTerm):
    """A hinge: nothing to gain beyond the margin (nats per answer token)."""

    margin: NonNegative = 1.0


class CrossEntropyTerm(LossTerm):
    """Cross-entropy of the answer; its values weigh `value_weight`, its other tokens 1."""

    value_weight: Positive = 10.0


class NegativesTerm(LossTerm):
    """Contrast with several other messages of the batch."""

    negatives: Count = 4
    temperature: Positive = 1.0


class Losses(Strict):
    """The objectives in use; `m2ray.losses` defines each."""

    ce: CrossEntropyTerm | None = None
    kl: LossTerm | None = None
    states: LossTerm | None = None
    slots: LossTerm | None = None
    help: MarginTerm | None = None
    contrast: MarginTerm | None = None
    infonce: NegativesTerm | None = None
    reconstruction: LossTerm | None = None
    reconstruction_tokens: LossTerm | None = None
    info_preserve: LossTerm | None = None
    commitment: LossTerm | None = None
    code_information: LossTerm | None = None
    latent_information: LossTerm | None = None
    diversity: LossTerm | None = None

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not any(term.weight > 0 for term in self.terms().values()):
            raise ValueError("no objective has a weight above 0; add one, such as ce")
        return self

    def terms(self) -> dict[str, LossTerm]:
        """The objectives that are set, by name."""
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}


class Anneal(Strict):
    """Slots step down one by one from `start` to the codec's k while training (encoder `segments`).

    A step is taken once the codec has recovered `bound` of what the text is worth to the receiver, and at the
    latest when a straight line from the start to `deadline` (share of all steps) asks for it.
    """

    start: Count = 20
    bound: Share = 0.8
    hold: Annotated[int, Field(ge=1, description="least steps at each k")] = 10
    deadline: Annotated[float, Field(gt=0, le=1)] = 0.6


class TrainingConfig(Strict):
    """The optimisation of one codec."""

    epochs: Count = 10
    epoch_samples: Annotated[int, Field(ge=1, description="samples drawn per epoch, in order, from train")] = 3072
    batch_size: Annotated[int, Field(ge=2, description="global batch, over all workers")] = 64
    lr: Positive = 1e-3
    schedule: Literal["cosine", "cosine_per_epoch", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 20
    weight_decay: NonNegative = 0.01
    grad_clip: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    anneal: Anneal | None = None
    restarts: Annotated[
        int,
        Field(
            ge=0,
            description="times that training starts afresh, from other weights and at half the learning rate, "
            "where half of it shows that the codec ignores its message",
        ),
    ] = 0
    log_every: Count = 20

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of an epoch; samples that do not fill a batch are left out."""
        return self.epoch_samples // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epoch_steps * self.epochs


class EvaluationConfig(Strict):
    """How conditions are decoded: the same for all, so that every comparison is paired."""

    temperature: NonNegative = 0.0
    max_new_tokens: Count = 128
    batch_size: Count = 250
    constant_samples: Annotated[
        int, Field(ge=64, description="episodes that train the condition constant's prefix")
    ] = 6400
    conditions: list[str] = [
        "normal",
        "null",
        "random",
        "shuffle",
        "P0",
        "P1",
        "identity",
        "constant",
        "mean",
        "matched",
    ]
    text_bytes: list[Count] = [16, 64]
    scale_gates: list[NonNegative] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]

    @field_validator("conditions", mode="before")
    @classmethod
    def _null_is_a_name(cls, names: Any) -> Any:
        # YAML reads an unquoted null as nothing; in a list of conditions it is the one of that name.
        return ["null" if name is None else name for name in names] if isinstance(names, list) else names

    @field_validator("conditions")
    @classmethod
    def _exist(cls, names: list[str]) -> list[str]:
        known = cls.model_fields["conditions"].default
        for name in names:
            if name not in known:
                raise ValueError(f"condition {name!r} does not exist; use some of {', '.join(known)}")
        return names

    @property
    def decoding(self) -> str:
        """How rows name it."""
        return f"t={self.temperature:g}" if self.temperature else "greedy"


class TrialConfig(Strict):
    """One configuration: everything `python -m m2ray.train` needs."""

    receiver: str = "mini"
    task: TaskConfig = TaskConfig()
    splits: Splits = Splits()
    codec: CodecConfig = CodecConfig()
    losses: Losses = Losses(ce=CrossEntropyTerm())
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: Annotated[int, Field(ge=1, description="DDP workers; 1 trains in process")] = 1
    trackers: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]],
        Field(description="where training curves go besides history.json; offline, see m2ray.trackers"),
    ] = []

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        losses, codec, training = self.losses, self.codec, self.training
        if codec.bottleneck == "vq" and losses.commitment is None:
            raise ValueError("codec.bottleneck: vq needs losses.commitment; add it, weight 0.25 say")
        if codec.bottleneck == "none":
            for name in ("commitment", "code_information"):
                if getattr(losses, name) is not None:
                    raise ValueError(f"losses.{name}: needs codec.bottleneck: vq; set that or remove the loss")
        if losses.slots and codec.encoder != "segments":
            raise ValueError("losses.slots: only slots of the encoder segments stand for words; remove it")
        if training.anneal and codec.encoder != "segments":
            raise ValueError("training.anneal: only the encoder segments serves any k; remove it")
        if training.anneal and training.anneal.start < codec.k:
            raise ValueError(f"training.anneal.start: below codec.k = {codec.k}; start at {codec.k} or above")
        if training.batch_size % self.workers:
            raise ValueError(f"training.batch_size: not a multiple of {self.workers} workers; change either")
        if training.epoch_samples < training.batch_size:
            raise ValueError("training.epoch_samples: smaller than a batch; raise it")
        return self
