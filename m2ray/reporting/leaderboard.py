"""The leaderboard: one line per configuration with its verdict over the training seeds, and one below per seed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from m2ray.config.condition_names import tokens_name
from m2ray.config.gate_file import GateConfig, GateName, reference_gate
from m2ray.config.split_names import family, is_confirm, most_conclusive
from m2ray.evaluation.row_selection import RowsByConfiguration
from m2ray.evaluation.rows import FAILED, on_confirm
from m2ray.judging import statistics as stats
from m2ray.judging.gate import JudgedConfiguration, criterion_results, judge_together
from m2ray.judging.row_arms import RowArms
from m2ray.judging.selection import paired_gain
from m2ray.judging.verdict import FAIL, INVALID, NOT_APPLICABLE, PART, PASS, PASSES, WHOLE, Verdict
from m2ray.util.errors import UserError
from m2ray.util.text import pluralize

NOT_CONFIRMED, INCOMPLETE, FAILED_RUN, WITHDRAWN = "not confirmed", "incomplete", "failed", "withdrawn"
ORDER = (WHOLE, PASS, PART, FAIL, INVALID, NOT_CONFIRMED, INCOMPLETE, WITHDRAWN, FAILED_RUN)
VERDICTS = (WHOLE, PASS, PART, FAIL, INVALID)  # given on confirm only
SHOWN = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "matched", "mean", "init", "near")
RETENTION = ("retention", "retention_ci_low", "retention_ci_high")
UNITS = ("messages", "groups")  # columns with the number of clusters of episodes; older rows have neither
AMOUNTS = ("facts", "learned", "over_tokens", "follows_wrong")
GATES: tuple[GateName, ...] = ("gate1", "gate2")  # of the reference attempt
RESULTS = ("normal_ci_low", "normal_ci_high", *SHOWN, "tokens", *RETENTION, *AMOUNTS, *GATES)


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
        verdict: The verdict of this training seed; None if a required row is missing.
        configuration: The verdict of its configuration over all seeds on the split, and those of the seeds.
        tied: Another configuration with the same gain on `split`, which went further since its name comes first.
        earlier: Verdicts of its configuration in earlier looks at confirm, by split.
        error: Why there is no score or no verdict; empty if both are there.
    """

    def __init__(self, divided: RowsByConfiguration, config: str, seed: int) -> None:
        own = divided.own(config, seed)
        self.config, self.seed = config, seed
        self.split = str(most_conclusive(own.split.unique()))
        self.rows = divided.judged(config, seed, self.split)
        self.k = int(own.k.iloc[0])
        self.checkpoint = str(self.rows[self.rows.config != ""].checkpoint.iloc[0])
        self.params: dict[str, Any] = json.loads(own.params.iloc[0] or "{}")
        self.score, self.error = math.nan, ""
        self.verdict: Verdict | None = None
        self.configuration: JudgedConfiguration | None = None
        self.tied = ""
        self.earlier: dict[str, str] = {}
        try:
            if (own.split == "search").any():
                self.score = paired_gain(divided.judged(config, seed, "search"))
        except UserError as error:
            self.error = str(error)

    @cached_property
    def arms(self) -> RowArms | None:
        """Its outcomes by condition; None if it has no verdict."""
        return self.configuration.arms.of_seed(self.seed) if self.configuration else None

    def reason(self, verdict: Verdict | None, ranking: Sequence[float]) -> str:
        """Return the reason for a verdict, and for a run without confirm rows also why it has none.

        Args:
            verdict: That of this seed, or of its configuration.
            ranking: The search scores of all runs, highest first.
        """
        if verdict is None:
            return self.error
        if is_confirm(self.split):
            # The line of a configuration with several seeds gives the caveats once for all of them.
            several = self.configuration is not None and len(self.configuration.seeds) > 1
            earlier = [f"{earlier} on {split}" for split, earlier in self.earlier.items()]
            caveats = "; ".join([text for text in (verdict.caveats, *earlier) if text])
            caveats = "" if several and verdict is self.verdict else caveats
            return f"{verdict.reason} ({caveats})" if caveats else verdict.reason
        cause = {"search": "not selected", "select": "others did better on select"}.get(
            self.split, f"evaluated on {self.split} only"
        )
        if self.tied:
            cause = f"tied on {self.split} with {self.tied}, whose name comes first"
        if self.score in ranking:
            rank, equal = ranking.index(self.score) + 1, list(ranking).count(self.score)
            ties = f", tied with {pluralize(equal - 1, 'other')}" if equal > 1 else ""
            cause += f" (score {self.score:+.3f} nats, {rank} of {len(ranking)} on search{ties})"
        return f"{cause}; {verdict.reason}"


