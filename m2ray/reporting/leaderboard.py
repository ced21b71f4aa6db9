"""The leaderboard: one line for each configuration and training seed, with its verdict and the reason for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from m2ray.config.gate_file import GateConfig
from m2ray.evaluation.rows import FAILED, judged_rows
from m2ray.judging import statistics as stats
from m2ray.judging.gate import FAIL, PASS, Verdict, judge, success_rate
from m2ray.judging.holm import holm_corrected
from m2ray.judging.selection import paired_gain
from m2ray.util.errors import UserError

SPLITS = ("confirm", "select", "search")  # most conclusive first
NOT_CONFIRMED, INCOMPLETE, FAILED_RUN = "not confirmed", "incomplete", "failed"
ORDER = (PASS, FAIL, NOT_CONFIRMED, INCOMPLETE, FAILED_RUN)
SHOWN = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "matched")
RETENTION = ("retention", "retention_ci_low", "retention_ci_high")
RESULTS = ("normal_ci_low", "normal_ci_high", *SHOWN, *RETENTION, "gate1", "gate2")


class JudgedRun:
    """A training run (one configuration, one training seed), judged on the most conclusive split that it has.

    Attributes:
        config: The configuration's name.
        seed: Training seed.
        split: The split that it is judged on.
        rows: Its rows on that split, with the shared rows that they are paired with.
        k: Number of prefix vectors.
        checkpoint: Digest of the codec.
        params: The configuration's columns on the leaderboard.
        score: Gain on the search split in nats per answer value; NaN if it was not evaluated there.
        verdict: None until `judge` is called, or if a required row is missing.
        error: Why there is no score or no verdict; empty if both are there.
    """

    def __init__(self, rows: pd.DataFrame, config: str, seed: int) -> None:
        own = rows[(rows.config == config) & (rows.seed == seed)]
        self.config, self.seed = config, seed
        self.split = next((s for s in SPLITS if (own.split == s).any()), str(own.split.iloc[0]))
        self.rows = judged_rows(rows, config, seed, self.split)
        self.k = int(own.k.iloc[0])
        self.checkpoint = str(self.rows[self.rows.config != ""].checkpoint.iloc[0])
        self.params: dict[str, Any] = json.loads(own.params.iloc[0] or "{}")
        self.score, self.error = math.nan, ""
        self.verdict: Verdict | None = None
        try:
            if (own.split == "search").any():
                self.score = paired_gain(judged_rows(rows, config, seed, "search"))
        except UserError as error:
            self.error = str(error)

    def judge(self, gate: GateConfig) -> None:
        """Set the verdict, or the error if rows that the gate needs are missing."""
        try:
            self.verdict = judge(self.rows, gate)
        except UserError as error:
            self.error = str(error)

    def reason(self, ranking: Sequence[float]) -> str:
        """Return the reason for the verdict, and for a run without confirm rows also why it has none.

        Args:
            ranking: The search scores of all runs, highest first.
        """
        if self.verdict is None:
            return self.error
        if self.split == "confirm":
            return self.verdict.reason
        cause = {"search": "not selected", "select": "others did better on select"}.get(
            self.split, f"evaluated on {self.split} only"
        )
        if self.score in ranking:
            rank = ranking.index(self.score) + 1
            cause += f" (score {self.score:+.3f} nats, {rank} of {len(ranking)} on search)"
        return f"{cause}; {self.verdict.reason}"


def judge_runs(rows: pd.DataFrame, gate: GateConfig) -> list[JudgedRun]:
    """Judge every (configuration, seed) that has rows; Holm's correction covers all runs of a split.

    Configurations that failed are left out.

    Raises:
        UserError: No run can be judged.
    """
    failed = set(rows[rows.condition == FAILED].config)
    evaluated = rows[(rows.config != "") & ~rows.config.isin(failed)]
    cells = evaluated[["config", "seed"]].drop_duplicates().sort_values(["config", "seed"])
    runs = [JudgedRun(rows, config, seed) for config, seed in cells.itertuples(index=False, name=None)]
    for run in runs:
        run.judge(gate)
    for split in {run.split for run in runs}:
        family = [(run, run.verdict) for run in runs if run.split == split and run.verdict is not None]
        corrected = holm_corrected([verdict for _, verdict in family], gate.alpha)
        for (run, _), verdict in zip(family, corrected, strict=True):
            run.verdict = verdict
    if runs and not failed and all(run.verdict is None for run in runs):
        raise UserError(runs[0].error)
    return runs


def make_leaderboard(rows: pd.DataFrame, runs: Sequence[JudgedRun], gate: GateConfig) -> pd.DataFrame:
    """Return the leaderboard, a line for each judged run and each failed configuration.

    PASS and FAIL are given on the confirm split only. Lines are ordered by verdict, passes first, then by search
    score.

    Raises:
        UserError: There is no line.
    """
    ranking = sorted((run.score for run in runs if not math.isnan(run.score)), reverse=True)
    lines = [_run_line(run, ranking, gate) for run in runs]
    for failed in rows[rows.condition == FAILED].drop_duplicates("config").itertuples():
        reason = " ".join(failed.answer.split())
        lines.append({"config": failed.config, "k": failed.k, "verdict": FAILED_RUN, "reason": reason})
    if not lines:
        raise UserError("rows: no configuration has any outcome; run the sweep first")
    params = list(dict.fromkeys(key for run in runs for key in run.params))
    columns = ["config", "seed", "k", *params, "split", "n", "score", *RESULTS, "verdict", "reason", "checkpoint"]
    leaderboard = pd.DataFrame(lines).reindex(columns=columns)
    leaderboard = leaderboard.astype({"seed": "Int64", "k": "Int64", "n": "Int64"})
    keys = leaderboard[["config", "seed"]].assign(
        rank=leaderboard.verdict.map(ORDER.index), loss=-leaderboard.score.astype(float)
    )
    order = keys.sort_values(["rank", "loss", "config", "seed"], kind="stable").index
    return leaderboard.loc[order].reset_index(drop=True)


def _run_line(run: JudgedRun, ranking: Sequence[float], gate: GateConfig) -> dict[str, Any]:
    """Return a run's line of the leaderboard."""
    line: dict[str, Any] = {"config": run.config, "seed": run.seed, "k": run.k}
    line |= run.params
    line |= {"split": run.split, "score": round(run.score, 4), "reason": run.reason(ranking)}
    line |= {"checkpoint": run.checkpoint, "verdict": INCOMPLETE}
    if verdict := run.verdict:
        counts = verdict.counts
        low, high = stats.wilson(*counts["normal"], gate.alpha)
        retention = verdict.retention or stats.Estimate(math.nan, math.nan, math.nan)
        line |= {"n": counts["normal"][1], "normal_ci_low": round(low, 4), "normal_ci_high": round(high, 4)}
        line |= {name: round(success_rate(counts[name]), 4) for name in SHOWN if name in counts}
        line |= {name: round(value, 4) for name, value in zip(RETENTION, retention, strict=True)}
        line |= {"gate1": verdict.gate("gate1"), "gate2": verdict.gate("gate2")}
        line["verdict"] = verdict.verdict if run.split == "confirm" else NOT_CONFIRMED
    return line


