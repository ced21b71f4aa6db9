"""A causal LM, entered before its first layer and left behind its last as its own forward pass does.

The layers run at all positions, the head only at those whose logits are needed. What a model does beside its
embedding matrix, its layers and its output matrix (scaled embeddings, per-layer embeddings of token ids, scaled or
capped logits, a transform before the output matrix) is done by its own code here too: that code runs with a part
of the model replaced by the part's output.

Shapes: B rows, T positions, D width, W words of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m2ray.receiver.channel import Slots, entering, recording
from m2ray.receiver.layout import UNLIMITED
from m2ray.receiver.model.requests import States


class Ways(NamedTuple):
    """The ways of running a model that give its own numbers; `m2ray.receiver.conformance` finds them.

    The default is exact for every model: rows of one length run together, from their first token to their last,
    through the whole model. A limit is the most columns of a batch, padding included; 0 is never.

    Attributes:
        trunk: Name of the submodule with all layers, to whose output the rest of the model is applied position by
            position. None runs the whole model, which computes the logits of every position.
        ids: Give the model token ids and replace the output of its embedding layer. Without, it gets embeddings.
        padded: Limit of batches of rows of different lengths, padded on the right.
        kept: Limit of rows that continue a kept KV cache (`m2ray.receiver.model.kv_cache`).
        drafted: Limit of decoding with a KV cache and rejected drafts (`m2ray.receiver.model.decoding`).
        reread: Limit of decoding from the first token each time, with drafts. Rotary factors that change with the
            length make what a model predicts at a token depend on how many tokens follow.
        tested: Up to how many columns the limits were tested.
    """

    trunk: str | None = None
    ids: bool = True
    padded: int = 0
    kept: int = 0
    drafted: int = 0
    reread: int = 0
    tested: int = UNLIMITED


PLAIN = Ways()
# Known to be exact for models whose every layer attends to all positions, such as those of `m2ray.train_receiver`.
FULL_ATTENTION = Ways("model", False, UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED)


class ModelOutput(NamedTuple):
    """The output of a model's layers."""

    last_BTD: Tensor  # what `CausalModel.head` turns into logits
    hidden: tuple[Tensor, ...]  # the states requested: [B, T, D] after each layer, or one tensor of a channel
    cache: Any


