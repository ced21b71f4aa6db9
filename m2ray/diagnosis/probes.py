"""Measure what each stage of a codec holds of the message: linear probes and similarity maps.

A message passes through stages: the receiver's states of all its tokens, one pooled state, the encoder's latent,
the prefix. A probe is a ridge regression in closed form, fitted on messages of the training part and scored on
held-out ones, so what it reads generalizes to unseen messages. It is a lower bound on what the stage holds: a
receiver may read what is not linear.

Shapes: B messages of a batch, E held-out messages, M messages that fit the probes, F features, R directions,
C fields, V variables, N sets of values, T tokens, P positions or pairs of messages, K slots, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from m2ray.codec.encoders import last_state, mean_state
from m2ray.codec.prefix_statistics import centered, effective_rank, mean_cosine
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.receiver.model.requests import EncodedMessage
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.tasks.level import Fact
from m2ray.util.errors import UserError

POSITIONS = 32  # token states that a probe sees one by one; later ones only enter the sum
FIT_COUNT, HELD_COUNT = 20, 5  # messages that must state a fact, and that must not, for it to be probed
STRENGTHS = np.logspace(-7, 0, 15)  # of the ridge, as a share of the largest eigenvalue
ROUNDING = 1e-10  # a direction with less than this share of the features' energy is rounding noise


# --- stages --------------------------------------------------------------------------------------------------


def stage_features(inputs: ConditionInputs) -> dict[str, Tensor]:
    """Return features of every message at every stage, [E, F] each.

    `tokens`: all token states and their sum. `pooled`: the state that the encoder `last_token` reads; for other
    encoders, the mean over tokens. `latent`: the encoder's output. `prefix`: in the receiver's own precision.
    """
    pool = last_state if inputs.tested_codec.config.encoder == "last_token" else mean_state
    features = {
        "tokens": inputs.encode(token_states),
        "pooled": inputs.encode(pool),
        "latent": inputs.latents_EKD,
        "prefix": inputs.prefixes_EKD.to(inputs.receiver.dtype),
    }
    return {name: rows.flatten(1).float().cpu() for name, rows in features.items()}


def token_states(messages: EncodedMessage) -> Tensor:
    """Return the sum of a message's token states, then the first `POSITIONS` of them, [B, 1 + P, D]."""
    states_BTD = messages.states_BTD.float() * messages.mask_BT[..., None]
    each_BPD = F.pad(states_BTD, (0, 0, 0, POSITIONS - states_BTD.shape[1]))
    return torch.cat([states_BTD.sum(1, keepdim=True), each_BPD], dim=1)


# --- similarity ----------------------------------------------------------------------------------------------


class SimilarityMap(NamedTuple):
    """Similarity of messages at a stage. Cosines are between different messages."""

    cosine: float  # mean: 1 is total collapse
    cosine_centred: float  # mean absolute value after subtracting the mean message: 1 is a single direction
    effective_rank: float
    spread: float  # root mean square of the distance from the mean message, over that of the norm
    follows: float  # correlation of the centered cosine with the facts two messages share; NaN if all are equal


def cosines(features_EF: Tensor) -> Tensor:
    """Return the cosine of every pair of rows, [E, E]; 0 for a row of zeros."""
    unit_EF = F.normalize(features_EF.double(), dim=1)
    return unit_EF @ unit_EF.T


def similarity_map(features_EF: Tensor, shared_EE: Tensor) -> SimilarityMap:
    """Measure how similar messages are at a stage; `shared_EE` counts the facts that two messages share."""
    centered_EF = centered(features_EF)
    pairs = torch.triu_indices(len(features_EF), len(features_EF), offset=1).unbind()
    cosine_P, shared_P = cosines(centered_EF)[pairs], shared_EE[pairs].double()
    norm, spread = (x.square().sum(1).mean().sqrt().item() for x in (features_EF.double(), centered_EF))
    follows = float(torch.corrcoef(torch.stack([cosine_P, shared_P]))[0, 1]) if spread else math.nan
    return SimilarityMap(
        float(mean_cosine(features_EF[:, None].double())),
        float(cosine_P.abs().mean()),
        effective_rank(features_EF),
        spread / max(norm, 1e-12),
        follows,
    )


