"""Estimate what a sweep costs: count its work, and time one step and one batch on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from m2ray.codec.codec import Codec
from m2ray.config.plan import Plan
from m2ray.config.task import EVALUATION_SPLITS
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import Injection
from m2ray.evaluation.row_scope import distinct_scopes
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.receiver import Receiver
from m2ray.training.constant_prefix import constant_config
from m2ray.training.objectives import Heads
from m2ray.training.schedule import training_batch
from m2ray.training.step import CodecLoss, backpropagate

TIMED_ROWS = 64  # most rows of the step and of the batch that are timed
REPEATS = 3
# In answers to decode, per message: what its diagnosis costs (conditions decoded and scored, probe messages, free
# vectors), and what an epoch's score on the search split costs.
ANSWERS_PER_DIAGNOSIS, ANSWERS_PER_SCORE = 35, 2


class Work(NamedTuple):
    """Totals over all configurations and training seeds; where an axis decides, for its costliest value."""

    samples: int  # training samples
    constant_samples: int  # training samples of the content-free prefixes for condition constant
    reports: int  # epochs, each with a checkpoint
    jobs: int  # jobs of evaluators
    answers: int  # answers to decode
    diagnoses: int  # codecs to diagnose


def longest_config(plan: Plan) -> TrialConfig:
    """Return the configuration that trains longest of those that may be sampled, or of all where none is."""
    return max(plan.checked or plan.all, key=lambda c: c.training.epochs * c.training.epoch_samples)


def count_work(plan: Plan) -> Work:
    """Count what a sweep has to do."""
    space, example = plan.space, plan.example
    seeds, trials = len(space.search.seeds), plan.samples
    configs = [*plan.points.values(), *[longest_config(plan)] * trials]
    samples = sum(c.training.epochs * c.training.epoch_samples for c in configs) * seeds
    reports = sum(c.training.epochs for c in configs) * seeds
    evaluations = {
        "search": reports,
        "select": seeds * min(space.judge.select, trials),
        "confirm": seeds * (len(plan.points) + min(space.judge.confirm, trials)),
    }
    slots = len({(c.codec.k, c.codec.slots_at) for c in plan.all})
    jobs = answers = constant_samples = 0
    source = open_source(example.task)
    for split in EVALUATION_SPLITS:
        times = distinct_scopes(evaluations[split], slots)
        names = max((config.conditions_on(split) for config in plan.all), key=len)
        depends_on = [get_condition(name).depends_on for name in names]
        jobs += sum(times[kind] for kind in set(depends_on))
        answers += len(source.seeds(example.splits, split)) * sum(times[kind] for kind in depends_on)
        if "constant" in names:
            jobs += times["checkpoint"]  # a job of its own
            constant_samples = max(constant_samples, _constant_samples(plan, evaluations[split] // seeds))
    diagnoses = 0
    if plan.diagnosed:
        diagnoses = evaluations["confirm"] // (1 if space.judge.diagnose_seeds == "all" else seeds)
    return Work(samples, constant_samples, reports, jobs + diagnoses, answers, diagnoses)


def _constant_samples(plan: Plan, configurations: int) -> int:
    """Return the most samples that train the content-free prefixes of so many configurations."""
    distinct = {
        (config.codec.k, config.codec.slots_at, config.constant_samples, config.training.batch_size)
        for config in plan.all
    }
    return sum(sorted((samples for _, _, samples, _ in distinct), reverse=True)[:configurations])


def estimate_minutes(plan: Plan, receiver: Receiver) -> tuple[float, float]:
    """Return the minutes of training, and of evaluation with diagnosis, on this machine."""
    with threads_of_trials(plan.space.resources.cpus_per_worker):
        return _estimate_minutes(plan, receiver)


@contextmanager
def threads_of_trials(cpus: float) -> Iterator[None]:
    """Run with as many threads as a trial has (`m2ray.engine.cluster.limit_threads`).

    More would work less efficiently, and threads that wait count as processor time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cpus))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _estimate_minutes(plan: Plan, receiver: Receiver) -> tuple[float, float]:
    space, example, work = plan.space, plan.example, count_work(plan)
    source = open_source(example.task)
    search_seeds = source.seeds(example.splits, "search")
    timed_seeds = search_seeds[: min(TIMED_ROWS, example.evaluation.batch_size)]
    episodes = source.get(timed_seeds, "search")
    text = Injection([episode.message for episode in episodes], None, example.codec.place)
    batch_s = measure_seconds(receiver, lambda: answer_episodes(receiver, episodes, text, example.evaluation))
    answer_s = batch_s / len(episodes)
    counted = [(config, 1) for config in plan.points.values()]
    if plan.samples:
        counted.append((longest_config(plan), plan.samples))
    training_s = work.reports * ANSWERS_PER_SCORE * len(search_seeds) * answer_s
    for config, number in counted:
        samples = len(space.search.seeds) * number * config.training.epochs * config.training.epoch_samples
        training_s += samples * seconds_per_sample(config, receiver)
    if work.constant_samples:
        training_s += work.constant_samples * seconds_per_sample(constant_config(example, example.codec), receiver)
    answers = work.answers + work.diagnoses * ANSWERS_PER_DIAGNOSIS * space.judge.diagnose
    return training_s / 60, answers * answer_s / 60


def seconds_per_sample(config: TrialConfig, receiver: Receiver) -> float:
    """Time a training step and return its seconds per sample."""
    rows = min(config.training.batch_size, TIMED_ROWS)
    source = open_source(config.task)
    batch = training_batch(source, source.seeds(config.splits, "train"), range(rows), 0)
    codec, heads = Codec(config.codec, receiver).to(receiver.device), Heads(config, receiver).to(receiver.device)
    loss_module = CodecLoss(config, codec, heads, receiver)

    def step() -> float:
        backpropagate(loss_module(batch, config.codec.k, 0, False)[0])
        return float(torch.nn.utils.clip_grad_norm_(loss_module.parameters(), config.training.grad_clip))

    return measure_seconds(receiver, step) / rows


def measure_seconds(receiver: Receiver, act: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of a few runs, after a warm-up.

    On a CPU it is processor time, to which other work on the machine does not add; on a GPU wall time.
    """
    clock = time.process_time if receiver.device.type == "cpu" else time.perf_counter
    act()
    seconds = []
    for _ in range(REPEATS):
        started = clock()
        act()
        seconds.append(clock() - started)
    return min(seconds)
