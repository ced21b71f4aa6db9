# NEWDOC
"""One checkpoint x conditions x episodes -> rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from m2ray.codec.codec import Codec
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import ConditionInputs, derangement
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import success_probability, value_nll
from m2ray.tasks.episodes import Episode


@torch.no_grad()
def search_score(
    receiver: Receiver, codec: Codec, episodes: Sequence[Episode], config: EvaluationConfig
) -> dict[str, Any]:
    """The searcher's objective while training goes on: `m2ray.rows.paired_gain` without decoding, or where the
    configuration says so the gain in `success_probability`.

    Returns:
        score: the smaller of the two paired gains, gain_P0 and gain_shuffle, in `unit`; search_nll, nats per value
        under the right message, and episode_nll, the same episode by episode; where the score is that,
        search_success.
    """
    batch_size = config.batch_size
    inputs = ConditionInputs(receiver, episodes, codec, None, batch_size)
    prefixes_EKD, place = inputs.prefixes_EKD, codec.config.place
    partners = derangement(episodes)
    nll: dict[str, list[float]] = {"normal": [], "shuffle": [], "P0": []}
    success: dict[str, list[float]] = {name: [] for name in nll}
    for start in range(0, len(episodes), batch_size):
        chunk = slice(start, start + batch_size)
        batch, k = episodes[chunk], codec.config.k
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
