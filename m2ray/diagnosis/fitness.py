"""Measure whether a receiver is fit for a task: `m2ray.evaluate --receiver R --task TASK.yaml --episodes A:B`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from m2ray.config.gate_file import load_gate
from m2ray.config.trial import EvaluationConfig, TaskConfig, parse_seeds
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.runner import evaluate
from m2ray.judging.arms import CountArms, count_successes
from m2ray.judging.criteria import judge_criterion
from m2ray.judging.statistics import wilson
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml
from m2ray.util.tables import markdown
from m2ray.util.text import percent

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
    names = (conditions or "P0,P1").split(",")
    for name in names:
        if get_condition(name).depends_on != "receiver":
            raise UserError(f"--conditions: {name}: needs a checkpoint; leave it out, or name a checkpoint")
    try:
        chosen = parse_seeds(seeds)
    except ValueError as error:
        raise UserError(f"--episodes: {error}") from None
    source = EpisodeSource(load_yaml(TaskConfig, Path(task)))
    rows = evaluate(load_receiver(receiver), source.get(chosen, PART), PART, names, EvaluationConfig())
    print(markdown(_table(rows, names)))
    if {"P0", "P1"} <= set(names):
        print("\n".join(_validity(rows)))
    return rows


def _table(rows: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    table = [["condition", "n", "success %", "95 % CI", "truncated", "unparsed"]]
    for name in names:
        part = rows[rows.condition == name]
        low, high = wilson(int(part.success.sum()), len(part))
        table.append(
            [
                name,
                str(len(part)),
                f"{100 * part.success.mean():.1f}",
                f"[{100 * low:.1f}, {100 * high:.1f}]",
                percent(float(part.truncated.mean())),
                percent(float(1 - part.parsed.mean())),
            ]
        )
    return table


def _validity(rows: pd.DataFrame) -> list[str]:
    """Return what the default gate's criteria on P0 and P1 find."""
    gate, arms = load_gate(), CountArms(count_successes(rows))
    lines = []
    for criterion in gate.criteria:
        if criterion.gate == "validity" and criterion.kind in ("exceeds", "power"):
            found = judge_criterion(criterion, arms, gate.alpha, gate.alpha)
            lines.append(f"{found.status}: {criterion.name}: {found.sentence}")
    return lines
