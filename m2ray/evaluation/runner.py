"""Run one checkpoint under conditions on episodes, and return rows.

Shapes: E episodes, B a batch of them, K slots, D width, V values of an answer, W words of the vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import build_injection, get_condition
from m2ray.evaluation.confirm_ledger import cluster_digest
from m2ray.evaluation.facts_read import FactReader
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.evaluation.row_scope import row_scope, scope_kind
from m2ray.evaluation.rows import SCHEMA
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import choose_answers
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError
from m2ray.util.memory import halve_on_oom


def evaluate(
    receiver: Receiver,
    episodes: Sequence[AnyEpisode],
    split: str,
    names: Sequence[str],
    config: EvaluationConfig,
    checkpoint: CheckpointId | None = None,
    codec: Codec | None = None,
    constant: Codec | None = None,
    on_done: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run every episode under every named condition.

    Args:
        receiver: Agent B.
        episodes: Episodes of one task, the same for all conditions.
        split: The name of their split, for the rows.
        names: Names of conditions.
        config: Decoding settings.
        checkpoint: The checkpoint's identity; None where no condition depends on one.
        codec: The checkpoint's codec.
        constant: A trained content-free codec of the same k and place, for the condition `constant`.
        on_done: Called with a condition's name when all episodes have run under it.

    Returns:
        Rows with the columns of `m2ray.evaluation.rows`. Rows that do not depend on the checkpoint do not name it,
        so that other checkpoints share them (`m2ray.evaluation.row_scope`).

    Raises:
        UserError: no conditions are named, or one needs what these episodes or this receiver do not have.
    """
    if not names:
        raise UserError("evaluation.conditions: empty; name at least one condition")
    check_no_leak(receiver, episodes)
    for episode in episodes:
        receiver.tokens(episode.message)  # refuses a message that the tokenizer cannot represent
    inputs = ConditionInputs(receiver, episodes, codec, constant, config.batch_size)
    k, place = (codec.config.k, codec.config.slots_at) if codec is not None else (0, "")
    facts = FactReader(episodes, receiver.style.answer)
    clusters = [cluster_digest(episode) for episode in episodes]
    frames = []
    for name in names:
        injection = build_injection(name, inputs)
        if name == "null":
            check_null(injection)
        answers = answer_episodes(receiver, episodes, injection, config)
        outcomes = [
            verify(e, text, receiver.style.answer) for e, text in zip(episodes, answers.texts, strict=True)
        ]
        scope = row_scope(scope_kind(name, get_condition(name).depends_on, place), checkpoint, k, place)
        columns: dict[str, Any] = {
            **scope._asdict(),
            "receiver": receiver.digest,
            "task": episodes[0].task,
            "split": split,
            "decoding": config.decoding,
            "condition": name,
            "episode": [e.seed for e in episodes],
            "partner": [episodes[i].seed for i in injection.partners] if injection.partners else -1,
            "success": [o.success for o in outcomes],
            "parsed": [o.parsed for o in outcomes],
            "partial": [o.partial for o in outcomes],
            "nll": answers.nll_E.tolist(),
            "answer": answers.texts,
            "truncated": pd.array(answers.truncated, dtype="boolean"),
            "facts": facts.column(answers.texts, injection.partners, injection.facts),
            "message": clusters,
            "params": checkpoint.params if checkpoint is not None and scope.config else "",
        }
        frames.append(pd.DataFrame(columns)[SCHEMA.names])
        if on_done is not None:
            on_done(name)
    rows: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return rows


class Answers(NamedTuple):
    """B's answers to episodes under one injection."""

    texts: list[str]
    nll_E: Tensor  # nats per value of a puzzle's possible answers, or per token of a text's first right one
    truncated: list[bool]  # the answer reached `max_new_tokens`, or the context's end, without its end token


def answer_episodes(
    receiver: Receiver, episodes: Sequence[AnyEpisode], injection: Injection, config: EvaluationConfig
) -> Answers:
    """Run episodes under an injection."""
    answers = Answers([""] * len(episodes), torch.zeros(len(episodes)), [False] * len(episodes))

    reader = injection.reader(receiver)

    def run_batch(slots: int, picked: Sequence[int]) -> None:
        batch = [episodes[i] for i in picked]
        texts: list[str] | int = slots
        prefix_BKD = None
        if injection.prefixes is not None:
            prefix_BKD = torch.stack([injection.prefixes[i] for i in picked])
        if injection.texts is not None:
            texts = [injection.texts[i] for i in picked]
        chooses = [e for e in batch if isinstance(e, TextEpisode) and e.rules.choose]
        if chooses:
            chosen = choose_answers(reader, chooses, texts, prefix_BKD, injection.place)
            for i, text in zip(picked, chosen.texts, strict=True):
                answers.texts[i] = text
            answers.nll_E[list(picked)] = chosen.nll_B
            return
        decoded = reader.generate_and_score(
            batch, texts, prefix_BKD, injection.place, config.temperature, config.max_new_tokens
        )
        for i, text, truncated in zip(picked, decoded.texts, decoded.truncated, strict=True):
            answers.texts[i], answers.truncated[i] = text, truncated
        answers.nll_E[list(picked)] = decoded.nll_B.cpu()

    by_slots: dict[int, list[int]] = defaultdict(list)
    for i in range(len(episodes)):
        by_slots[len(injection.prefixes[i]) if injection.prefixes is not None else 0].append(i)
    for slots, members in by_slots.items():
        for start in range(0, len(members), config.batch_size):
            halve_on_oom(members[start : start + config.batch_size], partial(run_batch, slots))
    return answers


def check_no_leak(receiver: Receiver, episodes: Sequence[AnyEpisode]) -> None:
    """Check that B's token ids are the same whatever the message says: it may reach B only through the slots.

    Raises:
        UserError: they differ, since a prompt style writes the message outside its place.
    """
    for episode in episodes:
        silent = replace(episode, message="")
        if isinstance(silent, Episode):
            silent = replace(silent, sender=())
        if receiver.prompt_ids(episode) != receiver.prompt_ids(silent):
            raise UserError(f"receiver {receiver.name}: its prompt style leaks the message; fix the style")


def check_null(injection: Injection) -> None:
    """Check that null is exactly zero: decode(0) once leaked through a LayerNorm bias and spoiled a baseline.

    Raises:
        RuntimeError: it is not.
    """
    assert injection.prefixes is not None
    if any(bool(prefix_KD.any()) for prefix_KD in injection.prefixes):
        raise RuntimeError("condition null injected something other than zeros")