class Cell(NamedTuple):
    """A configuration on a split."""

    config: str
    split: str


def judge_runs(rows: pd.DataFrame, gate: GateConfig) -> list[JudgedRun]:
    """Judge every (configuration, seed) that has rows.

    Holm's correction covers all configurations of a split, and on confirm those of all looks together.
    Configurations that failed are left out.

    Raises:
        UserError: No run can be judged.
    """
    failed = set(rows[rows.condition == FAILED].config)
    evaluated = rows[(rows.config != "") & ~rows.config.isin(failed)]
    trained = evaluated[["config", "seed"]].drop_duplicates().sort_values(["config", "seed"])
    divided = RowsByConfiguration(rows)
    runs = [JudgedRun(divided, config, seed) for config, seed in trained.itertuples(index=False, name=None)]
    looked = evaluated[on_confirm(evaluated)][list(Cell._fields)].drop_duplicates()
    cells = {Cell(run.config, run.split): None for run in runs}
    cells |= {Cell(*cell): None for cell in sorted(looked.itertuples(index=False, name=None))}
    for name in dict.fromkeys(family(cell.split) for cell in cells):
        _judge_family(rows, divided, runs, [cell for cell in cells if family(cell.split) == name], gate)
    for split in ("search", "select"):
        _note_ties(divided, runs, split)
    if runs and not failed and all(run.verdict is None for run in runs):
        raise UserError(runs[0].error)
    return runs


def _note_ties(divided: RowsByConfiguration, runs: Sequence[JudgedRun], split: str) -> None:
    """Note which configurations were left behind on a split though their gain is that of one that went further."""
    left = {run.config for run in runs if run.split == split}
    gains: dict[str, list[float]] = {}
    for run in runs if left else ():
        if run.seed in divided.seeds(run.config, split):
            with contextlib.suppress(UserError):  # rows that it is compared with are missing: no gain
                gain = paired_gain(divided.judged(run.config, run.seed, split))
                gains.setdefault(run.config, []).append(gain)
    means = {config: sum(own) / len(own) for config, own in gains.items()}
    further: dict[float, str] = {}  # by gain, the first name of those that went further
    for config in sorted(means.keys() - left):
        further.setdefault(means[config], config)
    for run in runs:
        if run.config in left and run.config in means:
            run.tied = further.get(means[run.config], "")


def _judge_family(
    rows: pd.DataFrame,
    divided: RowsByConfiguration,
    runs: Sequence[JudgedRun],
    cells: Sequence[Cell],
    gate: GateConfig,
) -> None:
    """Judge cells together, and set the verdicts of their runs, or the error of those that cannot be judged."""
    split = cells[0].split
    gate = gate if is_confirm(split) else _gate_off_confirm(gate, rows[rows.split == split])
    own = {cell: divided.judged_together(*cell) for cell in cells}
    errors: dict[Cell, str] = {}
    try:
        judged = judge_together(list(own.values()), gate)
    except UserError:
        errors = _errors_alone(own, gate)
        own = {cell: rows for cell, rows in own.items() if cell not in errors}
        judged = judge_together(list(own.values()), gate)
    verdicts = dict(zip(own, judged, strict=True))
    looks: dict[str, list[Cell]] = {}
    for cell in verdicts:
        looks.setdefault(cell.config, []).append(cell)
    for run in runs:
        cell = Cell(run.config, run.split)
        run.error = errors.get(cell, run.error)
        if cell in verdicts:
            run.configuration = verdicts[cell]
            run.verdict = run.configuration.seeds.get(run.seed)
            run.earlier = {
                other.split: verdicts[other].verdict.verdict for other in looks[run.config] if other != cell
            }


