"""Measure one codec: where it loses its message, and whether the receiver reads it.

Shapes: E episodes, B a batch of them, A answer tokens, W words of the vocabulary, F features, K slots, D width,
S slots of all episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray.codec.checkpoints import CheckpointId, trained_with
from m2ray.codec.codec import Codec
from m2ray.config.trial import CodecConfig, TrialConfig
from m2ray.diagnosis.figures import FigureInputs
from m2ray.diagnosis.findings import Diagnosis, Gap, Norms, Success
from m2ray.diagnosis.free_vectors import FREE_EPISODES, free_vectors
from m2ray.diagnosis.messages import probe_messages, puzzles, training_messages
from m2ray.diagnosis.probes import (
    Probe,
    probe,
    probed_facts,
    read_fields,
    shared_facts,
    similarity_map,
    stage_features,
)
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.evaluation.runner import answer_episodes
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import reference_nll, value_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.tasks.level import Fact
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.training.constant_prefix import trained_constant


def diagnose(
    receiver: Receiver,
    codec: Codec,
    trial: TrialConfig,
    episodes: Sequence[AnyEpisode],
    checkpoint: CheckpointId,
    constants: Path,
    free_episodes: int = FREE_EPISODES,
) -> tuple[Diagnosis, FigureInputs]:
    """Measure one codec. Probes look for the facts of puzzles; of a task in free text there are none.

    Args:
        receiver: Agent B, frozen.
        codec: The codec, loaded for that receiver.
        trial: Its configuration.
        episodes: Held-out episodes of the part search or select.
        checkpoint: The checkpoint's identity; its training seed decides which episodes it was trained on.
        constants: Folder of trained content-free prefixes; see `m2ray.training.constant_prefix.trained_constant`.
        free_episodes: Number of episodes that free vectors are fitted to; 0 leaves all ceilings out.

    Returns:
        The figures, with the findings that follow from them, and the inputs of the pictures.

    Raises:
        UserError: there are too few episodes, or too few different messages among them.
    """
    slots, batch_size = codec.config, trial.evaluation.batch_size
    constant = trained_constant(receiver, trial, slots, constants) if free_episodes else None
    held_out = ConditionInputs(receiver, episodes, codec, constant, batch_size)
    shown = FigureInputs(stage_features(held_out), shared_facts(episodes))
    probes: dict[str, Probe] = {}
    fitted = probe_messages(trial, receiver, len(episodes))
    if fitted:
        fit = ConditionInputs(receiver, fitted, codec, constant, batch_size)
        facts = probed_facts(fitted, puzzles(episodes))
        probes = fit_probes(fit, fitted, shown.features, puzzles(episodes), facts)

    names = ["normal", "shuffle", "null", "P0", "P1", *(["constant"] if constant else [])]
    injections = {name: get_condition(name).inject(held_out) for name in names}
    nll = {name: answer_nll_parts(receiver, episodes, injections[name], batch_size) for name in names}
    training = training_messages(trial, checkpoint.seed, len(episodes))
    seen = ConditionInputs(receiver, training, codec, None, batch_size)
    seen_gaps = training_gaps(seen)

    solved, success, free_converged = {}, {}, None
    for name in names:
        solved[name], success[name] = decode_success(receiver, trial, episodes, injections[name])
    if free_episodes:
        success["free"], free_converged = free_vector_success(receiver, trial, episodes[:free_episodes], slots)

    used = {"training_messages": len(training)}
    if fitted:
        used = {"probe_messages": len(fitted), "probed_facts": len(facts)} | used
    diagnosis = Diagnosis(
        about=describe(receiver, codec, trial, episodes, checkpoint) | used,
        path=message_path(slots),
        maps={name: similarity_map(rows_EF, shown.shared_EE) for name, rows_EF in shown.features.items()},
        probes=probes,
        nll={name: (float(part.digits_E.mean()), float(part.format_E.mean())) for name, part in nll.items()},
        gaps=nll_gaps(nll),
        seen=seen_gaps,
        success=success,
        ahead={n: stats.paired_difference(solved["normal"], solved[n]) for n in solved if n != "normal"},
        retention=stats.retention(solved["normal"], solved["P0"], solved["P1"]),
        norms=prefix_norms(held_out),
        free_converged=free_converged,
    )
    return diagnosis, shown


def describe(
    receiver: Receiver, codec: Codec, trial: TrialConfig, episodes: Sequence[AnyEpisode], checkpoint: CheckpointId
) -> dict[str, Any]:
    """Return the checkpoint, its settings and the held-out messages, as the report's head states them."""
    slots = codec.config
    other = codec.receiver_digest != receiver.digest
    return {
        "config": checkpoint.config,
        "seed": checkpoint.seed,
        "checkpoint": codec.digest,
        "receiver": f"{receiver.name} ({receiver.digest})",
        **({"trained_with": trained_with(codec.record)} if other else {}),
        "level": trial.task.name,
        "encoder": slots.encoder,
        "k": slots.k,
        "place": slots.slots_at,
        "n": len(episodes),
        **_groups(episodes),
        "seeds": f"{episodes[0].seed}:{episodes[-1].seed + 1}",
    }


def _groups(episodes: Sequence[AnyEpisode]) -> dict[str, str]:
    """Return the number of groups of episodes in free text, whose dependence the intervals here do not know."""
    groups = {episode.cluster for episode in episodes if isinstance(episode, TextEpisode)}
    return {"groups": f"{len(groups)}, but intervals count episodes"} if 0 < len(groups) < len(episodes) else {}


