"""Open a channel of a receiver: find the modules that its vectors enter, measure their size, and test the path.

Shapes: T positions, D width of the channel, F entries of a part.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from m2ray.receiver.channel import KEY, VALUE, Channel, Kind, Part, recording
from m2ray.receiver.conformance.channel_paths import ChannelMeasurer
from m2ray.receiver.conformance.kept import kept_file
from m2ray.receiver.conformance.own_path import FAILURES, RandomRows
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import keep_json

MEASURED_TOKENS = 64  # of each random row
FIRST_TOKENS = 4  # of a row, whose states may be far larger than all others


def open_channel(receiver: Receiver, kind: Kind, layers: Sequence[int] | None = None) -> Receiver:
    """Return a receiver whose slots are filled through a channel.

    Its path is tested once; the result is kept in the user's cache, as that of the receiver's own check is.

    Args:
        receiver: The receiver.
        kind: embeddings, kv or hidden.
        layers: Layers of the channel, counted from 0. None is all for kv, and is not allowed for hidden.

    Raises:
        UserError: the receiver has no such layers, or does not read the channel exactly.
    """
    if kind == "embeddings":
        return receiver
    key = (kind, None if layers is None else tuple(layers))
    if key not in receiver.opened:
        receiver.opened[key] = _open(receiver, kind, layers)
    return receiver.through(receiver.opened[key])


def over_text(receiver: Receiver) -> Channel:
    """Return a receiver's channel for slots that hold a text's tokens instead of fillers."""
    channel = receiver.channel
    if channel.kind == "embeddings":
        return channel
    return receiver.opened.setdefault((channel, "over text"), replace(channel, over_text=True))


def _open(receiver: Receiver, kind: Kind, layers: Sequence[int] | None) -> Channel:
    every = receiver.causal.layers
    chosen = tuple(range(len(every)) if layers is None else layers)
    if not every:
        raise _refusal(receiver, kind, "its layers are not found")
    last = len(every) - (1 if kind == "kv" else 2)
    if wrong := [layer for layer in chosen if layer > last]:
        why = "" if kind == "kv" else "; no layer reads the output of the last"
        raise UserError(
            f"codec.channel_layers: {wrong[0]}: receiver {receiver.name} has layers 0 to {len(every) - 1}{why}; "
            f"use 0 to {last}"
        )
    try:
        modules = [pair for layer in chosen for pair in _modules(every[layer], kind, layer)]
        channel = _measure(receiver, kind, chosen, modules)
        problem = _kept_problem(receiver.through(channel))
    except FAILURES as error:
        problem = describe_error(error)
    if problem:
        raise _refusal(receiver, kind, problem)
    return channel


def _kept_problem(receiver: Receiver) -> str:
    """Return what a receiver does not read exactly in its channel, from the cache or measured now."""
    file = kept_file(receiver, [receiver.channel.kind, *receiver.channel.layers])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(file.read_bytes())["problem"])
    problem = ChannelMeasurer(receiver).problem()
    keep_json(file, {"problem": problem})
    return problem


def _refusal(receiver: Receiver, kind: Kind, why: str) -> UserError:
    name = type(receiver.causal.own).__name__
    return UserError(
        f"codec.channel: {kind}: receiver {receiver.name} ({name}) does not read it exactly: {why}; use the "
        "channel embeddings, or another receiver"
    )


def _modules(layer: nn.Module, kind: Kind, number: int) -> list[tuple[nn.Module, int]]:
    """Return the modules of a layer that a channel's vectors enter, each with the layer's number.

    Raises:
        ValueError: keys and values are not written by one module each.
    """
    if kind == "hidden":
        return [(layer, number)]
    found = []
    for name in (KEY, VALUE):
        named = [module for path, module in layer.named_modules() if path.rpartition(".")[2] == name]
        if len(named) != 1:
            raise ValueError(f"layer {number} has {len(named)} modules {name}, not one")
        found.append((named[0], number))
    return found


@torch.no_grad()
def _measure(
    receiver: Receiver, kind: Kind, layers: tuple[int, ...], modules: Sequence[tuple[nn.Module, int]]
) -> Channel:
    """Return a channel whose parts have entries of one size, measured on random rows."""
    parts = tuple(Part(module, layer, 0, 1.0) for module, layer in modules)
    raw = Channel(kind, layers, 0, 1.0, parts, receiver.causal.layers)
    outputs = _own_outputs(receiver, raw)
    # Keys may be a hundred times as large as values: one norm over both would be that of the keys.
    sizes = [float(output_TF.square().mean().sqrt()) if kind == "kv" else 1.0 for output_TF in outputs]
    parts = tuple(
        part._replace(width=output_TF.shape[1], scale=size)
        for part, output_TF, size in zip(parts, outputs, sizes, strict=True)
    )
    width = sum(part.width for part in parts)
    channel = Channel(kind, layers, width, 1.0, parts, receiver.causal.layers)
    unit = float(channel.join(outputs).norm(dim=1).mean())
    return Channel(kind, layers, width, unit, parts, receiver.causal.layers)


def _own_outputs(receiver: Receiver, channel: Channel) -> list[Tensor]:
    """Return what the channel's modules write at random tokens, [T, F] each, float32."""
    outputs: list[list[Tensor]] = []
    for row in RandomRows(receiver).draw(min(MEASURED_TOKENS, receiver.max_positions)):
        ids_1T = torch.tensor([row], device=receiver.device)
        with recording(channel) as recorded:
            receiver.causal.own(input_ids=ids_1T, use_cache=False)
        outputs.append([output_1TF[0, FIRST_TOKENS:].float() for output_1TF in recorded])
    return [torch.cat(each) for each in zip(*outputs, strict=True)]
