"""Measure whether a receiver is fit for a task: `m2ray.evaluate --receiver R --task TASK.yaml --episodes A:B`.

A sweep measures it before anything is trained, on its search split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from m2ray.config.gate_file import GateConfig, load_gate
from m2ray.config.task import TaskConfig, parse_seeds
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.runner import evaluate
from m2ray.judging.criteria import MIN_CLUSTERS, answers_share, clusters_text, judge_criterion
from m2ray.judging.row_arms import RowArms, count_successes
from m2ray.judging.statistics import ALPHA, wilson
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.text_source import TextSource
from m2ray.tasks.episodes import AnyEpisode, episode_name
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import read_yaml, validate
from m2ray.util.tables import markdown
from m2ray.util.text import percent, pluralize

NEEDED = ("P0", "P1")
PART = "search"  # messages of this part: measuring a receiver must not look at those of confirm


def measure_fitness(
    receiver: str | None, task: str | None, seeds: str | None, conditions: str | None
) -> pd.DataFrame:
    """Run a receiver without a codec, print what a gate would need to know of it, and return the rows.

    Args:
        receiver: Its name.
        task: A YAML file with a `TaskConfig`.
        seeds: Episode seeds A:B, end excluded.
        conditions: Comma-separated names. Default: P0 and P1.

    Raises:
        UserError: an option is missing or wrong, or a condition needs a codec.
    """
    for option, value in {"receiver": receiver, "task": task, "episodes": seeds}.items():
        if value is None:
            raise UserError(f"--{option}: missing; without a checkpoint give --receiver, --task and --episodes")
    assert receiver is not None
    assert task is not None
    assert seeds is not None
    names = list(dict.fromkeys((conditions or "P0,P1").split(",")))
    for name in names:
        if get_condition(name).depends_on != "receiver":
            raise UserError(f"--conditions: {name}: needs a checkpoint; leave it out, or name a checkpoint")
    try:
        chosen = parse_seeds(seeds)
    except ValueError as error:
        raise UserError(f"--episodes: {error}") from None
    loaded, settings = load_receiver(receiver), EvaluationConfig()
    episodes = _episodes(_load_task(Path(task)), chosen)
    rows = evaluate(loaded, episodes, PART, names, settings)
    print(markdown(_table(rows, names)))
    lines = _long_answers(loaded, episodes, settings.max_new_tokens)
    if {"P0", "P1"} <= set(names):
        lines += _validity(rows)
    print("\n".join(lines))
    return rows


def _load_task(path: Path) -> TaskConfig:
    """Read a task, which may stand below the key `task`, as it does in a space."""
    tree = read_yaml(path)
    if set(tree) == {"task"}:
        return validate(TaskConfig, tree["task"], f"{path}: task")
    return validate(TaskConfig, tree, str(path))


def _episodes(task: TaskConfig, seeds: Sequence[int]) -> Sequence[AnyEpisode]:
    """Return the episodes of some seeds without those that are shown, solved, before every prompt.

    Raises:
        UserError: no others are left.
    """
    source = open_source(task)
    shown = source.shown_lines().intersection(seeds) if isinstance(source, TextSource) else set()
    if len(shown) == len(seeds):
        raise UserError(
            f"--episodes {seeds[0]}:{seeds[-1] + 1}: all of these lines are shown solved before every prompt "
            "(task.examples); name more lines"
        )
    if shown:
        lines = ", ".join(str(line + 1) for line in sorted(shown))
        print(f"left out, since task.examples shows them solved before every prompt: {task.file}: line {lines}")
    return source.get([seed for seed in seeds if seed not in shown], PART)


def fitness_line(rows: pd.DataFrame) -> str:
    """Return what a receiver solves without a message and with its text: `P0 34.4%, P1 95.3% of 64 episodes`."""
    counts = count_successes(rows)
    shares = ", ".join(f"{name} {percent(solved / n)}" for name, (solved, n) in counts.items() if name in NEEDED)
    return f"{shares} of {counts['P1'][1]} episodes"


def why_unfit(rows: pd.DataFrame, gate: GateConfig) -> str:
    """Return why the verdict on every codec would be INVALID SETTING; empty if that is not certain.

    P0 and P1 of a few episodes are uncertain: what counts is that even the favorable bound of the interval does
    not meet a criterion of the gate.

    Args:
        rows: Rows of the receiver under P0 and P1.
        gate: The gate.
    """
    arms = RowArms(rows[rows.condition.isin(NEEDED)])
    independent = round(arms.independent)
    if independent < MIN_CLUSTERS:
        return ""
    for criterion in gate.criteria:
        if criterion.gate != "validity" or not set(criterion.conditions) <= set(NEEDED):
            continue
        if criterion.kind == "exceeds":
            contrast, needed = arms.contrast(criterion.condition, str(criterion.against)), 100 * criterion.margin
            if (high := 100 * contrast.high(gate.alpha)) < needed:
                return (
                    f"'{criterion.name}' cannot hold: {fitness_line(rows)}, a difference of "
                    f"{100 * contrast.value:+.1f} points, at most {high:+.1f}; it needs {needed:+.1f}"
                )
        elif criterion.kind == "at_most" and criterion.column is not None:
            share = answers_share(rows, criterion.condition, criterion.column)
            if share is not None and wilson(round(share * independent), independent).low > criterion.at_most:
                return (
                    f"'{criterion.name}' cannot hold: {percent(share)} of the answers with the full text are "
                    f"{criterion.column}, of {percent(criterion.at_most)} allowed"
                )
    return ""


def _table(rows: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    arms = RowArms(rows)
    table = [["condition", "n", "success %", "95 % CI", "truncated", "unparsed"]]
    for name in names:
        part = rows[rows.condition == name]
        low, high = arms.interval(name, ALPHA)
        shares = [answers_share(rows, name, column) for column in ("truncated", "unparsed")]
        table.append(
            [
                name,
                f"{len(part)} of {clusters_text(arms)}" if arms.clusters else str(len(part)),
                f"{100 * part.success.mean():.1f}",
                f"[{100 * low:.1f}, {100 * high:.1f}]",
                *("-" if share is None else percent(share) for share in shares),
            ]
        )
    return table


def _long_answers(receiver: Receiver, episodes: Sequence[AnyEpisode], limit: int) -> list[str]:
    """Return a line if B's answers are too short to hold a right answer."""
    lengths = receiver.answer_lengths(episodes)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] <= limit:
        return []
    count = sum(length > limit for length in lengths)
    return [
        f"FAIL: answers have space: {pluralize(count, 'right answer')} of {len(lengths)} with more than {limit} "
        f"tokens, the longest of episode {episode_name(episodes[longest])} with {lengths[longest]}; shorten them, "
        "or set evaluation.max_new_tokens in a space"
    ]


def _validity(rows: pd.DataFrame) -> list[str]:
    """Return what the default gate's criteria on P0 and P1 find."""
    gate, arms = load_gate(), RowArms(rows[rows.condition.isin(NEEDED)])
    if (arms.clusters or arms.episodes) < 2:
        return ["FAIL: enough episodes: intervals need two episodes or groups at least; name more"]
    lines = []
    for criterion in gate.criteria:
        if criterion.gate != "validity" or criterion.kind not in ("exceeds", "power"):
            continue
        if criterion.kind == "power" and arms.rate("P1") - arms.rate("P0") <= criterion.margin:
            lines.append(f"FAIL: {criterion.name}: no number is enough as long as the text helps so little")
            continue
        found = judge_criterion(criterion, arms, gate.alpha, gate.alpha)
        lines.append(f"{found.status}: {criterion.name}: {found.sentence}")
    return lines
