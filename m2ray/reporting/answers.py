"""Single answers of the judged runs for the page's viewer, and shares of answers that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from m2ray.config.condition_names import TABLE_ORDER
from m2ray.evaluation.rows import FAILED
from m2ray.judging.criteria import answers_share
from m2ray.reporting.leaderboard import JudgedRun
from m2ray.util.tables import Table
from m2ray.util.text import percent

VIEWED = ("normal", "shuffle", "near", "P0", "P1")  # conditions in the viewer
MAX_EPISODES, MAX_RUNS = 100, 6  # in the viewer; a larger page would be slow to load
UNREADABLE = ("unparsed", "truncated")


def sampled_answers(runs: Sequence[JudgedRun]) -> list[dict[str, Any]]:
    """Return the answers of the first episodes, one run of each configuration.

    Each has `run`, and `answers`: lists of episode, condition, answer, and 1 where it is right.
    """
    first = {run.config: run for run in reversed(runs)}
    shown = [first[config] for config in dict.fromkeys(run.config for run in runs)][:MAX_RUNS]
    return [
        {"run": f"{run.config}, seed {run.seed}, split {run.split}", "answers": _answers(run.rows)}
        for run in shown
    ]


def _answers(rows: pd.DataFrame) -> list[list[Any]]:
    episodes = sorted(rows.episode[rows.condition == "normal"].unique())[:MAX_EPISODES]
    own = rows[rows.episode.isin(episodes) & rows.condition.isin(VIEWED)]
    own = own.assign(order=own.condition.map(VIEWED.index)).sort_values(["episode", "order"])
    columns = zip(own.episode, own.condition, own.answer, own.success, strict=True)
    return [
        [int(episode), condition, str(answer), int(success)] for episode, condition, answer, success in columns
    ]


def unreadable_table(rows: pd.DataFrame) -> Table:
    """Return the shares of answers that cannot be parsed, and that are cut off, under each condition."""
    present = set(rows.condition) - {FAILED}
    table = [["Condition", "Answers", "Unparsed", "Truncated"]]
    for name in (name for name in TABLE_ORDER if name in present):
        shares = [answers_share(rows, name, column) for column in UNREADABLE]
        cells = ["unknown" if share is None else percent(share) for share in shares]
        table.append([name, str((rows.condition == name).sum()), *cells])
    return table
