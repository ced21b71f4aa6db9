"""Before anything is trained: whether a sweep can be run and judged, and what it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from m2ray.codec.codec import Codec
from m2ray.config.plan import Plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.jobs import EVALUATION_SPLITS
from m2ray.evaluation.conditions import Injection, get_condition
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.receiver import Receiver
from m2ray.training.objectives import Heads
from m2ray.training.schedule import training_batch
from m2ray.training.step import CodecLoss

TIMED, TIMES = 64, 3  # rows, at most, of the step and of the batch that a dry run times; times it does


# Of a message: what its diagnosis costs (conditions decoded and scored, probe messages, free vectors), what a
# report's score on the search split costs, in answers to decode.
ANSWERS_PER_DIAGNOSIS, ANSWERS_PER_SCORE = 25, 2


class Work(NamedTuple):
    """Totals over all configurations and training seeds; where an axis decides, of its dearest value."""

    samples: int  # training samples
    reports: int  # epochs, each with a checkpoint
    jobs: int  # of evaluators
    answers: int  # answers to decode
    diagnoses: int  # codecs


def longest_config(plan: Plan) -> TrialConfig:
    """The sampled configuration that trains longest."""
    return max([plan.example, *plan.checked], key=lambda c: c.training.epochs * c.training.epoch_samples)


def count_work(plan: Plan) -> Work:
    """Count what a sweep has to do."""
    space, example = plan.space, plan.example
    seeds, trials = len(space.search.seeds), space.search.trials
    configs = [*plan.points.values(), *[longest_config(plan)] * trials]
    samples = sum(c.training.epochs * c.training.epoch_samples for c in configs) * seeds
    reports = sum(c.training.epochs for c in configs) * seeds
    plays = {
        "search": reports,
        "select": seeds * min(space.judge.select, trials),
        "confirm": seeds * (len(plan.points) + min(space.judge.confirm, trials)),
    }
    depends = [get_condition(name).depends_on for name in example.evaluation.condition_names]
    slots = len({(c.codec.k, c.codec.place) for c in plan.all})
    jobs = answers = 0
    for split in EVALUATION_SPLITS:
        times = {"checkpoint": plays[split], "slots": min(slots, plays[split]), "receiver": min(1, plays[split])}
        jobs += sum(times.values())
        answers += len(example.splits.seeds(split)) * sum(times[kind] for kind in depends)
    diagnoses = 0
    if space.judge.diagnose:
        diagnoses = plays["confirm"] // (1 if space.judge.diagnose_seeds == "all" else seeds)
    return Work(samples, reports, jobs + diagnoses, answers, diagnoses)


def estimate_minutes(plan: Plan, receiver: Receiver) -> tuple[float, float]:
    """What training, and evaluation with diagnosis, take here, from a step and a batch timed; see `timed`."""
    space, example, work = plan.space, plan.example, count_work(plan)
    searched = example.splits.seeds("search")
    episodes = EpisodeSource(example.task).get(searched[: min(TIMED, example.evaluation.batch_size)], "search")
    told = Injection([episode.message for episode in episodes], None, example.codec.place)
    answer = measure_seconds(
        receiver, lambda: answer_episodes(receiver, episodes, told, example.evaluation)
    ) / len(episodes)
    times = [(config, 1) for config in plan.points.values()]
    if space.search.trials:
        times.append((longest_config(plan), space.search.trials))
    training = work.reports * ANSWERS_PER_SCORE * len(searched) * answer
    for config, number in times:
        samples = len(space.search.seeds) * number * config.training.epochs * config.training.epoch_samples
        training += samples * seconds_per_sample(config, receiver)
    answers = work.answers + work.diagnoses * ANSWERS_PER_DIAGNOSIS * space.judge.diagnose
    return training / 60, answers * answer / 60


def seconds_per_sample(config: TrialConfig, receiver: Receiver) -> float:
    """Of a training sample, in a step of a few."""
    rows = min(config.training.batch_size, TIMED)
    batch = training_batch(EpisodeSource(config.task), config.splits.seeds("train"), range(rows), 0)
    codec, heads = Codec(config.codec, receiver).to(receiver.device), Heads(config, receiver).to(receiver.device)
    trainee = CodecLoss(config, codec, heads, receiver)

    def step() -> float:
        trainee(batch, config.codec.k, 0, False)[0].backward()
        return float(torch.nn.utils.clip_grad_norm_(trainee.parameters(), config.training.grad_clip))

    return measure_seconds(receiver, step) / rows


def measure_seconds(receiver: Receiver, act: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few, after one that warms up: of processor time, which other work on the machine
    does not add to; of a GPU the clock's.
    """
    clock = time.process_time if receiver.device.type == "cpu" else time.perf_counter
    act()
    spent = []
    for _ in range(TIMES):
        started = clock()
        act()
        spent.append(clock() - started)
    return min(spent)
