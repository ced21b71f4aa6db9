"""Channels: what a codec's vectors are to the receiver, and where they enter it.

    embeddings  k input embeddings
    kv          k keys and values in each of some layers, before their position is encoded
    hidden      k hidden states after one layer

A slot is a position of B's prompt that holds a filler token. In the channels `kv` and `hidden` the receiver runs
it like any other token, and at some of its modules the output at the slots' positions is replaced: at `k_proj` and
`v_proj` of the channel's layers, or at the output of a layer. So vectors work in any place, behind a kept KV
cache, in padded batches and with drafts, and gradients flow to them. Keys are those that `k_proj` writes: the
receiver encodes their position itself, so that the same vectors can stand anywhere.

No other token attends to a slot where it would read the filler token: in layers for which a `kv` slot has no key
and value, and up to the layer whose output a `hidden` slot replaces. Keys and values of zeros count as none, so
that a `kv` slot of zeros holds no information at all.

Shapes: B rows, T new columns, K slots, C columns that are attended to, D width of the channel, F entries of a
part, L layers, N slots of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["embeddings", "kv", "hidden"]

KEY, VALUE = "k_proj", "v_proj"  # the modules that write a layer's keys and values


class Part(NamedTuple):
    """A run of entries of a slot's vector, and the module whose output it replaces.

    Attributes:
        module: The module.
        layer: Its layer.
        width: Entries.
        scale: What an entry is multiplied by. Keys and values of all layers then have entries of one size.
    """

    module: nn.Module
    layer: int
    width: int
    scale: float


@dataclass(frozen=True, eq=False)
class Channel:
    """A channel of one receiver.

    Attributes:
        kind: embeddings, kv or hidden.
        layers: The layers that it uses, counted from 0; none for embeddings.
        width: D, the entries of a slot's vector.
        unit: Mean norm of the receiver's own vectors in this channel: the unit of prefix norms.
        parts: How a vector is split; none for embeddings.
        every_layer: All layers of the receiver.
        over_text: The slots hold a text's tokens instead of fillers, which other tokens attend to in every layer.
    """

    kind: Kind
    layers: tuple[int, ...]
    width: int
    unit: float
    parts: tuple[Part, ...] = ()
    every_layer: tuple[nn.Module, ...] = ()
    over_text: bool = False

    @property
    def part_widths(self) -> list[int]:
        """Entries of each part of a vector, in order."""
        return [part.width for part in self.parts] or [self.width]

    def split(self, vectors_XD: Tensor) -> list[Tensor]:
        """Return the parts of vectors [..., D] as their modules write them."""
        each = torch.split(vectors_XD, self.part_widths, dim=-1)
        return [part_XF * part.scale for part, part_XF in zip(self.parts, each, strict=True)]

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return what the modules wrote as vectors [..., D]."""
        scaled = [output / part.scale for part, output in zip(self.parts, outputs, strict=True)]
        return torch.cat(scaled, dim=-1)


class Slots(NamedTuple):
    """Vectors for the slots of a batch."""

    channel: Channel
    columns_BK: Tensor  # the slots' columns; -1 pads rows with fewer slots
    vectors_BKD: Tensor

    def pick(self, rows: Sequence[int] | slice) -> Slots:
        """Return some rows."""
        picked = rows if isinstance(rows, slice) else list(rows)
        return Slots(self.channel, self.columns_BK[picked], self.vectors_BKD[picked])

    def shifted(self, by_B: Tensor) -> Slots:
        """Return the slots, each row moved by a number of columns."""
        moved_BK = torch.where(self.columns_BK < 0, -1, self.columns_BK + by_B[:, None])
        return self._replace(columns_BK=moved_BK)

    def blocked_columns(self, columns: int, before: int) -> Tensor | None:
        """Return in which layers no other token attends to a column, [B, L, C]; None if there are none.

        Args:
            columns: New columns, from the first of which the slots' are counted.
            before: Columns of the KV cache before them.
        """
        if self.channel.kind == "embeddings" or self.channel.over_text:
            return None
        blocked_BLK = ~self._readable() & (self.columns_BK >= 0)[:, None]
        if not bool(blocked_BLK.any()):
            return None
        places_BLK = self.columns_BK.clamp(min=0)[:, None].expand_as(blocked_BLK)
        counts_BLC = torch.zeros(*blocked_BLK.shape[:2], columns, device=blocked_BLK.device)
        return F.pad(counts_BLC.scatter_add(2, places_BLK, blocked_BLK.float()) > 0, (before, 0))

    def _readable(self) -> Tensor:
        """Return the layers in which attention to a slot reads its vector, [B, L, K]."""
        channel, layers = self.channel, len(self.channel.every_layer)
        readable_BLK = self.columns_BK.new_zeros(len(self.columns_BK), layers, self.columns_BK.shape[1]).bool()
        if channel.kind == "hidden":
            readable_BLK[:, channel.layers[0] + 1 :] = True
            return readable_BLK
        each = torch.split(self.vectors_BKD.detach(), channel.part_widths, dim=-1)
        for part, part_BKF in zip(channel.parts, each, strict=True):
            readable_BLK[:, part.layer] |= (part_BKF != 0).any(-1)
        return readable_BLK