def message_path(codec: CodecConfig) -> tuple[str, ...]:
    """Return the stages that a message passes through in a codec; only `last_token` reads a pooled state."""
    if codec.encoder == "last_token":
        return ("tokens", "pooled", "latent", "prefix")
    return ("tokens", "latent", "prefix")


# --- what the stages hold ------------------------------------------------------------------------------------


def fit_probes(
    fit: ConditionInputs,
    fitted: Sequence[Episode],
    held_out: Mapping[str, Tensor],
    episodes: Sequence[Episode],
    facts: list[Fact],
) -> dict[str, Probe]:
    """Fit a probe to every stage, and score it on held-out episodes.

    Args:
        fit: The messages that fit the probes, for the codec.
        fitted: Their episodes.
        held_out: Features of the held-out episodes by stage, [E, F].
        episodes: The held-out episodes.
        facts: The facts to probe for.
    """
    features = stage_features(fit)
    known, wanted = read_fields(fitted, facts), read_fields(episodes, facts)
    return {name: probe(features[name], rows_EF, known, wanted) for name, rows_EF in held_out.items()}


def prefix_norms(inputs: ConditionInputs) -> Norms:
    """Return the norms of the codec's prefix vectors over the channel's unit, such as the mean embedding norm."""
    norm_S = inputs.prefixes_EKD.float().norm(dim=-1).flatten().cpu().numpy() / inputs.view.channel.unit
    low, high = np.quantile(norm_S, [0.05, 0.95])
    return Norms(float(norm_S.mean()), float(low), float(high), float(inputs.tested_codec.scale_gate.detach()))


# --- likelihood of the answer --------------------------------------------------------------------------------


class AnswerNll(NamedTuple):
    """Mean nats per token of the answer's values (digits), and of all its other tokens (format)."""

    digits_E: Tensor
    format_E: Tensor


@torch.no_grad()
def answer_nll_parts(
    receiver: Receiver, episodes: Sequence[AnyEpisode], injection: Injection, batch_size: int
) -> AnswerNll:
    """Return the nats of the answer's values, as `m2ray.receiver.scoring.value_nll` does, and of its other tokens.

    All episodes have the same number of slots.
    """
    digits, others, reader = [], [], injection.reader(receiver)
    for start in range(0, len(episodes), batch_size):
        chunk = slice(start, start + batch_size)
        batch, prefix_BKD = episodes[chunk], None
        texts: list[str] | int = (injection.texts or [])[chunk]
        if injection.prefixes is not None:
            prefix_BKD = torch.stack(list(injection.prefixes[chunk]))
            texts = prefix_BKD.shape[1]
        references = receiver.references(batch)
        layout = reader.layout(batch, texts, injection.place)
        nll_BA = reference_nll(reader.logits(layout, prefix_BKD, references.length), references)
        digits.append(references.value_mean(nll_BA).cpu())
        format_BA = references.mask_BA & ~references.values_BA
        others.append(((nll_BA * format_BA).sum(1) / format_BA.sum(1)).cpu())
    return AnswerNll(torch.cat(digits), torch.cat(others))


def nll_gaps(nll: Mapping[str, AnswerNll]) -> dict[str, Gap]:
    """Return the gap of every condition to the right message."""
    right = nll["normal"]
    return {
        name: Gap(
            stats.paired_difference(part.digits_E, right.digits_E),
            stats.paired_difference(part.format_E, right.format_E),
        )
        for name, part in nll.items()
        if name != "normal"
    }


def training_gaps(seen: ConditionInputs) -> dict[str, Estimate]:
    """Return the gaps of digits of shuffle and P0 on messages that the codec was trained on."""
    digits = {}
    for name in ("normal", "shuffle", "P0"):
        injection = get_condition(name).inject(seen)
        digits[name] = answer_nll_parts(seen.receiver, seen.episodes, injection, seen.batch_size).digits_E
    return {name: stats.paired_difference(digits[name], digits["normal"]) for name in ("shuffle", "P0")}


# --- decoded answers -----------------------------------------------------------------------------------------


def decode_success(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[AnyEpisode], injection: Injection
) -> tuple[list[bool], Success]:
    """Decode B's answers under an injection; return which episodes are solved, and how many."""
    answers = answer_episodes(receiver, episodes, injection, trial.evaluation)
    pairs = zip(episodes, answers.texts, strict=True)
    solved = [verify(episode, text, receiver.style.answer).success for episode, text in pairs]
    return solved, Success(sum(solved), len(solved), float(answers.nll_E.mean()))


def free_vector_success(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[AnyEpisode], slots: CodecConfig
) -> tuple[Success, int]:
    """Return the success of vectors that are fitted to each episode's answer, and how many of the fits converged.

    B decodes greedily, whatever the temperature of the evaluation.
    """
    receiver = open_channel(receiver, slots.channel, slots.channel_layers)
    fit = free_vectors(receiver, episodes, slots.k, slots.place, max_new_tokens=trial.evaluation.max_new_tokens)
    digits_E = value_nll(receiver, episodes, slots.k, fit.vectors_EKD, slots.place)
    return Success(sum(fit.solved), len(fit.solved), float(digits_E.mean())), sum(fit.converged)
