"""What goes into a forward pass of the receiver, and what comes out of it.

Shapes: B rows, T positions, A answer tokens, D width, L layers, S tokens behind the slots, W words of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor


class ForwardRequest(NamedTuple):
    """A forward pass to be made: rows of embeddings behind beginnings that are known."""

    embeds_BTD: Tensor
    starts: list[list[int]]
    states: bool  # whether hidden states are asked for
    grad: bool  # whether gradients flow back to the embeddings
    key: Hashable = None  # passes without gradients of equal key give the same


class ForwardOutput(NamedTuple):
    """A forward pass that was made."""

    last_BTD: Tensor
    hidden: tuple[Tensor, ...]  # [B, T, D] behind each layer; empty where none were asked for


class AnswerOutput(NamedTuple):
    """What the receiver makes of its prompt, teacher-forced on the reference answer."""

    logits_BAW: Tensor  # that predict the answer tokens
    states_BLSD: Tensor | None  # behind each of L layers, at the last S tokens of prompt and answer
    mask_BS: Tensor | None  # which of those lie behind the message's place

    def first(self, rows: int) -> AnswerOutput:
        """The first rows of a batch."""
        states_BLSD, mask_BS = (None if field is None else field[:rows] for field in self[1:])
        return AnswerOutput(self.logits_BAW[:rows], states_BLSD, mask_BS)


class EncodedMessage(NamedTuple):
    """What the receiver makes of messages on their own: the codec's input."""

    ids_BT: Tensor
    mask_BT: Tensor
    embeds_BTD: Tensor
    first_BTD: Tensor  # behind the first layer
    states_BTD: Tensor  # behind the last layer
