"""Conditions of text: no message, all of it, parts of it, and its token embeddings in slots."""

from __future__ import annotations

import re

from torch import Tensor

from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.receiver.conformance.opening import open_channel, over_text
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import AnyEpisode, write_facts
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def p0(inputs: ConditionInputs) -> Injection:
    """Inject nothing: no slots, no message."""
    return Injection([""] * len(inputs.episodes), None, "message")


def p1(inputs: ConditionInputs) -> Injection:
    """Inject the full message as text."""
    return Injection([episode.message for episode in inputs.episodes], None, "message")


def identity(inputs: ConditionInputs) -> Injection:
    """Inject the message's own vectors through the codec's channel, as many as it has tokens: must equal P1.

    They stand in the message's place, where P1 has its text, also for a codec with its slots before or after the
    prompt: in another place text itself gives other answers. Keys and values are sent in all layers, behind filler
    tokens. A hidden state enters after its layer only, so there the slots hold the message's tokens.
    """
    receiver = inputs.receiver
    if inputs.codec is not None and inputs.codec.config.channel != "embeddings":
        receiver = inputs.view
    if receiver.channel.kind == "kv":
        receiver = open_channel(inputs.receiver, "kv")
        return Injection(None, _own_vectors(receiver, inputs), "message", channel=receiver.channel)
    texts = [episode.message for episode in inputs.episodes]
    return Injection(texts, _own_vectors(receiver, inputs), "message", channel=over_text(receiver))


def tokens(inputs: ConditionInputs, count: int) -> Injection:
    """Inject the receiver's own vectors at the message's first `count` tokens, or at all, in the codec's place."""
    return inputs.inject([vectors_TD[:count] for vectors_TD in _own_vectors(inputs.view, inputs)])


def _own_vectors(receiver: Receiver, inputs: ConditionInputs) -> list[Tensor]:
    vectors: list[Tensor] = []
    for start in range(0, len(inputs.episodes), inputs.batch_size):
        vectors += receiver.message_vectors(inputs.episodes[start : start + inputs.batch_size])
    return vectors


def facts(inputs: ConditionInputs, count: int) -> Injection:
    """Inject the text of the message's first `count` facts, or sentences where it is in free words.

    Raises:
        UserError: a message has no more than these: it would be P1.
    """
    return Injection([first_facts(episode, count) for episode in inputs.episodes], None, "message")


def first_facts(episode: AnyEpisode, count: int) -> str:
    """Return the text of a message's first `count` facts, or sentences where it is in free words.

    Raises:
        UserError: the message has no more than these.
    """
    if isinstance(episode, TextEpisode) and episode.units:
        unit, total, text = "fact", len(episode.units), " ".join(episode.units[:count])
    elif not isinstance(episode, TextEpisode) and episode.message == write_facts(episode.sender):
        unit, total, text = "fact", len(episode.sender), write_facts(episode.sender[:count])
    else:
        message = episode.message.strip()
        ends = [match.start() for match in _SENTENCE_END.finditer(message)] + [len(message)]
        unit, total, text = "sentence", len(ends), message[: ends[min(count, len(ends)) - 1]]
    if count >= total:
        raise UserError(
            f"condition facts-{count}: the message of episode {episode.seed} has {pluralize(total, unit)}, so it "
            "would be P1; use a smaller number, or leave it out"
        )
    return text


def text_bytes(inputs: ConditionInputs, limit: int) -> Injection:
    """Inject the message as text, cut to its first `limit` bytes: a rival of the same size."""
    cut = [episode.message.encode()[:limit].decode(errors="ignore") for episode in inputs.episodes]
    return Injection(cut, None, "message")
