"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from m2ray.config.gate_file import GateConfig
from m2ray.evaluation.rows import FAILED, judged_rows
from m2ray.judging import statistics as stats
from m2ray.judging.gate import FAIL, PASS, Verdict, holm_corrected, judge, success_rate
from m2ray.judging.selection import paired_gain
from m2ray.util.errors import UserError

SPLITS = ("confirm", "select", "search")  # most telling first


NOT_CONFIRMED, INCOMPLETE, FAILED_RUN = "not confirmed", "incomplete", "failed"


ORDER = (PASS, FAIL, NOT_CONFIRMED, INCOMPLETE, FAILED_RUN)


SHOWN = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "matched")


RETENTION = ("retention", "retention_ci_low", "retention_ci_high")


RESULTS = ("normal_ci_low", "normal_ci_high", *SHOWN, *RETENTION, "gate1", "gate2")


class JudgedRun:
    """One configuration and training seed, on the most telling split it was played on."""

    def __init__(self, rows: pd.DataFrame, config: str, seed: int) -> None:
        own = rows[(rows.config == config) & (rows.seed == seed)]
        self.config, self.seed = config, seed
        self.split = next((s for s in SPLITS if (own.split == s).any()), str(own.split.iloc[0]))
        self.rows = judged_rows(rows, config, seed, self.split)
        self.k = int(own.k.iloc[0])
        self.checkpoint = str(self.rows[self.rows.config != ""].checkpoint.iloc[0])
        self.params: dict[str, Any] = json.loads(own.params.iloc[0] or "{}")
        self.score, self.fault = math.nan, ""
        self.verdict: Verdict | None = None
        try:
            if (own.split == "search").any():
                self.score = paired_gain(judged_rows(rows, config, seed, "search"))
        except UserError as error:
            self.fault = str(error)

    def judge(self, gate: GateConfig) -> None:
        """Give the verdict, or say what is missing."""
        try:
            self.verdict = judge(self.rows, gate)
        except UserError as error:
            self.fault = str(error)

    def reason(self, ranking: Sequence[float]) -> str:
        """Why the verdict is what it is; of a configuration that was not confirmed, also why not."""
        if self.verdict is None:
            return self.fault
        if self.split == "confirm":
            return self.verdict.reason
        where = {"search": "not selected", "select": "others did better on select"}.get(
            self.split, f"played on {self.split} only"
        )
        if self.score in ranking:
            where += (
                f" (score {self.score:+.3f} nats, {ranking.index(self.score) + 1} of {len(ranking)} on search)"
            )
        return f"{where}; {self.verdict.reason}"


def judge_runs(rows: pd.DataFrame, gate: GateConfig) -> list[JudgedRun]:
    """Every (configuration, seed) that has outcomes, judged; those of one split are Holm-corrected together.

    Raises:
        UserError: none can be judged.
    """
    failed = set(rows[rows.condition == FAILED].config)
    played = rows[(rows.config != "") & ~rows.config.isin(failed)]
    cells = played[["config", "seed"]].drop_duplicates().sort_values(["config", "seed"])
    attempts = [JudgedRun(rows, config, seed) for config, seed in cells.itertuples(index=False, name=None)]
    for attempt in attempts:
        attempt.judge(gate)
    for split in {attempt.split for attempt in attempts}:
        group = [(a, a.verdict) for a in attempts if a.split == split and a.verdict is not None]
        corrected = holm_corrected([verdict for _, verdict in group], gate.alpha)
        for (attempt, _), verdict in zip(group, corrected, strict=True):
            attempt.verdict = verdict
    if attempts and not failed and all(attempt.verdict is None for attempt in attempts):
        raise UserError(attempts[0].fault)
    return attempts


