"""One checkpoint x conditions x episodes -> rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import ConditionInputs, Injection, build_injection, get_condition
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import mean_value_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode
from m2ray.util.errors import UserError
from m2ray.util.memory import halve_on_oom


def condition_names(config: EvaluationConfig) -> list[str]:
    """All conditions a configuration asks for, the parametrised ones spelled out."""
    texts = [f"text-{limit}" for limit in config.text_bytes]
    gates = [f"scale_gate={gate:g}" for gate in config.scale_gates]
    return [*config.conditions, *texts, *gates]


def evaluate(
    receiver: Receiver,
    episodes: Sequence[Episode],
    split: str,
    names: Sequence[str],
    config: EvaluationConfig,
    subject: CheckpointId | None = None,
    codec: Codec | None = None,
    constant: Codec | None = None,
) -> pd.DataFrame:
    """Play every episode under every condition named.

    Args:
        receiver: Agent B.
        episodes: Of one level; the same for all conditions.
        split: Their split's name, for the rows.
        names: Conditions, see `m2ray.conditions`.
        config: Decoding.
        subject: Whose checkpoint; None where no condition depends on one.
        codec: The checkpoint.
        constant: A trained content-free codec of the same k and place, for the condition `constant`.

    Returns:
        Rows with the columns of `m2ray.rows`. Rows of conditions that do not depend on the checkpoint carry
        no configuration, so that other checkpoints reuse them.

    Raises:
        UserError: no conditions are named, or one needs what these episodes or this receiver do not have.
    """
    if not names:
        raise UserError("evaluation.conditions: empty; name at least one condition")
    check_no_leak(receiver, episodes)
    inputs = ConditionInputs(receiver, episodes, codec, constant, config.batch_size)
    frames = []
    for name in names:
        kind = get_condition(name)
        injection = build_injection(name, inputs)
        if name == "null":
            check_null(injection)
        answers, nll_E = answer_episodes(receiver, episodes, injection, config)
        outcomes = [verify(e, text, receiver.style.answer) for e, text in zip(episodes, answers, strict=True)]
        own = subject if kind.depends_on == "checkpoint" else None
        slots = codec.config if codec is not None and kind.depends_on != "receiver" else None
        columns: dict[str, Any] = {
            "config": own.config if own else "",
            "seed": own.seed if own else -1,
            "checkpoint": own.checkpoint if own else "",
            "step": own.step if own else 0,
            "receiver": receiver.digest,
            "task": episodes[0].level.name,
            "split": split,
            "k": slots.k if slots else 0,
            "place": slots.place if slots else "",
            "decoding": config.decoding,
            "condition": name,
            "episode": [e.seed for e in episodes],
            "partner": [episodes[i].seed for i in injection.partners] if injection.partners else -1,
            "success": [o.success for o in outcomes],
            "parsed": [o.parsed for o in outcomes],
            "partial": [o.partial for o in outcomes],
            "nll": nll_E.tolist(),
            "answer": answers,
            "params": own.params if own else "",
        }
        frames.append(pd.DataFrame(columns))
    rows: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return rows


def answer_episodes(
    receiver: Receiver, episodes: Sequence[Episode], injection: Injection, config: EvaluationConfig
) -> tuple[list[str], Tensor]:
    """B's answers, and the nats per value that it gives the solutions left, [E]."""

    def play_batch(slots: int, picked: Sequence[int]) -> None:
        batch = [episodes[i] for i in picked]
        texts: list[str] | int = slots
        prefix_BKD = None
        if injection.prefixes is not None:
            prefix_BKD = torch.stack([injection.prefixes[i] for i in picked])
        elif injection.texts is not None:
            texts = [injection.texts[i] for i in picked]
        decoded, logits_BVW = receiver.generate_and_score(
            batch, texts, prefix_BKD, injection.place, config.temperature, config.max_new_tokens
        )
        for i, text in zip(picked, decoded, strict=True):
            answers[i] = text
        nll_E[list(picked)] = mean_value_nll(receiver, batch, logits_BVW).cpu()

    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(episodes)):
        groups[len(injection.prefixes[i]) if injection.prefixes is not None else 0].append(i)
    answers = [""] * len(episodes)
    nll_E = torch.zeros(len(episodes))
    for slots, members in groups.items():
        for start in range(0, len(members), config.batch_size):
            halve_on_oom(members[start : start + config.batch_size], partial(play_batch, slots))
    return answers, nll_E


def check_no_leak(receiver: Receiver, episodes: Sequence[Episode]) -> None:
    """B's token ids must be the same whatever the message says: it can reach B only through the slots.

    Raises:
        UserError: they are not (a prompt style that writes the message outside its place).
    """
    for episode in episodes:
        silent = replace(episode, sender=(), message="")
        if receiver.prompt_ids(episode) != receiver.prompt_ids(silent):
            raise UserError(f"receiver {receiver.name}: its prompt style leaks the message; fix the style")


def check_null(injection: Injection) -> None:
    """Null must be exact zeros: decode(0) once leaked through a LayerNorm bias, and made a baseline invalid.

    Raises:
        RuntimeError: it is not.
    """
    assert injection.prefixes is not None
    if any(bool(prefix_KD.any()) for prefix_KD in injection.prefixes):
        raise RuntimeError("condition null injected something other than zeros")