def display_cells(leaderboard: pd.DataFrame) -> list[dict[str, str]]:
    """Return the leaderboard's lines for display, by column; rates in percent, missing values as empty text."""

    def text(value: Any, form: str = "{}") -> str:
        return "" if pd.isna(value) else form.format(value)

    def rate(value: Any) -> str:
        return "" if pd.isna(value) else f"{100 * value:.1f}"

    lines = []
    for line in leaderboard.to_dict("records"):
        low, high = rate(line["normal_ci_low"]), rate(line["normal_ci_high"])
        lines.append(
            {
                "config": str(line["config"]),
                "seed": text(line["seed"]),
                "k": text(line["k"]),
                "split": text(line["split"]),
                "n": text(line["n"]),
                "normal %": rate(line["normal"]),
                "95 % CI": f"[{low}, {high}]" if low else "",
                **{name: rate(line[name]) for name in ("null", "random", "shuffle", "P0", "P1", "constant")},
                "retention": text(line["retention"], "{:.2f}"),
                "score": text(line["score"], "{:+.3f}"),
                "verdict": str(line["verdict"]),
            }
        )
    return lines


def reasons(leaderboard: pd.DataFrame) -> list[str]:
    """Return `config: verdict: reason` for each line; with the seed if the configuration has several."""
    has_several = leaderboard.duplicated("config", keep=False)
    return [
        f"{line.config}{f', seed {line.seed}' if several else ''}: {line.verdict}: {line.reason}"
        for line, several in zip(leaderboard.itertuples(), has_several, strict=True)
    ]


def leaderboard_text(leaderboard: pd.DataFrame, style: str) -> str:
    """Return the leaderboard as a text table in one of tabulate's styles."""
    return tabulate(display_cells(leaderboard), headers="keys", tablefmt=style, disable_numparse=True)


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """Print the leaderboard and its reasons."""
    print("\n" + leaderboard_text(leaderboard, "simple") + "\n")
    print("\n".join(reasons(leaderboard)))


def legend(leaderboard: pd.DataFrame, gate: GateConfig) -> list[str]:
    """Return paragraphs that explain the columns, the verdicts, and what differences n can detect."""
    lines = [
        "Success rates are in percent of n episodes, with a 95 % Wilson interval. `score` is the search objective "
        "on the search split: how many nats per answer value the right message gains over no message or over a "
        "wrong one, whichever is less. `retention` is (normal - P0) / (P1 - P0). `constant` is the best prefix "
        "without content: what priming alone can reach.",
        f"PASS and FAIL are given on the confirm split only, by gate `{gate.name}`; the tests of all "
        "configurations judged there are Holm-corrected together. PASS means that B solves more episodes with the "
        "right message than without one or with a wrong one, by the gate's margins, on messages never seen in "
        "training. It does not mean that the codec beats text, or that it works with another receiver or task.",
    ]
    if leaderboard.n.notna().any():
        n, discordant = int(leaderboard.n.max()), 0.3
        difference = 100 * stats.minimum_detectable_difference(n, discordant)
        lines.append(
            f"At n = {n}, a paired difference of {difference:.1f} points is detected with 80 % power (one-sided "
            f"McNemar, 5 % before Holm, {100 * discordant:.0f} % of episodes discordant); a lower bound of 30 % "
            f"needs {stats.successes_needed(n, 0.3)} successes."
        )
    return lines
