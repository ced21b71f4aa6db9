"""The numeric type in which a CPU runs a receiver fastest: measured on first use, kept in the user's cache.

Which type is faster depends on the processor's instructions and on the sizes of the matrices: on a CPU without
AVX-512 or AMX, bfloat16 takes several times as long as float32. So one layer of the receiver is timed in both,
forward and backward, for about a second. The result is kept by the receiver's configuration, the processor and the
versions of torch and transformers; receivers that differ in their weights only share it.

The type of the receiver's file is kept unless the other is faster by a fifth, since a type changes numbers in
their last digits. It is kept, unmeasured, for small receivers, whose time is not in matrix products, and for
models whose layers are not found.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from m2ray.receiver.digest import NOT_IN_NUMBERS
from m2ray.receiver.model.causal_model import PLAIN, CausalModel
from m2ray.util.files import cache_root, keep_json

TYPES = (torch.float32, torch.bfloat16)
SMALL = 20_000_000  # parameters of a receiver that is not measured
GAIN = 1.2  # a type other than the file's must be this many times as fast
SECONDS, LEAST_TURNS = 1.0, 3
ROWS, TOKENS = 8, 32  # of the pass that is timed
MEMORY_SHARE = 1 / 3  # of the machine's memory, that weights converted to float32 may take


class _Entered(Exception):
    """Ends a forward pass at the layer whose inputs are wanted."""


def type_name(dtype: torch.dtype) -> str:
    """Return a type's name as configurations have it, such as float32."""
    return str(dtype).removeprefix("torch.")


def kept_type(config: Mapping[str, Any]) -> str | None:
    """Return the type that was found for receivers with this config.json on this machine; None if none was."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = json.loads(_kept_file(config).read_bytes())["type"]
        return name if name in map(type_name, TYPES) else None
    return None


def keeps_its_type(model: Any) -> bool:
    """Return whether a model is so small that it runs in its file's type, unmeasured."""
    return _parameters(model) < SMALL


def _parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def fastest_type(config: Mapping[str, Any], model: Any) -> str:
    """Return the type in which to run a model on this CPU, kept or measured now.

    Args:
        config: Its config.json.
        model: The causal LM, in the type of its file.
    """
    own = next(model.parameters()).dtype
    layers = CausalModel(model, PLAIN).layers
    if keeps_its_type(model) or not layers:
        return type_name(own)
    if known := kept_type(config):
        return known
    seconds = layer_seconds(model, layers[0])
    fits = 4 * _parameters(model) <= MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chosen = type_name(faster(seconds, own, fits))
    result = {"type": chosen, "seconds": {type_name(dtype): each for dtype, each in seconds.items()}}
    keep_json(_kept_file(config), result)
    return chosen


def faster(seconds: Mapping[torch.dtype, float], own: torch.dtype, fits: bool = True) -> torch.dtype:
    """Return the type to take, from the seconds that a pass takes in each.

    Args:
        seconds: By type; infinite for one that the model does not run in.
        own: The type of the file. Of other types than those measured, such as float16, float32 comes closest.
        fits: Whether the weights in float32 fit into memory.
    """
    first = own if own in seconds else torch.float32
    (other,) = set(seconds) - {first}
    if other == torch.float32 and not fits:
        return first
    return other if seconds[first] > GAIN * seconds[other] else first


def layer_seconds(model: Any, layer: nn.Module) -> dict[torch.dtype, float]:
    """Return the seconds of a layer's forward and backward pass in each type, the shortest of several turns."""
    args, kwargs = _inputs_of(model, layer)
    passes = {dtype: (copy.deepcopy(layer).to(dtype), _cast(args, dtype), _cast(kwargs, dtype)) for dtype in TYPES}
    seconds = dict.fromkeys(TYPES, math.inf)
    start = time.perf_counter()
    turns = 0
    while turns < LEAST_TURNS or time.perf_counter() - start < SECONDS:
        for dtype, (copied, own_args, own_kwargs) in passes.items():
            with contextlib.suppress(RuntimeError):  # a layer that fixes another type does not run in this one
                seconds[dtype] = min(seconds[dtype], _pass_seconds(copied, own_args, own_kwargs))
        turns += 1
    return seconds


def _pass_seconds(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    entering_BTD = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
    others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    with torch.enable_grad():
        start = time.perf_counter()
        output = layer(entering_BTD, *args[1:], **others)
        main_BTD = output[0] if isinstance(output, tuple) else output
        main_BTD.sum().backward()
        return time.perf_counter() - start


@torch.no_grad()
def _inputs_of(model: Any, layer: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what the model passes to a layer for some tokens."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Entered

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with contextlib.suppress(_Entered):
            words = len(model.get_input_embeddings().weight)
            model(input_ids=torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % words, use_cache=False)
    finally:
        handle.remove()
    return found[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return arguments with their floating-point tensors in a type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    return tuple(_cast(each, dtype) for each in value) if isinstance(value, tuple) else value


def _kept_file(config: Mapping[str, Any]) -> Path:
    shape = {key: value for key, value in config.items() if key not in NOT_IN_NUMBERS - {"dtype", "torch_dtype"}}
    about = [shape, processor_name(), torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache_root() / "numeric-types" / f"{digest}.json"


def processor_name() -> str:
    """Return the processor's model name, or its architecture where the kernel gives none."""
    with contextlib.suppress(OSError):
        if model := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1]
    return platform.processor() or platform.machine()