def shared_facts(episodes: Sequence[AnyEpisode]) -> Tensor:
    """Return how many facts each pair of messages shares, [E, E]; in free text, how many sentences."""
    contents: list[frozenset[Any]] = [
        episode.content if isinstance(episode, Episode) else frozenset(episode.sentences()) for episode in episodes
    ]
    every = sorted(frozenset().union(*contents))
    said_EC = torch.tensor([[fact in content for fact in every] for content in contents]).float()
    return said_EC @ said_EC.T


# --- what messages state -------------------------------------------------------------------------------------


class Fields(NamedTuple):
    """The targets of probes: what messages state, field by field."""

    facts: list[Fact]
    said_MC: Tensor  # True where the message states the fact
    left_MV: Tensor  # the values of a variable that A's half leaves open (`Level.left`), one bit a value


def probed_facts(fit: Sequence[Episode], held_out: Sequence[Episode]) -> list[Fact]:
    """Return the facts that are stated, and left out, often enough to be probed, most frequent first.

    Raises:
        UserError: there are none, because there are too few messages.
    """

    def count_facts(episodes: Sequence[Episode]) -> Counter[Fact]:
        return Counter(fact for episode in episodes for fact in episode.content)

    fit_counts, held_counts = count_facts(fit), count_facts(held_out)
    facts = [
        fact
        for fact, count in fit_counts.most_common()
        if FIT_COUNT <= count <= len(fit) - FIT_COUNT
        and HELD_COUNT <= held_counts[fact] <= len(held_out) - HELD_COUNT
    ]
    if not facts:
        raise UserError(
            f"diagnose: no fact is stated by {HELD_COUNT} of {len(held_out)} held-out messages and by {FIT_COUNT} "
            f"of {len(fit)} of the training part; give more --episodes A:B, or a longer splits.train"
        )
    return facts


def read_fields(episodes: Sequence[Episode], facts: list[Fact]) -> Fields:
    """Return the fields of messages, from A's half."""
    said = [[fact in episode.content for fact in facts] for episode in episodes]
    left = [episode.level.left(episode.sender) for episode in episodes]
    return Fields(facts, torch.tensor(said), torch.tensor(left))


# --- probes --------------------------------------------------------------------------------------------------


class Probe(NamedTuple):
    """Accuracy of linear probes at a stage, in 0..1, with 95 % bootstrap intervals over messages."""

    facts: Estimate  # balanced accuracy, mean over facts; chance is 0.5
    values: Estimate  # accuracy, mean over variables, of the set of values that A's half leaves
    majority: float  # the same accuracy for always guessing the most frequent set
    kept: Estimate  # (values - majority) / (1 - majority)

    @property
    def held(self) -> float:
        """The accuracy on facts, rescaled from chance (0) to certainty (1)."""
        return max(0.0, 2 * self.facts.value - 1)


def probe(fit_MF: Tensor, held_EF: Tensor, fit: Fields, held_out: Fields) -> Probe:
    """Probe one stage for every field, all with one ridge regression.

    Args:
        fit_MF: Features of the messages that fit the probe.
        held_EF: Features of the held-out messages.
        fit: Fields of the messages that fit the probe.
        held_out: Fields of the held-out messages.
    """
    classes = [left_M.unique() for left_M in fit.left_MV.T]
    onehot = [left_M[:, None] == classes_N for left_M, classes_N in zip(fit.left_MV.T, classes, strict=True)]
    left_out_MC, guesses_EC = ridge(fit_MF, held_EF, torch.cat([fit.said_MC, *onehot], dim=1))
    facts = len(fit.facts)
    accuracy = fact_accuracy(left_out_MC[:, :facts], guesses_EC[:, :facts], fit.said_MC, held_out.said_MC)
    hits, majority = [], []
    parts = torch.split(guesses_EC[:, facts:], [len(classes_N) for classes_N in classes], dim=1)
    for guesses_EN, classes_N, onehot_MN, left_E in zip(parts, classes, onehot, held_out.left_MV.T, strict=True):
        hits.append(classes_N[guesses_EN.argmax(1)] == left_E)
        majority.append(classes_N[onehot_MN.sum(0).argmax()] == left_E)
    hits_E, majority_E = (torch.stack(rows).double().mean(0) for rows in (hits, majority))
    values = stats.paired_difference(hits_E, torch.zeros_like(hits_E))
    kept = stats.retention(hits_E, majority_E, torch.ones_like(hits_E))
    return Probe(accuracy, values, float(majority_E.mean()), kept)


