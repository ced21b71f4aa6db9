"""Check, before anything is trained, that a sweep can be run and judged; print what it will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from m2ray.codec.codec import Codec
from m2ray.config.gate_file import GateConfig
from m2ray.config.plan import Plan
from m2ray.config.task import EVALUATION_SPLITS
from m2ray.diagnosis.fitness import NEEDED, fitness_line, why_unfit
from m2ray.diagnosis.messages import check_messages
from m2ray.engine.cost.estimate import count_work, estimate_minutes
from m2ray.engine.jobs import receiver_job, run_evaluation
from m2ray.evaluation.conditions import check_runnable, derangement
from m2ray.evaluation.runner import check_no_leak
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_trial_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import AnyEpisode, episode_name
from m2ray.training.start_weights import check_layers, load_start_weights
from m2ray.training.trackers import check_installed
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

SCALE_TOLERANCE = 2.0  # a scale_gate too large or small by this factor gets a note
REPORTED = ("normal", "null", "shuffle", "P0")  # conditions that score and reports compare, whatever the gate
NOTED_EPISODES = 50  # episodes that notes and the tokens per row are taken from


# --- checks --------------------------------------------------------------------------------------------------


def check_plan(plan: Plan, gate: GateConfig) -> None:
    """Refuse now what would otherwise fail in every trial, or after the last one.

    Raises:
        UserError: a tracker is not installed, a judged condition is not run, a number of slots exceeds the
            receiver's context, a checkpoint to start from does not fit, the receiver lacks words of the level, a
            split has too few different messages or overlaps what codec or receiver are trained on, or B's prompt
            leaks the message.
    """
    example, file = plan.example, plan.file
    check_installed(example.trackers)
    needed = {("conditions", "search"): REPORTED, ("confirm_conditions", "confirm"): gate.required}
    for (key, split), names in needed.items():
        if lacking := [name for name in names if name not in example.conditions_on(split)]:
            raise UserError(
                f"{file}: trial.evaluation.{key}: lacks {lacking[0]}, which gate {gate.name} and the score "
                "compare; add it"
            )
    try:
        receiver = load_trial_receiver(example)
        _check_codecs(plan, receiver)
        _check_episodes(plan, receiver)
        check_answers(plan, receiver)
        if plan.diagnosed:
            check_diagnosis(plan, receiver)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _check_codecs(plan: Plan, receiver: Receiver) -> None:
    for config in plan.all:
        check_layers(config, receiver)
        open_channel(receiver, config.codec.channel, config.codec.channel_layers)
        if config.codec.k + 1 >= receiver.max_positions:
            raise UserError(
                f"codec.k: {config.codec.k} slots exceed the context of {receiver.name}, "
                f"{receiver.max_positions}; use fewer"
            )
    # Once per codec: reading a checkpoint takes time, and its other settings do not matter.
    starts = {(c.training.start, c.codec): c for c in plan.all}
    for (start, codec), config in starts.items():
        if start:
            load_start_weights(Path(start), Codec(codec, receiver), config, receiver)


def _check_episodes(plan: Plan, receiver: Receiver) -> None:
    example = plan.example
    source = open_source(example.task)
    source.check_disjoint(example.splits)
    source.check_receiver(receiver, example.splits)
    for split in EVALUATION_SPLITS:
        episodes = source.get(source.seeds(example.splits, split), split)
        receiver.reference_ids(episodes)  # refuses answers in words that the receiver does not know
        derangement(episodes)
        check_no_leak(receiver, episodes)
        runs = {(name, config.codec.k): None for config in plan.all for name in config.conditions_on(split)}
        for name, k in runs:
            check_runnable(name, episodes, k)


def check_answers(plan: Plan, receiver: Receiver) -> None:
    """Refuse a limit of new tokens that cuts the right answer off.

    Raises:
        UserError: names the tokens that it takes.
    """
    limit = plan.example.evaluation.max_new_tokens
    source = open_source(plan.example.task)
    episodes = source.without_sender(source.seeds(plan.example.splits, "search"), "search")
    lengths = receiver.answer_lengths(episodes)
    needed = max(lengths)
    if limit < needed:
        longest = episodes[lengths.index(needed)]
        file = plan.example.task.file
        of = f" of episode {episode_name(longest)} in {file}" if plan.example.task.is_text_file else ""
        raise UserError(
            f"evaluation.max_new_tokens: {limit} cuts off the right answer{of}, which takes {needed} tokens of "
            f"{receiver.name} with its end; raise it to {needed} or more"
        )


def measure_receiver(plan: Plan) -> pd.DataFrame:
    """Return the rows of the conditions that need no codec, on search; a sweep finds them in the cache."""
    job = receiver_job(plan.example, "search", Path())
    assert job is not None, "the gate needs P0 and P1"
    return run_evaluation(job)


class Unfit(UserError):
    """Raised for a receiver on which no codec can be judged."""


def check_fit(rows: pd.DataFrame, gate: GateConfig, receiver: str) -> None:
    """Refuse a receiver on which every codec would get the verdict INVALID SETTING.

    Raises:
        Unfit: says why.
    """
    if set(NEEDED) <= set(rows.condition) and (cause := why_unfit(rows, gate)):
        raise Unfit(
            f"receiver {receiver}: unfit for this task, so every verdict would be INVALID SETTING; {cause}; use "
            "another receiver, an easier level or other decoding"
        )


def check_diagnosis(plan: Plan, receiver: Receiver) -> None:
    """Refuse a number of messages on which no diagnosis can be made.

    Raises:
        UserError: there are too few.
    """
    try:
        check_messages(plan.example, receiver, plan.space.judge.diagnose)
    except UserError as error:
        raise UserError(f"judge.diagnose: {error}") from None


# --- the dry run ---------------------------------------------------------------------------------------------


def print_plan(plan: Plan, gate: GateConfig, root: Path) -> None:
    """Print configurations, cost and checks of a sweep that `check_plan` has passed.

    Raises:
        Unfit: no codec can be judged on the receiver.
    """
    example = plan.example
    receiver = load_trial_receiver(example)
    source = open_source(example.task)
    episodes = source.get(source.seeds(example.splits, "search")[:NOTED_EPISODES], "search")
    print(f"{plan.space.name}: {plan.space.about}")
    lines = [
        ("writes to", str(root)),
        *_search_lines(plan, receiver),
        *_judging_lines(plan, gate),
        *_cost_lines(plan, receiver, episodes),
        (
            "checks",
            "space valid; splits disjoint by seed and content, and from the receiver's training; B's tokens do "
            "not leak the message",
        ),
        *(("note", note) for note in plan_notes(plan, receiver, episodes)),
    ]
    for title, text in lines:
        print(f"  {title:<16} {text}")
    rows = measure_receiver(plan)
    print(f"  {'fitness':<16} {fitness_line(rows)} of the search split")
    check_fit(rows, gate, example.receiver)


def _search_lines(plan: Plan, receiver: Receiver) -> Iterator[tuple[str, str]]:
    space, work = plan.space, count_work(plan)
    trained = f", trained on level {receiver.card['level']}" if "level" in receiver.card else ""
    weights = _weights(receiver) / 1e6
    size = f"{weights:.1f} M parameters, {receiver.dtype_name}"
    yield "receiver", f"{receiver.name}, {size}, digest {receiver.digest}{trained}"
    yield "task", plan.example.task.name
    sampled = "of the grid" if space.search.sampler == "grid" else "sampled"
    fewer = (
        f", as the axes have no more ({space.search.trials} requested)"
        if plan.samples < space.search.trials
        else ""
    )
    yield "configurations", f"{pluralize(len(plan.points), 'point')} + {plan.samples} {sampled}{fewer}"
    for name in plan.points:
        yield "  point", name
    for key, axis in space.axes.items():
        kind = axis.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)
        shown = (f"{name} {f'{value:g}' if name == 'step' else value}" for name, value in kind.items())
        yield "  axis", f"{key}: {', '.join(shown)}"
    yield (
        "training",
        f"x {pluralize(len(space.search.seeds), 'seed')}, {work.samples:,} samples, {work.reports} checkpoints, "
        f"pruner {space.search.pruner}",
    )
    for name in ("max_hours", "max_core_hours"):
        if (limit := getattr(space.search, name)) is not None:
            yield "budget", f"{name} {limit:g}: then no new trial starts"


def _judging_lines(plan: Plan, gate: GateConfig) -> Iterator[tuple[str, str]]:
    example, work = plan.example, count_work(plan)
    source = open_source(example.task)
    sizes = {split: len(source.seeds(example.splits, split)) for split in EVALUATION_SPLITS}
    yield "episodes", ", ".join(f"{split} {size}" for split, size in sizes.items())
    yield "judged by", f"gate {gate.name}, {len(gate.criteria)} criteria"
    everywhere, confirm = (example.conditions_on(split) for split in ("search", "confirm"))
    yield "conditions", ", ".join(everywhere)
    yield "  confirm", "besides, " + ", ".join(name for name in confirm if name not in everywhere)
    yield "evaluation", f"at most {work.answers:,} answers to decode, in {work.jobs} jobs"
    if work.diagnoses:
        yield "diagnosis", f"{pluralize(work.diagnoses, 'codec')} on {plan.space.judge.diagnose} messages each"


def _cost_lines(plan: Plan, receiver: Receiver, episodes: Sequence[AnyEpisode]) -> Iterator[tuple[str, str]]:
    work, tokens = count_work(plan), receiver.layout(episodes, plan.example.codec.k).ids_BT.shape[1]
    # Per weight and token 2 operations forward and 2 backward (to activations only), for the right message and a
    # wrong one.
    operations = (work.samples * 8 + work.constant_samples * 4 + work.answers * 4) * tokens * _weights(receiver)
    training, evaluation = estimate_minutes(plan, receiver)
    unit = "core-minutes" if receiver.device.type == "cpu" else "minutes of one GPU"
    yield "cost", f"about {operations:.1e} operations of the receiver, {tokens} tokens per row"
    yield (
        "time",
        f"about {training:.0f} {unit} of training, {evaluation:.0f} of evaluation and diagnosis: an estimate, "
        "from one step and one batch timed now",
    )


def _weights(receiver: Receiver) -> int:
    return sum(parameter.numel() for parameter in receiver.model.parameters())


def plan_notes(plan: Plan, receiver: Receiver, episodes: Sequence[AnyEpisode]) -> list[str]:
    """Return notes on settings that are valid but seldom meant, judged by a few messages."""
    messages = receiver.encode_messages([episode.message for episode in episodes])
    lengths_B = messages.mask_BT.sum(1)
    shortest, longest = int(lengths_B.min()), int(lengths_B.max())
    norm = float(messages.first_BTD[messages.mask_BT].float().norm(dim=-1).mean()) / receiver.embedding_norm
    notes = []
    for codec in dict.fromkeys(config.codec for config in plan.all):
        if codec.k > shortest:
            notes.append(f"codec.k {codec.k} is more than the {shortest} to {longest} tokens of a message as text")
        ratio = codec.scale_gate / norm
        if codec.start == "states" and not 1 / SCALE_TOLERANCE < ratio < SCALE_TOLERANCE:
            notes.append(
                f"codec.scale_gate {codec.scale_gate:g}: with codec.start: states slots start as hidden states of "
                f"{norm:.0f} times an embedding's norm here, and are rescaled to this; set it near {norm:.0f}"
            )
    return list(dict.fromkeys(notes))