class CausalModel:
    """A Hugging Face causal LM, run in some of the ways that give its own numbers."""

    def __init__(self, model: Any, ways: Ways) -> None:
        # PEFT wraps a model and changes its layers in place: the model itself is what runs.
        self.own = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.ways = ways
        # Returns the ways tested for longer rows than before.
        self.test_ways: Callable[[int], Ways] | None = None
        self._output_type: Any = None

    def ways_for(self, columns: int) -> Ways:
        """Return the ways of running rows, tested up to `columns`."""
        if columns > self.ways.tested and self.test_ways is not None:
            self.ways = self.test_ways(columns)
        return self.ways

    @cached_property
    def cache_argument(self) -> str:
        """Name of the model's cache argument and output, which changes between versions of transformers 5."""
        return "cache" if "cache" in inspect.signature(self.own.forward).parameters else "past_key_values"

    @property
    def trunk(self) -> Any:
        """The module with all layers; the whole model where its layers cannot be run alone."""
        return self.own if self.ways.trunk is None else self.own.get_submodule(self.ways.trunk)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return what enters the model for token ids, [B, T, D]: the output of its embedding layer."""
        embeds_BTD: Tensor = self.own.get_input_embeddings()(ids_BT)
        return embeds_BTD

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The model's layers, in order; empty where they are not the modules of one list."""
        count = getattr(self.own.config.get_text_config(), "num_hidden_layers", 0)
        lists = (module for module in self.trunk.modules() if isinstance(module, nn.ModuleList))
        return next((tuple(each) for each in lists if len(each) == count), ())

    def run(
        self,
        embeds_BTD: Tensor,
        ids_BT: Tensor,
        states: States = False,
        slots: Slots | None = None,
        blocked_BLC: Tensor | None = None,
        **arguments: Any,
    ) -> ModelOutput:
        """Run the layers.

        Args:
            embeds_BTD: The input embeddings.
            ids_BT: The token ids at the same positions, for models that read more from them than embeddings; a
                filler token at slots.
            states: The states to return.
            slots: Vectors that enter at other modules than the embeddings.
            blocked_BLC: Columns that other tokens do not attend to; see `Slots.blocked_columns`.
            arguments: Of the model: cache, mask and positions.
        """
        channel = None if isinstance(states, bool) else states
        arguments = {"use_cache": False, "output_hidden_states": states is True, **arguments}
        entered = self._entered if self.ways.ids else None  # made by a pass of its own, which no vectors enter
        with entering(slots, blocked_BLC, self.layers), recording(channel) as recorded:
            if entered is not None:
                output = entered(embeds_BTD, input_ids=ids_BT, **arguments)
            else:
                output = self.trunk(inputs_embeds=embeds_BTD, **arguments)
        self._output_type = type(output)
        last_BTD = output.logits if self.ways.trunk is None else output[0]
        hidden: tuple[Tensor, ...] = ()
        if channel is not None:
            hidden = (channel.join(recorded),)
        elif states:
            hidden = tuple(_main_stream(layer, embeds_BTD) for layer in output.hidden_states[1:])
        return ModelOutput(last_BTD, hidden, output.get(self.cache_argument))

    def head(self, states_XD: Tensor) -> Tensor:
        """Return the logits [X, W] of the last layer's output [X, D]; X is any number of dimensions."""
        if self.ways.trunk is None:
            return states_XD
        # On CPUs a product with bfloat16 rows that lie far apart in memory, such as one position of a batch, is
        # over 100 times slower than one with rows side by side.
        states_X1D = states_XD.reshape(-1, 1, states_XD.shape[-1]).contiguous()
        ids_X1 = torch.zeros(len(states_X1D), 1, dtype=torch.long, device=states_XD.device)
        given = self._output_type(last_hidden_state=states_X1D)
        logits_X1W = self._left(given, input_ids=ids_X1, use_cache=False).logits
        logits_XW: Tensor = logits_X1W.reshape(*states_XD.shape[:-1], -1)
        return logits_XW

    @cached_property
    def _entered(self) -> _WithGivenPart:
        """The trunk with a given output of its embedding layer."""
        # Transformers adds hooks to the layers when hidden states are first requested. A copy that did it again
        # would get every state twice.
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.trunk(input_ids=ids_11, use_cache=False, output_hidden_states=True)
        return _WithGivenPart(self.trunk, _path_of(self.trunk, self.own.get_input_embeddings()))

    @cached_property
    def _left(self) -> _WithGivenPart:
        """The model with a given output of the trunk."""
        assert self.ways.trunk is not None
        return _WithGivenPart(self.own, self.ways.trunk)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.own.parameters()).device


class _WithGivenPart:
    """A copy of a module, run with a given output of one of its parts; it shares all weights with the original."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self._given = _Given(module.get_submodule(path))
        self._module = _with_replaced(module, path, self._given)

    def __call__(self, output: Any, **arguments: Any) -> Any:
        self._given.value = output
        try:
            return self._module(**arguments)
        finally:
            self._given.value = None  # it may hold a graph of gradients


class _Given(nn.Module):
    """Stands for a module whose output is known; its other attributes are the module's."""

    value: Any = None

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._replaced = (replaced,)  # in a tuple, so that its weights are not part of this module

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced[0], name)


def _with_replaced(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """Return a copy of a module with one submodule replaced; it shares all weights with the original."""
    copied = copy.copy(module)
    name, _, rest = path.partition(".")
    child = module._modules[name]
    assert child is not None
    copied._modules = {**module._modules, name: _with_replaced(child, rest, part) if rest else part}
    return copied


def _path_of(module: nn.Module, part: nn.Module) -> str:
    return next(name for name, each in module.named_modules() if each is part)


def _main_stream(layer: Tensor, embeds_BTD: Tensor) -> Tensor:
    """Return hidden states [B, T, D]; of several streams, the first.

    AltUp (Baykal et al. 2023) has them as [S, B, T, D], hyper-connections (Zhu et al. 2024) as [B, T, S, D].
    """
    if layer.ndim == 3:
        return layer
    return layer[:, :, 0] if layer.shape[:2] == embeds_BTD.shape[:2] else layer[0]
