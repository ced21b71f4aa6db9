"""Schedules of a training: samples, learning rate and number of slots by step, and the check for collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence

from m2ray.config.trial import TrialConfig
from m2ray.receiver.episode_source import Source
from m2ray.tasks.episodes import AnyEpisode

COLLAPSE_SHARE, COLLAPSE_STEPS = 0.05, 5  # of the value of the text; logged steps that are averaged
GOLDEN_RATIO = 0.618  # a stride of this share of the seeds spreads a batch over all of them
SEED_STRIDE = 104_729  # keeps the first samples of training seeds apart
SMOOTHING = 0.1  # weight of a step's loss in the moving average that annealing looks at


class SlotAnnealer:
    """Number of slots to train with, by the rule of `m2ray.config.trial.Anneal`.

    Args:
        config: The configuration.
        steps: Number of steps of the training.
        nll_without: The receiver's nats per answer value without the message.
        nll_text: The same with the message as text.

    Attributes:
        k: Slots of the next step.
        held: Steps done at this k.
        nll: Moving average of the training loss, in nats per answer value.
    """

    def __init__(self, config: TrialConfig, steps: int, nll_without: float, nll_text: float) -> None:
        self.anneal, self.target, self.steps = config.training.anneal, config.codec.k, steps
        self.nll_without, self.nll_text = nll_without, nll_text
        self.k = self.anneal.start if self.anneal else self.target
        self.held, self.nll = 0, nll_without

    def recovered(self) -> float:
        """Return the share of the text's value, in nats, that the codec now recovers."""
        return (self.nll_without - self.nll) / max(self.nll_without - self.nll_text, 1e-6)

    def update(self, step: int, nll: float) -> None:
        """Include the loss of a step and decide the k of the next."""
        self.nll += SMOOTHING * (nll - self.nll)
        self.held += 1
        if self.anneal is None or self.k <= self.target:
            return
        line = self.anneal.start - (self.anneal.start - self.target) * step / (self.anneal.deadline * self.steps)
        ready = self.held >= self.anneal.hold and self.recovered() >= self.anneal.bound
        if ready or self.k > max(line, self.target):
            self.k, self.held = self.k - 1, 0


def training_batch(
    source: Source, seeds: Sequence[int], samples: range, training_seed: int
) -> Sequence[AnyEpisode]:
    """Return the episodes of sample numbers, in an order that uses every training seed once before any twice.

    A stride coprime to the number of seeds makes the order a permutation; the training seed
    decides where it starts.

    Args:
        source: The task's episodes.
        seeds: Episode seeds of the training split.
        samples: Numbers of samples, counted from the start of the training.
        training_seed: The training seed.
    """
    count = len(seeds)
    stride = next(s for s in range(int(count * GOLDEN_RATIO) | 1, 2 * count + 2) if math.gcd(s, count) == 1)
    start = training_seed * SEED_STRIDE
    return source.get([seeds[(start + number * stride) % count] for number in samples], "train")


def learning_rate(config: TrialConfig, step: int, steps: int, per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    training = config.training
    warmup = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    done = {"cosine": step / steps, "cosine_per_epoch": step % per_epoch / per_epoch, "constant": 0.0}
    return training.lr * warmup * (1 + math.cos(math.pi * done[training.schedule])) / 2


def is_collapsed(history: Sequence[dict[str, float]], text_value: float) -> bool:
    """Return whether the codec ignores its message: a wrong one is as good as the right one.

    Prefixes can differ and still be alike to the receiver, so they are not compared.

    Args:
        history: Logged steps; the last few are averaged.
        text_value: Nats per answer value that the message as text saves the receiver.
    """
    gaps = [entry["shuffle_gap"] for entry in history[-COLLAPSE_STEPS:]]
    return abs(sum(gaps) / len(gaps)) < COLLAPSE_SHARE * text_value
