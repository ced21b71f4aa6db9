"""Input and output of the receiver's forward passes.

Shapes: B rows, T positions, A answer tokens, V values of an answer, D width, L layers, S tokens after the slots,
W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from m2ray.receiver.channel import Channel, Slots

States = bool | Channel  # hidden states after every layer, none, or what a channel's modules write


class ForwardRequest(NamedTuple):
    """A forward pass to be run: rows of embeddings that follow tokens whose KV cache is kept."""

    embeds_BTD: Tensor
    ids_BT: Tensor  # the token ids at the same positions; a filler token at slots
    lengths: list[int]  # per row, the embeddings that count; what follows is padding
    cached_tokens: list[list[int]]  # per row, the tokens before the embeddings
    states: States  # the states to return
    grad: bool  # let gradients flow back to the embeddings and slots
    key: Hashable = None  # requests without gradients and with equal keys have equal outputs
    slots: Slots | None = None  # vectors that enter elsewhere than in the embeddings


class ForwardOutput(NamedTuple):
    """The output of a forward pass."""

    last_BTD: Tensor
    hidden: tuple[Tensor, ...]  # the states requested: [B, T, D] after each layer, or one tensor of a channel


class AnswerOutput(NamedTuple):
    """The receiver's teacher-forced output on the reference answer."""

    logits_BAW: Tensor  # predict the answer tokens
    states_BLSD: Tensor | None  # after each of L layers, at the last S tokens of prompt and answer
    mask_BS: Tensor | None  # True at tokens after the message's place

    def first(self, rows: int) -> AnswerOutput:
        """Return the first rows of the batch."""
        states_BLSD, mask_BS = (None if field is None else field[:rows] for field in self[1:])
        return AnswerOutput(self.logits_BAW[:rows], states_BLSD, mask_BS)


class Prompts(NamedTuple):
    """Prompts to be continued, each followed by the draft of its answer, padded on the right."""

    embeds_BTD: Tensor
    ids_BT: Tensor  # the token ids at the same positions; a filler token at slots
    lengths: list[int]  # without the drafts
    cached: list[list[int]]  # per row, its leading tokens whose KV cache is kept
    slots: Slots | None = None  # vectors that enter elsewhere than in the embeddings


class DecodedAnswers(NamedTuple):
    """Answers that the receiver decoded, and how well it predicted the reference answers."""

    texts: list[str]
    nll_B: Tensor  # nats per token that carries the reference answer
    truncated: list[bool]  # the answer reached its limit of new tokens without its end


class EncodedMessage(NamedTuple):
    """A batch of messages as the receiver reads them on their own: the codec's input. Padded on the right."""

    ids_BT: Tensor
    mask_BT: Tensor  # True at tokens of the message
    embeds_BTD: Tensor
    first_BTD: Tensor  # hidden states after the first layer
    states_BTD: Tensor  # hidden states after the last layer
    own_BTD: Tensor  # the receiver's own vectors in the codec's channel; in `embeddings`, embeds_BTD