def ridge(fit_MF: Tensor, held_EF: Tensor, targets_MC: Tensor) -> tuple[Tensor, Tensor]:
    """Run ridge regression, with the strength of least leave-one-out error.

    In the principal directions of the features a ridge is diagonal, and leaving one message out has a closed form,
    residual / (1 - leverage) (Allen 1974), so one decomposition serves all strengths. Directions that hold nothing
    but rounding noise are dropped.

    Returns:
        Leave-one-out guesses for the messages that fit it, [M, C], and guesses for the held-out ones, [E, C].
    """
    fit_MF, targets_MC = fit_MF.double(), targets_MC.double()
    center_F, mean_C, floor = fit_MF.mean(0), targets_MC.mean(0), ROUNDING * fit_MF.square().sum()
    fit_MF, held_EF, wanted_MC = fit_MF - center_F, held_EF.double() - center_F, targets_MC - mean_C
    energy_R, axes_FR = _principal_directions(fit_MF, floor)
    fit_MR, held_ER = fit_MF @ axes_FR, held_EF @ axes_FR
    along_RC, spread_C = fit_MR.T @ wanted_MC, wanted_MC.square().mean(0).clamp(min=1e-12)
    least, best = math.inf, (mean_C.expand_as(targets_MC), mean_C.expand(len(held_EF), -1))
    for strength in STRENGTHS if len(energy_R) else []:
        inverse_R1 = 1 / (energy_R + strength * energy_R.max())[:, None]
        leverage_M1 = fit_MR.square() @ inverse_R1 + 1 / len(fit_MR)
        left_out_MC = (wanted_MC - fit_MR @ (inverse_R1 * along_RC)) / (1 - leverage_M1)
        error = float((left_out_MC.square().mean(0) / spread_C).mean())
        if error < least:
            least, best = error, (targets_MC - left_out_MC, mean_C + held_ER @ (inverse_R1 * along_RC))
    return best


def _principal_directions(centered_MF: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the energies above a floor of the principal directions, [R], and these as unit vectors, [F, R]."""
    if centered_MF.shape[1] <= len(centered_MF):
        energy_R, axes_FR = torch.linalg.eigh(centered_MF.T @ centered_MF)
        return energy_R[energy_R > floor], axes_FR[:, energy_R > floor]
    energy_R, left_MR = torch.linalg.eigh(centered_MF @ centered_MF.T)
    energy_R, left_MR = energy_R[energy_R > floor], left_MR[:, energy_R > floor]
    return energy_R, centered_MF.T @ (left_MR / energy_R.sqrt())


def fact_accuracy(left_out_MC: Tensor, guesses_EC: Tensor, fit_said_MC: Tensor, said_EC: Tensor) -> Estimate:
    """Return the balanced accuracy of yes or no for every fact, averaged over facts.

    A fact is predicted as stated above a threshold: the midpoint between the mean leave-one-out guess of the
    messages that state it and of those that do not. The interval comes from the linearization of the mean
    accuracy, in which each message weighs what it adds to the two rates of each fact.

    Args:
        left_out_MC: Leave-one-out guesses for the messages that fit the probe.
        guesses_EC: Guesses for the held-out messages.
        fit_said_MC: True where a message that fits the probe states the fact.
        said_EC: True where a held-out message states the fact.
    """
    yes_MC, no_MC = fit_said_MC.double(), (~fit_said_MC).double()
    midpoint_C = ((left_out_MC * yes_MC).sum(0) / yes_MC.sum(0) + (left_out_MC * no_MC).sum(0) / no_MC.sum(0)) / 2
    right_EC = ((guesses_EC > midpoint_C) == said_EC).double()
    yes_EC, no_EC = said_EC.double(), (~said_EC).double()
    yes_rate_C = (right_EC * yes_EC).sum(0) / yes_EC.sum(0)
    no_rate_C = (right_EC * no_EC).sum(0) / no_EC.sum(0)
    weight_EC = yes_EC / yes_EC.sum(0) + no_EC / no_EC.sum(0)
    residual_EC = weight_EC * (right_EC - torch.where(said_EC, yes_rate_C, no_rate_C))
    balanced = (yes_rate_C + no_rate_C).mean() / 2
    linearized_E = balanced + len(said_EC) * residual_EC.mean(1) / 2
    return stats.paired_difference(linearized_E, torch.zeros_like(linearized_E))