def make_leaderboard(rows: pd.DataFrame, attempts: Sequence[JudgedRun], gate: GateConfig) -> pd.DataFrame:
    """One line a configuration and training seed; passes first, then by search score.

    A verdict of PASS or FAIL is given on the confirm split only. A configuration that failed has one line.
    """
    ranking = sorted((a.score for a in attempts if not math.isnan(a.score)), reverse=True)
    lines = []
    for attempt in attempts:
        line: dict[str, Any] = {"config": attempt.config, "seed": attempt.seed, "k": attempt.k}
        line |= attempt.params
        line |= {"split": attempt.split, "score": round(attempt.score, 4), "reason": attempt.reason(ranking)}
        line |= {"checkpoint": attempt.checkpoint, "verdict": INCOMPLETE}
        if verdict := attempt.verdict:
            counts = verdict.counts
            low, high = stats.wilson(*counts["normal"], gate.alpha)
            kept = verdict.retention or stats.Estimate(math.nan, math.nan, math.nan)
            line |= {"n": counts["normal"][1], "normal_ci_low": round(low, 4), "normal_ci_high": round(high, 4)}
            line |= {name: round(success_rate(counts[name]), 4) for name in SHOWN if name in counts}
            line |= {name: round(value, 4) for name, value in zip(RETENTION, kept, strict=True)}
            line |= {"gate1": verdict.gate("gate1"), "gate2": verdict.gate("gate2")}
            line["verdict"] = verdict.verdict if attempt.split == "confirm" else NOT_CONFIRMED
        lines.append(line)
    for failed in rows[rows.condition == FAILED].drop_duplicates("config").itertuples():
        reason = " ".join(failed.answer.split())
        lines.append({"config": failed.config, "k": failed.k, "verdict": FAILED_RUN, "reason": reason})
    if not lines:
        raise UserError("rows: no configuration has any outcome; run the sweep first")
    params = list(dict.fromkeys(key for attempt in attempts for key in attempt.params))
    columns = ["config", "seed", "k", *params, "split", "n", "score", *RESULTS, "verdict", "reason", "checkpoint"]
    board = pd.DataFrame(lines).reindex(columns=columns).astype({"seed": "Int64", "k": "Int64", "n": "Int64"})
    keys = board[["config", "seed"]].assign(rank=board.verdict.map(ORDER.index), worst=-board.score.astype(float))
    order = keys.sort_values(["rank", "worst", "config", "seed"], kind="stable").index
    return board.loc[order].reset_index(drop=True)


def display_cells(board: pd.DataFrame) -> list[dict[str, str]]:
    """The board for people: shares in percent, the interval of normal, figures that are missing left blank."""

    def text(value: Any, form: str = "{}") -> str:
        return "" if pd.isna(value) else form.format(value)

    def share(value: Any) -> str:
        return "" if pd.isna(value) else f"{100 * value:.1f}"

    shown = []
    for line in board.to_dict("records"):
        low, high = share(line["normal_ci_low"]), share(line["normal_ci_high"])
        shown.append(
            {
                "config": str(line["config"]),
                "seed": text(line["seed"]),
                "k": text(line["k"]),
                "split": text(line["split"]),
                "n": text(line["n"]),
                "normal %": share(line["normal"]),
                "95 % CI": f"[{low}, {high}]" if low else "",
                **{name: share(line[name]) for name in ("null", "random", "shuffle", "P0", "P1", "constant")},
                "retention": text(line["retention"], "{:.2f}"),
                "score": text(line["score"], "{:+.3f}"),
                "verdict": str(line["verdict"]),
            }
        )
    return shown


def reasons(board: pd.DataFrame) -> list[str]:
    """A sentence for every line of the board."""
    several = board.duplicated("config", keep=False)
    return [
        f"{line.config}{f', seed {line.seed}' if again else ''}: {line.verdict}: {line.reason}"
        for line, again in zip(board.itertuples(), several, strict=True)
    ]


def leaderboard_text(board: pd.DataFrame, style: str) -> str:
    """The board as a table in one of tabulate's styles."""
    from tabulate import tabulate

    return tabulate(display_cells(board), headers="keys", tablefmt=style, disable_numparse=True)


def print_leaderboard(board: pd.DataFrame) -> None:
    """The board and its reasons on the terminal."""
    print("\n" + leaderboard_text(board, "simple") + "\n")
    print("\n".join(reasons(board)))


def legend(board: pd.DataFrame, gate: GateConfig) -> list[str]:
    """What the columns mean, and what this many episodes can show."""
    lines = [
        "Success in percent of n episodes; the interval is Wilson's, 95 %. `score` is what the searcher saw: nats "
        "per answer value that the right message is worth over no message or a wrong one, whichever is less, on "
        "the search split. `retention` is (normal - P0) / (P1 - P0). `constant` is the best content-free prefix: "
        "what mere priming can reach.",
        f"PASS and FAIL are given on the confirm split only, by gate `{gate.name}`, with the tests Holm-corrected "
        "over all configurations judged there. PASS: B solves more with this message than without or with a "
        "wrong one, by the margins of the gate, on messages never seen in training. It does not say that the "
        "codec beats text, nor that it works on another receiver or task.",
    ]
    if board.n.notna().any():
        n, discordant = int(board.n.max()), 0.3
        found = 100 * stats.minimum_detectable_difference(n, discordant)
        lines.append(
            f"At n = {n}, a paired difference of {found:.1f} points is found with a chance of 80 % (one-sided "
            f"McNemar, 5 % before Holm, {100 * discordant:.0f} % of episodes discordant); a lower bound of 30 % "
            f"takes {stats.successes_needed(n, 0.3)} successes."
        )
    return lines
