# NEWDOC
"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.figures import FigureInputs
from m2ray.diagnosis.findings import Diagnosis, Gap, Norms, Success
from m2ray.diagnosis.free_vectors import FREE_EPISODES, FREE_STEPS, free_vectors
from m2ray.diagnosis.messages import PROBE_MESSAGES, PROBE_TIMES, probe_messages, training_messages
from m2ray.diagnosis.probes import facts_of, fields_of, probe, shared_facts, similarity_map, stages
from m2ray.evaluation.conditions import ConditionInputs, Injection, get_condition
from m2ray.evaluation.runner import answer_episodes
from m2ray.judging import statistics as stats
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode
from m2ray.training.constant_prefix import trained_constant


class AnswerNll(NamedTuple):
    """Mean nats per token of the answer: of its values (digits), of all its other tokens (format), [E] each."""

    digits_E: Tensor
    format_E: Tensor


@torch.no_grad()
def answer_nll_parts(
    receiver: Receiver, episodes: Sequence[Episode], injection: Injection, batch_size: int
) -> AnswerNll:
    """Nats as `m2ray.evaluation.value_nll` counts them, and those it leaves out. All episodes have the same k."""
    frame = receiver.answer_frame(episodes[0].level)
    digits_A = torch.zeros(len(frame.ids_A), dtype=torch.bool)
    digits_A[frame.positions_V] = True
    parts = []
    for start in range(0, len(episodes), batch_size):
        chunk = slice(start, start + batch_size)
        batch, prefix_BKD = episodes[chunk], None
        texts: list[str] | int = (injection.texts or [])[chunk]
        if injection.prefixes is not None:
            prefix_BKD = torch.stack(list(injection.prefixes[chunk]))
            texts = prefix_BKD.shape[1]
        logits_BAW = receiver.logits(receiver.layout(batch, texts, injection.place), prefix_BKD, len(frame.ids_A))
        parts.append(answer_nll(logits_BAW, frame, receiver.targets(batch)).cpu())
    nll_EA = torch.cat(parts)
    return AnswerNll(nll_EA[:, digits_A].mean(1), nll_EA[:, ~digits_A].mean(1))


def diagnose(
    receiver: Receiver,
    codec: Codec,
    trial: TrialConfig,
    episodes: Sequence[Episode],
    subject: CheckpointId,
    constants: Path,
    free_episodes: int = FREE_EPISODES,
) -> tuple[Diagnosis, FigureInputs]:
    """Measure one codec.

    Args:
        receiver: Agent B, frozen.
        codec: The codec, trained for that receiver.
        trial: Its configuration.
        episodes: Held-out ones, of the part search or select.
        subject: Whose checkpoint it is; its training seed says which episodes it was trained on.
        constants: Where trained content-free prefixes are kept; see `m2ray.jobs.trained_constant`.
        free_episodes: On how many episodes free vectors are fitted; 0 leaves all ceilings out.

    Returns:
        The figures, with the findings that follow from them, and what the pictures need.

    Raises:
        UserError: too few episodes, or too few different messages among them.
    """
    size, slots = trial.evaluation.batch_size, codec.config
    constant = trained_constant(receiver, trial, slots, constants) if free_episodes else None
    fitting = probe_messages(trial, receiver, min(PROBE_MESSAGES, PROBE_TIMES * len(episodes)))
    held, fit = (ConditionInputs(receiver, part, codec, constant, size) for part in (episodes, fitting))
    facts = facts_of(fit.episodes, held.episodes)
    shown = FigureInputs(stages(held), shared_facts(episodes))
    fit_features, known, wanted = stages(fit), fields_of(fit.episodes, facts), fields_of(episodes, facts)

    names = ["normal", "shuffle", "null", "P0", "P1", *(["constant"] if constant else [])]
    injections = {name: get_condition(name).inject(held) for name in names}
    nll = {name: answer_nll_parts(receiver, episodes, injections[name], size) for name in names}
    seen = ConditionInputs(receiver, training_messages(trial, subject.seed, len(episodes)), codec, None, size)
    seen_nll = {
        name: answer_nll_parts(receiver, seen.episodes, get_condition(name).inject(seen), size).digits_E
        for name in ("normal", "shuffle", "P0")
    }
    solved, success = {}, {}
    for name in names:
        solved[name], success[name] = decode_success(receiver, trial, episodes, injections[name])
    if free_episodes:
        few = episodes[:free_episodes]
        vectors = free_vectors(receiver, few, slots.k, slots.place, FREE_STEPS)
        _, success["free"] = decode_success(receiver, trial, few, Injection(None, list(vectors), slots.place))

    norm_S = held.prefixes_EKD.float().norm(dim=-1).flatten().cpu().numpy() / receiver.embedding_norm
    low, high = np.quantile(norm_S, [0.05, 0.95])
    path = (
        ("tokens", "pooled", "latent", "prefix")
        if slots.encoder == "last_token"
        else ("tokens", "latent", "prefix")
    )
    diagnosis = Diagnosis(
        about={
            "config": subject.config,
            "seed": subject.seed,
            "checkpoint": codec.digest,
            "receiver": f"{receiver.name} ({receiver.digest})",
            "level": trial.task.level,
            "encoder": slots.encoder,
            "k": slots.k,
            "place": slots.place,
            "n": len(episodes),
            "seeds": f"{episodes[0].seed}:{episodes[-1].seed + 1}",
            "probe_messages": len(fit.episodes),
            "probed_facts": len(facts),
            "training_messages": len(seen.episodes),
        },
        path=path,
        maps={name: similarity_map(rows, shown.shared_EE) for name, rows in shown.features.items()},
        probes={name: probe(fit_features[name], rows, known, wanted) for name, rows in shown.features.items()},
        nll={name: (float(part.digits_E.mean()), float(part.format_E.mean())) for name, part in nll.items()},
        gaps={
            name: Gap(
                stats.paired_difference(part.digits_E, nll["normal"].digits_E),
                stats.paired_difference(part.format_E, nll["normal"].format_E),
            )
            for name, part in nll.items()
            if name != "normal"
        },
        seen={name: stats.paired_difference(seen_nll[name], seen_nll["normal"]) for name in ("shuffle", "P0")},
        success=success,
        ahead={n: stats.paired_difference(solved["normal"], solved[n]) for n in solved if n != "normal"},
        retention=stats.retention(solved["normal"], solved["P0"], solved["P1"]),
        norms=Norms(float(norm_S.mean()), float(low), float(high), float(codec.scale_gate.detach())),
    )
    return diagnosis, shown


def decode_success(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[Episode], injection: Injection
) -> tuple[list[bool], Success]:
    """Which episodes are solved under a condition, and how many."""
    answers, nll_E = answer_episodes(receiver, episodes, injection, trial.evaluation)
    solved = [verify(e, text, receiver.style.answer).success for e, text in zip(episodes, answers, strict=True)]
    return solved, Success(sum(solved), len(solved), float(nll_E.mean()))
