"""Before anything is trained: whether a sweep can be run and judged, and what it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m2ray import trackers
from m2ray.board import counted
from m2ray.codec import Codec
from m2ray.command import UserError
from m2ray.conditions import Injection, condition, derangement
from m2ray.config import TrialConfig
from m2ray.criteria import GateConfig
from m2ray.evaluation import check_no_leak, condition_names, play
from m2ray.jobs import SPLITS
from m2ray.loading import load_receiver
from m2ray.losses import Heads
from m2ray.receiver import Receiver
from m2ray.schedule import draw_batch
from m2ray.source import Source, check_receiver_seeds
from m2ray.space import Plan
from m2ray.task import Episode
from m2ray.trainee import Trainee
from m2ray.training import begin_from

OFF = 2.0  # how many times too large or small a scale is worth a word
TIMED, TIMES = 64, 3  # rows, at most, of the step and of the batch that a dry run times; times it does
# Of a message: what its diagnosis costs (conditions decoded and scored, probe messages, free vectors), what a
# report's score on the search split costs, in answers to decode.
DIAGNOSED, SCORED = 25, 2
REPORTED = ("normal", "null", "shuffle", "P0")  # what score and reports compare, whatever the gate


def check(plan: Plan, gate: GateConfig) -> None:
    """Refuse now what would otherwise fail in every trial, or after the last one.

    Raises:
        UserError: a tracker is not installed, a condition that is judged is not played, a number of slots exceeds
            the receiver's context, a checkpoint to start from does not fit, the receiver lacks words of the level,
            a split has too few different messages, overlaps what codec or receiver are trained on, or B's prompt
            leaks the message.
    """
    example, file = plan.example, plan.file
    trackers.check(example.trackers)
    played = condition_names(example.evaluation)
    for name in dict.fromkeys([*REPORTED, *gate.conditions]):
        if name not in played:
            raise UserError(
                f"{file}: trial.evaluation.conditions: lacks {name}, which gate {gate.name} and the score "
                "compare; add it"
            )
    try:
        receiver = load_receiver(example.receiver)
        for config in plan.all:
            if config.codec.k + 1 >= receiver.max_positions:
                raise UserError(
                    f"codec.k: {config.codec.k} slots exceed the context of {receiver.name}, "
                    f"{receiver.max_positions}; use fewer"
                )
        # One of each codec: reading a checkpoint takes its time, and other settings do not matter to it.
        starts = {(c.training.start, c.codec): c for c in plan.all}
        for (start, codec), config in starts.items():
            if start:
                begin_from(Path(start), Codec(codec, receiver), config, receiver)
        check_receiver_seeds(example, receiver)
        source = Source(example.task)
        receiver.frame(source.level)  # refuses a level whose words the receiver does not know
        source.check_disjoint(example.splits)
        for split in SPLITS:
            episodes = source.get(example.splits.seeds(split), split)
            derangement(episodes)
            check_no_leak(receiver, episodes)
        if plan.space.judge.diagnose:
            check_diagnosis(plan, receiver)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def check_diagnosis(plan: Plan, receiver: Receiver) -> None:
    """Refuse a number of messages on which no diagnosis can be made.

    Raises:
        UserError: too few.
    """
    from m2ray import diagnose

    try:
        diagnose.check(plan.example, receiver, plan.space.judge.diagnose)
    except UserError as error:
        raise UserError(f"judge.diagnose: {error}") from None


class Work(NamedTuple):
    """Totals over all configurations and training seeds; where an axis decides, of its dearest value."""

    samples: int  # training samples
    reports: int  # epochs, each with a checkpoint
    jobs: int  # of evaluators
    answers: int  # answers to decode
    diagnoses: int  # codecs


def dearest(plan: Plan) -> TrialConfig:
    """The sampled configuration that trains longest."""
    return max([plan.example, *plan.checked], key=lambda c: c.training.epochs * c.training.epoch_samples)


def work_of(plan: Plan) -> Work:
    """Count what a sweep has to do."""
    space, example = plan.space, plan.example
    seeds, trials = len(space.search.seeds), space.search.trials
    configs = [*plan.points.values(), *[dearest(plan)] * trials]
    samples = sum(c.training.epochs * c.training.epoch_samples for c in configs) * seeds
    reports = sum(c.training.epochs for c in configs) * seeds
    plays = {
        "search": reports,
        "select": seeds * min(space.judge.select, trials),
        "confirm": seeds * (len(plan.points) + min(space.judge.confirm, trials)),
    }
    depends = [condition(name).depends for name in condition_names(example.evaluation)]
    slots = len({(c.codec.k, c.codec.place) for c in plan.all})
    jobs = answers = 0
    for split in SPLITS:
        times = {"checkpoint": plays[split], "slots": min(slots, plays[split]), "receiver": min(1, plays[split])}
        jobs += sum(times.values())
        answers += len(example.splits.seeds(split)) * sum(times[kind] for kind in depends)
    diagnoses = 0
    if space.judge.diagnose:
        diagnoses = plays["confirm"] // (1 if space.judge.diagnose_seeds == "all" else seeds)
    return Work(samples, reports, jobs + diagnoses, answers, diagnoses)


def minutes(plan: Plan, receiver: Receiver) -> tuple[float, float]:
    """What training, and evaluation with diagnosis, take here, from a step and a batch timed; see `timed`."""
    space, example, work = plan.space, plan.example, work_of(plan)
    searched = example.splits.seeds("search")
    episodes = Source(example.task).get(searched[: min(TIMED, example.evaluation.batch_size)], "search")
    told = Injection([episode.message for episode in episodes], None, example.codec.place)
    answer = timed(receiver, lambda: play(receiver, episodes, told, example.evaluation)) / len(episodes)
    times = [(config, 1) for config in plan.points.values()]
    if space.search.trials:
        times.append((dearest(plan), space.search.trials))
    training = work.reports * SCORED * len(searched) * answer
    for config, number in times:
        samples = len(space.search.seeds) * number * config.training.epochs * config.training.epoch_samples
        training += samples * seconds_a_sample(config, receiver)
    answers = work.answers + work.diagnoses * DIAGNOSED * space.judge.diagnose
    return training / 60, answers * answer / 60


def seconds_a_sample(config: TrialConfig, receiver: Receiver) -> float:
    """Of a training sample, in a step of a few."""
    rows = min(config.training.batch_size, TIMED)
    batch = draw_batch(Source(config.task), config.splits.seeds("train"), range(rows), 0)
    codec, heads = Codec(config.codec, receiver).to(receiver.device), Heads(config, receiver).to(receiver.device)
    trainee = Trainee(config, codec, heads, receiver)

    def step() -> float:
        trainee(batch, config.codec.k, 0, False)[0].backward()
        return float(torch.nn.utils.clip_grad_norm_(trainee.parameters(), config.training.grad_clip))

    return timed(receiver, step) / rows


def notes(plan: Plan, receiver: Receiver, episodes: Sequence[Episode]) -> list[str]:
    """What is valid in a space and yet seldom meant, judged by a few of its messages."""
    reading = receiver.read([episode.message for episode in episodes])
    lengths_B = reading.mask_BT.sum(1)
    shortest, longest = int(lengths_B.min()), int(lengths_B.max())
    norm = float(reading.first_BTD[reading.mask_BT].float().norm(dim=-1).mean()) / receiver.embedding_norm
    codecs = dict.fromkeys(config.codec for config in plan.all)
    said = []
    for codec in codecs:
        if codec.k > shortest:
            said.append(f"codec.k {codec.k} is more than the {shortest} to {longest} tokens of a message as text")
        off = codec.scale_gate / norm
        if codec.start == "states" and not 1 / OFF < off < OFF:
            said.append(
                f"codec.scale_gate {codec.scale_gate:g}: with codec.start: states slots start as states that have "
                f"{norm:.0f} times an embedding's norm here, and are cut to this; set it near {norm:.0f}"
            )
    return list(dict.fromkeys(said))


def timed(receiver: Receiver, act: Callable[[], Any]) -> float:
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


def print_plan(plan: Plan, gate: GateConfig, root: Path) -> None:
    """Print cells, cost and checks of a sweep that `check` has passed."""
    space, example, work = plan.space, plan.example, work_of(plan)
    sizes = {split: len(example.splits.seeds(split)) for split in SPLITS}
    receiver = load_receiver(example.receiver)
    episodes = Source(example.task).get(example.splits.seeds("search")[:50], "search")
    weights = sum(p.numel() for p in receiver.model.parameters())
    tokens = receiver.layout(episodes, example.codec.k).ids_BT.shape[1]
    # 2 operations a weight and token forward and 2 backward (to activations only), right and wrong message.
    operations = (work.samples * 8 + work.answers * 4) * tokens * weights
    training, evaluation = minutes(plan, receiver)
    print(f"{space.name}: {space.about}")
    print(f"  writes to        {root}")
    taught = f", taught level {receiver.card['level']}" if "level" in receiver.card else ""
    print(
        f"  receiver         {receiver.name}, {weights / 1e6:.1f} M parameters, digest {receiver.digest}{taught}"
    )
    print(f"  task             level {example.task.level}")
    print(f"  configurations   {counted(len(plan.points), 'point')} + {space.search.trials} sampled")
    for name in plan.points:
        print(f"    point          {name}")
    for key, axis in space.axes.items():
        kind = axis.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)
        print(f"    axis           {key}: {', '.join(f'{name} {values}' for name, values in kind.items())}")
    print(
        f"  training         x {counted(len(space.search.seeds), 'seed')}, {work.samples:,} samples, "
        f"{work.reports} checkpoints, pruner {space.search.pruner}"
    )
    print(f"  episodes         {', '.join(f'{split} {size}' for split, size in sizes.items())}")
    print(f"  judged by        gate {gate.name}, {len(gate.criteria)} criteria")
    print(f"  conditions       {', '.join(condition_names(example.evaluation))}")
    print(f"  evaluation       at most {work.answers:,} answers to decode, in {work.jobs} jobs")
    if work.diagnoses:
        print(f"  diagnosis        {counted(work.diagnoses, 'codec')} on {space.judge.diagnose} messages each")
    print(f"  cost             about {operations:.1e} operations of the receiver, {tokens} tokens a row")
    unit = "core-minutes" if receiver.device.type == "cpu" else "minutes of one GPU"
    print(
        f"  time             about {training:.0f} {unit} of training, {evaluation:.0f} of evaluation and "
        "diagnosis: an estimate, from one step and one batch timed now"
    )
    print(
        "  checks           space valid; splits disjoint by seed and content, and from what the receiver learnt; "
        "B's tokens do not leak the message"
    )
    for note in notes(plan, receiver, episodes):
        print(f"  note             {note}")
