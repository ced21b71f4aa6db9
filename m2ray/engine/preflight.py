# NEWDOC
"""Before anything is trained: whether a sweep can be run and judged, and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.codec.codec import Codec
from m2ray.config.gate_file import GateConfig
from m2ray.config.plan import Plan
from m2ray.diagnosis.messages import check_messages
from m2ray.engine.cost import count_work, estimate_minutes
from m2ray.engine.jobs import EVALUATION_SPLITS
from m2ray.evaluation.conditions import derangement
from m2ray.evaluation.runner import check_no_leak
from m2ray.receiver.episode_source import EpisodeSource, check_receiver_seeds
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode
from m2ray.training.trackers import check_installed
from m2ray.training.trainer import load_start_weights
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

SCALE_TOLERANCE = 2.0  # how many times too large or small a scale is worth a word


REPORTED = ("normal", "null", "shuffle", "P0")  # what score and reports compare, whatever the gate


def check_plan(plan: Plan, gate: GateConfig) -> None:
    """Refuse now what would otherwise fail in every trial, or after the last one.

    Raises:
        UserError: a tracker is not installed, a condition that is judged is not played, a number of slots exceeds
            the receiver's context, a checkpoint to start from does not fit, the receiver lacks words of the level,
            a split has too few different messages, overlaps what codec or receiver are trained on, or B's prompt
            leaks the message.
    """
    example, file = plan.example, plan.file
    check_installed(example.trackers)
    played = example.evaluation.condition_names
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
                load_start_weights(Path(start), Codec(codec, receiver), config, receiver)
        check_receiver_seeds(example, receiver)
        source = EpisodeSource(example.task)
        receiver.answer_frame(source.level)  # refuses a level whose words the receiver does not know
        source.check_disjoint(example.splits)
        for split in EVALUATION_SPLITS:
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

    try:
        check_messages(plan.example, receiver, plan.space.judge.diagnose)
    except UserError as error:
        raise UserError(f"judge.diagnose: {error}") from None


def plan_notes(plan: Plan, receiver: Receiver, episodes: Sequence[Episode]) -> list[str]:
    """What is valid in a space and yet seldom meant, judged by a few of its messages."""
    reading = receiver.encode_messages([episode.message for episode in episodes])
    lengths_B = reading.mask_BT.sum(1)
    shortest, longest = int(lengths_B.min()), int(lengths_B.max())
    norm = float(reading.first_BTD[reading.mask_BT].float().norm(dim=-1).mean()) / receiver.embedding_norm
    codecs = dict.fromkeys(config.codec for config in plan.all)
    said = []
    for codec in codecs:
        if codec.k > shortest:
            said.append(f"codec.k {codec.k} is more than the {shortest} to {longest} tokens of a message as text")
        off = codec.scale_gate / norm
        if codec.start == "states" and not 1 / SCALE_TOLERANCE < off < SCALE_TOLERANCE:
            said.append(
                f"codec.scale_gate {codec.scale_gate:g}: with codec.start: states slots start as states that have "
                f"{norm:.0f} times an embedding's norm here, and are cut to this; set it near {norm:.0f}"
            )
    return list(dict.fromkeys(said))


def print_plan(plan: Plan, gate: GateConfig, root: Path) -> None:
    """Print cells, cost and checks of a sweep that `check` has passed."""
    space, example, work = plan.space, plan.example, count_work(plan)
    sizes = {split: len(example.splits.seeds(split)) for split in EVALUATION_SPLITS}
    receiver = load_receiver(example.receiver)
    episodes = EpisodeSource(example.task).get(example.splits.seeds("search")[:50], "search")
    weights = sum(p.numel() for p in receiver.model.parameters())
    tokens = receiver.layout(episodes, example.codec.k).ids_BT.shape[1]
    # 2 operations a weight and token forward and 2 backward (to activations only), right and wrong message.
    operations = (work.samples * 8 + work.answers * 4) * tokens * weights
    training, evaluation = estimate_minutes(plan, receiver)
    print(f"{space.name}: {space.about}")
    print(f"  writes to        {root}")
    taught = f", taught level {receiver.card['level']}" if "level" in receiver.card else ""
    print(
        f"  receiver         {receiver.name}, {weights / 1e6:.1f} M parameters, digest {receiver.digest}{taught}"
    )
    print(f"  task             level {example.task.level}")
    print(f"  configurations   {pluralize(len(plan.points), 'point')} + {space.search.trials} sampled")
    for name in plan.points:
        print(f"    point          {name}")
    for key, axis in space.axes.items():
        kind = axis.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)
        print(f"    axis           {key}: {', '.join(f'{name} {values}' for name, values in kind.items())}")
    print(
        f"  training         x {pluralize(len(space.search.seeds), 'seed')}, {work.samples:,} samples, "
        f"{work.reports} checkpoints, pruner {space.search.pruner}"
    )
    print(f"  episodes         {', '.join(f'{split} {size}' for split, size in sizes.items())}")
    print(f"  judged by        gate {gate.name}, {len(gate.criteria)} criteria")
    print(f"  conditions       {', '.join(example.evaluation.condition_names)}")
    print(f"  evaluation       at most {work.answers:,} answers to decode, in {work.jobs} jobs")
    if work.diagnoses:
        print(f"  diagnosis        {pluralize(work.diagnoses, 'codec')} on {space.judge.diagnose} messages each")
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
    for note in plan_notes(plan, receiver, episodes):
        print(f"  note             {note}")