def join_slots(each: Sequence[tuple[int, Slots | None]]) -> Slots | None:
    """Return the slots of several batches as those of one; None if there are none.

    Args:
        each: Number of rows and slots of each batch. All slots are of one channel.
    """
    given = [slots for _, slots in each if slots is not None]
    if not given:
        return None
    assert len({slots.channel for slots in given}) == 1, "slots of several channels in one batch"
    most = max(slots.columns_BK.shape[1] for slots in given)
    columns, vectors = [], []
    for rows, slots in each:
        if slots is None:
            columns.append(given[0].columns_BK.new_full((rows, most), -1))
            vectors.append(given[0].vectors_BKD.new_zeros(rows, most, given[0].channel.width))
        else:
            missing = most - slots.columns_BK.shape[1]
            columns.append(F.pad(slots.columns_BK, (0, missing), value=-1))
            vectors.append(F.pad(slots.vectors_BKD, (0, 0, 0, missing)))
    return Slots(given[0].channel, torch.cat(columns), torch.cat(vectors))


@contextmanager
def entering(slots: Slots | None, blocked_BLC: Tensor | None, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let vectors enter a model at the slots of the rows that it is run on.

    Args:
        slots: The vectors; their columns are counted from the first new one.
        blocked_BLC: `Slots.blocked_columns` of all columns so far.
        layers: All layers of the model.
    """
    with ExitStack() as hooks:
        if slots is not None:
            rows_N, slots_N = (slots.columns_BK >= 0).nonzero(as_tuple=True)
            columns_N = slots.columns_BK[rows_N, slots_N]
            each = slots.channel.split(slots.vectors_BKD[rows_N, slots_N])
            for part, part_NF in zip(slots.channel.parts, each, strict=True):
                hook = part.module.register_forward_hook(_replace_at(rows_N, columns_N, part_NF), prepend=True)
                hooks.callback(hook.remove)
        if blocked_BLC is not None:
            for layer, blocked_BC in zip(layers, blocked_BLC.unbind(1), strict=True):
                hook = layer.register_forward_pre_hook(_hide(blocked_BC), with_kwargs=True)
                hooks.callback(hook.remove)
        yield


@contextmanager
def recording(channel: Channel | None) -> Iterator[list[Tensor]]:
    """Record what a channel's modules write, [B, T, F] each, in the order of its parts."""
    outputs: dict[int, Tensor] = {}
    recorded: list[Tensor] = []
    with ExitStack() as hooks:
        for i, part in enumerate(channel.parts if channel else ()):
            hooks.callback(part.module.register_forward_hook(_keep(outputs, i)).remove)
        yield recorded
    recorded += [outputs[i] for i in sorted(outputs)]


def _main(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def _replace_at(rows_N: Tensor, columns_N: Tensor, part_NF: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a hook that replaces a module's output at some positions."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        main_BTF = _main(output)
        main_BTF = main_BTF.index_put((rows_N, columns_N), part_NF.to(main_BTF.dtype))
        return (main_BTF, *output[1:]) if isinstance(output, tuple) else main_BTF

    return replace


def _keep(outputs: dict[int, Tensor], i: int) -> Callable[[nn.Module, Any, Any], None]:
    """Return a hook that keeps a module's output."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs[i] = _main(output)

    return keep


def _hide(blocked_BC: Tensor) -> Callable[[nn.Module, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """Return a hook that adds columns to a layer's attention mask that no other column attends to.

    A slot still attends to itself: a row that attends to nothing is not a number.
    """

    def hide(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states_BTD = arguments[0] if arguments else named["hidden_states"]
        mask = named.get("attention_mask", blocked_BC)
        if states_BTD.ndim != 3 or (mask is not None and mask.ndim != 4):
            raise ValueError("its layers take no attention mask of queries and columns by name")
        new, columns = states_BTD.shape[1], blocked_BC.shape[1]
        columns_C = torch.arange(columns, device=blocked_BC.device)
        queries_T1 = columns_C[columns - new :, None]
        blocked_B1TC = (blocked_BC[:, None] & (queries_T1 != columns_C))[:, None]
        if mask is None:
            mask = ~blocked_B1TC & (columns_C <= queries_T1)
        elif mask.dtype == torch.bool:
            mask = mask & ~blocked_B1TC
        else:
            mask = torch.where(blocked_B1TC, torch.finfo(mask.dtype).min, mask)
        return arguments, {**named, "attention_mask": mask}

    return hide
