"""The score that a search maximizes, computed during training; cheap, since it needs no decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from m2ray.codec.codec import Codec
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import derangement
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import success_probability, value_nll
from m2ray.tasks.episodes import AnyEpisode


@torch.no_grad()
def search_score(
    receiver: Receiver, codec: Codec, episodes: Sequence[AnyEpisode], config: EvaluationConfig
) -> dict[str, Any]:
    """Score a codec on the search split.

    The score is the smaller of two paired gains of the right message, over no message and over a wrong one, as in
    `m2ray.judging.selection.gain`: in nats per token that carries the answer or, by configuration, in
    the probability of success.

    Returns:
        score: the smaller of gain_P0 and gain_shuffle, in `unit`; search_nll, nats per value under the right
        message; episode_nll, the same per episode; and search_success, where the score is a probability.
    """
    inputs = ConditionInputs(receiver, episodes, codec, None, config.batch_size)
    prefixes_EKD, receiver = inputs.prefixes_EKD, inputs.view
    partners, place, k = derangement(episodes), codec.config.place, codec.config.k
    nll: dict[str, list[float]] = {"normal": [], "shuffle": [], "P0": []}
    success: dict[str, list[float]] = {name: [] for name in nll}
    for start in range(0, len(episodes), config.batch_size):
        chunk = slice(start, start + config.batch_size)
        batch = episodes[chunk]
        for name, texts, prefix_BKD in (
            ("normal", k, prefixes_EKD[chunk]),
            ("shuffle", k, prefixes_EKD[partners[chunk]]),
            ("P0", [""] * len(batch), None),
        ):
            nll[name] += value_nll(receiver, batch, texts, prefix_BKD, place).tolist()
            if config.score == "success":
                success[name] += success_probability(receiver, batch, texts, prefix_BKD, place).tolist()
    costs = {name: sum(values) / len(episodes) for name, values in nll.items()}
    metrics: dict[str, Any] = {"search_nll": costs["normal"], "episode_nll": nll["normal"], "unit": "nats"}
    if config.score == "success":
        costs = {name: -sum(values) / len(episodes) for name, values in success.items()}
        metrics |= {"search_success": -costs["normal"], "unit": "of success"}
    gains = {f"gain_{name}": costs[name] - costs["normal"] for name in ("P0", "shuffle")}
    return {**metrics, **gains, "score": min(gains.values())}
