"""When a training does what: which samples each step learns from, at what rate, with how many slots; and when it
has come to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from m2ray.config.trial import TrialConfig
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.tasks.episodes import Episode

COLLAPSE_SHARE, COLLAPSE_STEPS = 0.05, 5  # of what the text is worth; logged steps that are averaged


class SlotAnnealer:
    """How many slots to train with: `Anneal` in `m2ray.config` says the rule."""

    def __init__(self, config: TrialConfig, steps: int, nll_without: float, nll_text: float) -> None:
        self.anneal, self.target, self.steps = config.training.anneal, config.codec.k, steps
        self.nll_without, self.nll_text = nll_without, nll_text
        self.k = self.anneal.start if self.anneal else self.target
        self.held, self.nll = 0, nll_without

    def recovered(self) -> float:
        """Share of what the text is worth to the receiver that the codec now recovers, in nats."""
        return (self.nll_without - self.nll) / max(self.nll_without - self.nll_text, 1e-6)

    def update(self, step: int, nll: float) -> None:
        """Take in the loss of a step and decide the k of the next."""
        self.nll += 0.1 * (nll - self.nll)
        self.held += 1
        if self.anneal is None or self.k <= self.target:
            return
        line = self.anneal.start - (self.anneal.start - self.target) * step / (self.anneal.deadline * self.steps)
        ready = self.held >= self.anneal.hold and self.recovered() >= self.anneal.bound
        if ready or self.k > max(line, self.target):
            self.k, self.held = self.k - 1, 0


def training_batch(source: EpisodeSource, seeds: range, samples: range, training_seed: int) -> list[Episode]:
    """The episodes of sample numbers: a walk over the training seeds that meets each once before any twice.

    A stride coprime to their number makes the walk a permutation; the training seed says where it starts.
    """
    stride = next(
        s for s in range(int(len(seeds) * 0.618) | 1, 2 * len(seeds) + 2) if math.gcd(s, len(seeds)) == 1
    )
    start = training_seed * 104_729
    return source.get([seeds[(start + number * stride) % len(seeds)] for number in samples], "train")


def learning_rate(config: TrialConfig, step: int, steps: int, per_epoch: int) -> float:
    """The learning rate of a step, counted from 0."""
    training = config.training
    warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    done = {"cosine": step / steps, "cosine_per_epoch": step % per_epoch / per_epoch, "constant": 0.0}
    return training.lr * warm * (1 + math.cos(math.pi * done[training.schedule])) / 2


def is_collapsed(history: Sequence[dict[str, float]], worth: float) -> bool:
    """Whether the codec ignores its message: a wrong one is as good as the right one, in nats a value.

    Prefixes need not be alike for that, only alike to the receiver.

    Args:
        history: Logged steps; the last few are averaged.
        worth: What the message as text is worth to the receiver over none.
    """
    gaps = [entry["shuffle_gap"] for entry in history[-COLLAPSE_STEPS:]]
    return abs(sum(gaps) / len(gaps)) < COLLAPSE_SHARE * worth