def _errors_alone(configurations: Mapping[Cell, pd.DataFrame], gate: GateConfig) -> dict[Cell, str]:
    """Return why configurations cannot be judged, so that they do not keep others from it."""
    errors = {}
    for cell, rows in configurations.items():
        try:
            judge_together([rows], gate)
        except UserError as error:
            errors[cell] = str(error)
    return errors


def _gate_off_confirm(gate: GateConfig, rows: pd.DataFrame) -> GateConfig:
    """Return the criteria for the reasons of runs that are not judged on confirm, which have no verdict.

    Conditions that are run on confirm only are not missing elsewhere, and what needs the n of confirm is left out.
    """
    present = set(rows.condition)
    criteria = [
        criterion
        for criterion in gate.criteria
        if present.issuperset(criterion.conditions) and criterion.kind not in ("power", "equivalent")
    ]
    return gate.model_copy(update={"criteria": criteria or gate.criteria})


def make_leaderboard(
    rows: pd.DataFrame, runs: Sequence[JudgedRun], gate: GateConfig, withdrawn: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return the leaderboard: a line per configuration, below it one per training seed, and one per failure.

    A configuration with one training seed has one line. Verdicts are given on the confirm split only. Lines are
    ordered by the configuration's verdict, then by its search score.

    Args:
        rows: The rows of a results folder.
        runs: Their runs, judged.
        gate: The gate.
        withdrawn: Points that were taken out of the sweep under way, each with the date.

    Raises:
        UserError: There is no line.
    """
    ranking = sorted((run.score for run in runs if not math.isnan(run.score)), reverse=True)
    lines = []
    by_config: dict[str, list[JudgedRun]] = {}
    for run in runs:
        by_config.setdefault(run.config, []).append(run)
    for own in by_config.values():
        lines += _configuration_lines(own, ranking, gate)
    for failed in rows[rows.condition == FAILED].drop_duplicates("config").itertuples():
        reason = " ".join(failed.answer.split())
        lines.append({"config": failed.config, "k": failed.k, "verdict": FAILED_RUN, "reason": reason})
    lines = _with_withdrawn(lines, withdrawn or {})
    if not lines:
        raise UserError("rows: no configuration has any outcome; run the sweep first")
    params = list(dict.fromkeys(key for run in runs for key in run.params))
    messages = [name for name in UNITS if any(name in line for line in lines)]  # older rows do not name them
    columns = ["config", "seed", "seeds", "k", *params, "split", "n", *messages, "score", *RESULTS]
    leaderboard = pd.DataFrame(lines).reindex(columns=[*columns, "verdict", "reason", "checkpoint"])
    leaderboard = leaderboard.astype(dict.fromkeys(["seed", "k", "n", *messages], "Int64"))
    first = leaderboard.drop_duplicates("config").set_index("config")  # the configuration's own line
    keys = leaderboard[["config", "seed"]].assign(
        rank=leaderboard.config.map(first.verdict.map(ORDER.index)),
        loss=leaderboard.config.map(-first.score.astype(float)),
        seed=leaderboard.seed.fillna(-1),
    )
    order = keys.sort_values(["rank", "loss", "config", "seed"], kind="stable").index
    return leaderboard.loc[order].reset_index(drop=True)


def _with_withdrawn(lines: Sequence[dict[str, Any]], withdrawn: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the lines with points that were withdrawn marked, and added where nothing is known of them."""
    marked = []
    for line in lines:
        if date := withdrawn.get(line["config"]):
            reason = f"taken out of the space on {date}; before that: {line['verdict']}: {line['reason']}"
            line = {**line, "verdict": WITHDRAWN, "reason": reason}
        marked.append(line)
    known = {line["config"] for line in lines}
    for name, date in withdrawn.items():
        if name not in known:
            reason = f"taken out of the space on {date}; nothing is known of it"
            marked.append({"config": name, "verdict": WITHDRAWN, "reason": reason})
    return marked


def deciding_runs(runs: Sequence[JudgedRun]) -> list[JudgedRun]:
    """Return a configuration's runs on the most conclusive split that any of its training seeds has."""
    best = most_conclusive(run.split for run in runs)
    return [run for run in runs if run.split == best]


def _configuration_lines(
    runs: Sequence[JudgedRun], ranking: Sequence[float], gate: GateConfig
) -> list[dict[str, Any]]:
    """Return a configuration's lines: its own, if it has several training seeds, and one per seed."""
    lines = []
    for run in runs:
        line = _line(run, run.verdict, run.arms, ranking, gate)
        lines.append(line | {"seed": run.seed, "seeds": str(run.seed)} | _reference_gates(run))
    if len(runs) == 1:
        return lines
    deciding = deciding_runs(runs)
    first = deciding[0]
    judged = first.configuration
    verdict, arms = (judged.verdict, judged.arms) if judged else (None, None)
    own = _line(first, verdict, arms, [], gate)
    own |= {
        "seeds": " ".join(str(run.seed) for run in deciding),
        "score": round(sum(run.score for run in deciding) / len(deciding), 4),
        "checkpoint": "",
    }
    if verdict is not None:
        seeds = {run.seed for run in deciding}
        own |= {name: _over_seeds([line[name] for line in lines if line["seed"] in seeds]) for name in GATES}
    return [own, *lines]


def _over_seeds(results: Sequence[str]) -> str:
    """Return the outcome of one of the reference gates over training seeds: all must pass."""
    if FAIL in results:
        return FAIL
    return PASS if {*results} == {PASS} else NOT_APPLICABLE


def _line(
    run: JudgedRun, verdict: Verdict | None, arms: RowArms | None, ranking: Sequence[float], gate: GateConfig
) -> dict[str, Any]:
    """Return a line of the leaderboard, of a run or of its configuration."""
    line: dict[str, Any] = {"config": run.config, "k": run.k}
    line |= run.params
    line |= {"split": run.split, "score": round(run.score, 4), "reason": run.reason(verdict, ranking)}
    line |= {"checkpoint": run.checkpoint, "verdict": INCOMPLETE}
    if verdict is None or arms is None:
        return line
    low, high = arms.interval("normal", gate.alpha)
    retention = verdict.retention or stats.Estimate(math.nan, math.nan, math.nan)
    if arms.messages is not None:
        line[arms.unit] = arms.messages
    line |= {"n": arms.episodes, "normal_ci_low": round(low, 6), "normal_ci_high": round(high, 6)}
    line |= {name: round(arms.rate(name), 6) for name in SHOWN if name in arms.counts}
    if (tokens := tokens_name(run.k)) in arms.counts:
        line["tokens"] = round(arms.rate(tokens), 6)
    line |= {name: round(value, 6) for name, value in zip(RETENTION, retention, strict=True)}
    line |= {name: round(verdict.amount(name).value, 6) for name in AMOUNTS}
    line["verdict"] = verdict.verdict if is_confirm(run.split) else NOT_CONFIRMED
    return line


def _reference_gates(run: JudgedRun) -> dict[str, str]:
    """Return the outcome of a run at the two gates of the reference attempt, whatever gate gave the verdict."""
    verdict, reference = run.verdict, reference_gate()
    if verdict is None or run.arms is None:
        return {}
    if verdict.grades is not None:
        try:
            results = criterion_results(run.arms, run.k, reference, reference.alpha, "rows")
        except UserError:  # a condition of that gate was not run
            return dict.fromkeys(GATES, NOT_APPLICABLE)
        verdict = replace(verdict, results=results)
    return {name: verdict.gate(name) for name in GATES}


def configuration_lines(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return one line per configuration: that over its training seeds where there are several."""
    return leaderboard.drop_duplicates("config")


def seed_lines(leaderboard: pd.DataFrame) -> list[bool]:
    """Return for each line whether it is that of a training seed below its configuration's own line."""
    return list(leaderboard.duplicated("config"))


def anything_passes(leaderboard: pd.DataFrame) -> bool:
    """Return whether any configuration passes, over all its training seeds."""
    return bool(configuration_lines(leaderboard).verdict.isin(PASSES).any())
