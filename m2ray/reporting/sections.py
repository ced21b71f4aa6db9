"""The report of a configuration, section by section, for Markdown and HTML alike.

Backticks in a text mark code; nothing else in it is markup.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ray.codec.model_card import EXAMPLE_SEEDS
from m2ray.config.gate_file import GateConfig, reference_gate
from m2ray.config.split_names import is_confirm
from m2ray.diagnosis.store import FOLDER, diagnosis_folder, read_diagnosis
from m2ray.evaluation.row_selection import outcomes
from m2ray.judging.verdict import INVALID, Verdict
from m2ray.judging.verdict_tables import (
    bar_lines,
    communication_matters,
    criteria_table,
    format_count,
    primary_table,
    rates_table,
    retention_line,
    scale_gate_table,
    summary_table,
)
from m2ray.reporting.answers import unreadable_table
from m2ray.reporting.document import Block, Bullets, Commands, Figure, Grid, Link, Section, Text
from m2ray.reporting.figures.knockout import knockout_sections
from m2ray.reporting.leaderboard import JudgedRun, deciding_runs
from m2ray.util.files import sha256_of
from m2ray.util.tables import Table
from m2ray.util.text import percent, pluralize
from m2ray.util.trees import get_key

DIFFERS = (
    "The codec passed its gate. What follows was measured on fewer and other messages, by thresholds of its own: "
    "where the two differ, the verdict counts."
)


def config_section(
    root: Path, runs: Sequence[JudgedRun], statuses: Sequence[str], gate: GateConfig, record: Mapping[str, Any]
) -> Section:
    """Return the report of one configuration.

    Args:
        root: The results folder.
        runs: The configuration's runs, one per training seed.
        statuses: Verdict and reason of the configuration, if it has several seeds, and of each run, as on the
            leaderboard: `PASS: all criteria hold`.
        gate: The gate that judged them.
        record: The sweep's record; empty if there is none.
    """
    own = statuses[-len(runs) :]
    summary = [f"Training seed {run.seed}: {status}" for run, status in zip(runs, own, strict=True)]
    seeds = [run_section(root, run, status, gate) for run, status in zip(runs, own, strict=True)]
    deciding = deciding_runs(runs)
    if len(runs) > 1:
        summary.insert(0, f"Over {pluralize(len(deciding), 'training seed')}: {statuses[0]}")
    parts = [
        Section("Summary", [Bullets(summary)]),
        *over_seeds_sections(deciding, gate),
        Section("Configuration", [Grid(configuration_table(runs[0], record))]),
        *knockout_sections(deciding),
        *seeds,
        Section("Commands", [Commands(commands(root, runs))]),
    ]
    return Section(runs[0].config, parts=parts)


def over_seeds_sections(runs: Sequence[JudgedRun], gate: GateConfig) -> list[Section]:
    """Return the sections with the verdict over a configuration's training seeds; none for a single one."""
    together = runs[0].configuration
    if together is None or len(runs) < 2:
        return []
    grids: list[Block] = [Grid(rates_table(together.arms, gate.alpha))]
    if gate.grades:  # else each seed is judged by itself
        grids.append(Grid(criteria_table(together.verdict)))
    title = f"Over {pluralize(len(runs), 'training seed')}"
    return [Section(title, grids), *amount_sections(together.verdict, title.lower())]


def amount_sections(verdict: Verdict, of: str = "") -> list[Section]:
    """Return the section with how much of the message is carried; none for a gate that does not measure it."""
    if not verdict.amounts:
        return []
    title = f"Amount {of}".strip()
    return [Section(title, [Bullets([amount.sentence for amount in verdict.amounts])])]


def configuration_table(run: JudgedRun, record: Mapping[str, Any]) -> Table:
    """Return what was trained and how it was evaluated, parameter by parameter."""
    row = run.rows[run.rows.config != ""].iloc[0]
    table = [
        ["Parameter", "Value"],
        ["receiver (frozen)", f"{get_key(record, 'receiver.name') or ''} (digest {row.receiver})".strip()],
        ["task", row.task],
        ["k", str(run.k)],
        *([key, str(value)] for key, value in run.params.items()),
    ]
    if objective := objective_text(run, record):
        table.append(["training objective", objective])
    episodes = run.rows.episode
    table.append(["evaluation", f"{row.decoding}, n = {episodes.nunique()} per condition"])
    table.append(["episodes", f"{episodes.min()} to {episodes.max()}, split {run.split}"])
    return table


def objective_text(run: JudgedRun, record: Mapping[str, Any]) -> str:
    """Return the losses with their weights, `1 ce + 10 slots`; empty if the sweep's record does not have them."""
    points = record.get("points")
    point = points.get(run.config) if isinstance(points, dict) else None
    losses = get_key(point, "losses") if isinstance(point, dict) else get_key(record, "space.trial.losses")
    if not isinstance(losses, dict):
        return ""
    weights = {name: get_key(losses, f"{name}.weight") for name, loss in losses.items() if loss is not None}
    for key, value in run.params.items():
        loss, _, last = key.removeprefix("losses.").partition(".")
        if key.startswith("losses.") and last == "weight" and value is not None:
            weights[loss] = value
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if isinstance(weight, (int, float)))


# --- one training seed ---------------------------------------------------------------------------------------


def run_section(root: Path, run: JudgedRun, status: str, gate: GateConfig) -> Section:
    """Return the section of one training seed, in the form of the reference report."""
    title = f"Training seed {run.seed}, split {run.split}, k = {run.k}"
    blocks: list[Block] = [Text(f"Status: {status}")]
    if run.verdict is None:
        return Section(title, blocks)
    parts = [
        *metric_sections(run, run.verdict, gate),
        *critical_sections(run.verdict, gate),
        *diagnosis_sections(root, run),
        Section("Decision log", [Grid(criteria_table(run.verdict))]),
        Section("Artifacts", [Bullets(artifacts(root, run))]),
    ]
    return Section(title, blocks, parts)


def metric_sections(run: JudgedRun, verdict: Verdict, gate: GateConfig) -> list[Section]:
    """Return the sections with success rates, retention and nats."""
    counts, reference = verdict.counts, reference_gate()
    bars = Bullets(bar_lines(counts, run.k, reference))
    sections = [
        Section("Primary metrics", [Grid(primary_table(counts, run.k, reference))]),
        Section("Statistical summary", [Grid(summary_table(counts, gate.alpha)), bars]),
    ]
    if curve := scale_gate_table(counts):
        sections.append(Section("Gate sweep results", [Grid(curve)]))
    solved, hard, n = communication_matters(run.rows)
    subset = [f"Episodes where null fails: {hard}/{n}"]
    if hard:
        subset.append(f"Normal success on null-failing episodes: {percent(solved / hard)} ({solved}/{hard})")
    sections.append(Section("Communication-matters subset", [Bullets(subset)]))
    if verdict.retention is not None:
        retention = retention_line(verdict.retention) + " (paired, 95 %)"
        sections.append(Section("Retention", [Text(retention)]))
    sections.append(Section("Answers that cannot be read", [Grid(unreadable_table(run.rows))]))
    sections += amount_sections(verdict)
    normal_nll, p0_nll = outcomes(run.rows, ["normal", "P0"], "nll")
    nats = f"normal {normal_nll.mean():.3f}, P0 {p0_nll.mean():.3f}; score on search {run.score:+.3f}"
    return [*sections, Section("Nats per answer value", [Text(nats)])]


def critical_sections(verdict: Verdict, gate: GateConfig) -> list[Section]:
    """Return the section that explains a verdict of FAIL or INVALID SETTING; none if all criteria hold."""
    failed = verdict.failed
    if not failed:
        return []
    against = {criterion.name: criterion.against for criterion in gate.criteria}
    content = {against[r.name] for r in failed if r.gate in ("semantic", "content")}
    title, lines = f"'{failed[0].name}' does not hold", []
    if verdict.verdict == INVALID:
        title = "the setting is not valid"
        lines.append("This is not a finding about the codec: receiver, task or n cannot show what it carries.")
    elif verdict.backwards:
        title = "shuffle > normal"
        wrong, right = (format_count(verdict.counts[name]) for name in ("shuffle", "normal"))
        lines += [
            f"A wrong message does better, {wrong}, than the right one, {right}: the prefix does not carry the "
            "message's content.",
            "If it did, success with a wrong message would fall below P0; this prefix primes B for any answer.",
        ]
    elif content == {"near"}:
        title = "a message with one fact changed does as well"
        lines.append(
            "B is not shown to do better with the right message than with one in which a fact is changed: the "
            "prefix may carry only a part of the message."
        )
    elif content:
        title = "the message's content makes no difference"
        lines.append(
            "B is not shown to do better with the right message than with a wrong one or with none: its gain from "
            "the prefix, if any, does not depend on the message's content."
        )
    lines += [f"{result.gate}, {result.name}: {result.sentence}" for result in failed]
    return [Section(f"Critical finding: {title}", [Bullets(lines)])]


def diagnosis_sections(root: Path, run: JudgedRun) -> list[Section]:
    """Return the findings of the run's diagnosis and its root causes; none without a diagnosis."""
    folder = diagnosis_folder(root, run.config, run.seed)
    diagnosis = read_diagnosis(folder)
    if not diagnosis:
        return []
    if cause := diagnosis.get("failed"):
        return [Section("Diagnosis", [Text(f"Failed: {cause}")])]
    about, path = diagnosis["about"], f"{FOLDER}/{folder.name}"
    messages = f"On {about['n']} held-out messages, seeds {about['seeds']}."
    sentences = [f"{finding['name']}: {finding['sentence']}" for finding in diagnosis["findings"]]
    figures = [
        Figure("Where the message is lost", f"{path}/stages.png"),
        Figure("Similarity of messages at each stage", f"{path}/maps.png"),
    ]
    passed = run.verdict is not None and run.verdict.passed
    blocks: list[Block] = [Text(messages), Bullets(sentences), Link("all figures", f"{path}/diagnosis.md")]
    if passed and is_confirm(run.split) and diagnosis["findings"][0]["name"] != "healthy":
        blocks.insert(1, Text(DIFFERS))
    title = "What arrives, step by step" if passed else "Root cause"
    return [Section("Diagnosis", blocks), Section(title, [Grid(diagnosis["root_cause"]), *figures])]


# --- artifacts and commands ----------------------------------------------------------------------------------


def artifacts(root: Path, run: JudgedRun) -> list[str]:
    """Return lines about the files that the verdict is based on, each with its digest."""
    row = run.rows[run.rows.config != ""].iloc[0]
    lines = [
        f"checkpoint digest `{run.checkpoint}`, step {row.step}; trained into "
        f"`checkpoints/{run.config}/seed-{run.seed}/`, which may not be in this folder"
    ]
    lines += [
        f"published codec `{name}/`, with the same digest"
        for name, digest in published_codecs(root).items()
        if digest == run.checkpoint
    ]
    file = root / "rows.parquet"
    if file.is_file():
        lines.append(
            f"`rows.parquet`, SHA-256 `{sha256_of(file)}`; this verdict is based on {len(run.rows)} of its rows"
        )
    return [*lines, f"receiver digest `{row.receiver}`"]


def published_codecs(root: Path) -> dict[str, str]:
    """Return the digests of the published codecs in a results folder, by the name of their folders."""
    digests = {}
    for file in sorted(root.glob("*/config.json")):
        try:
            digests[file.parent.name] = str(json.loads(file.read_text(encoding="utf-8"))["digest"])
        except (ValueError, KeyError, TypeError):
            continue  # a user's own file, not a codec's
    return digests


def commands(root: Path, runs: Sequence[JudgedRun]) -> list[str]:
    """Return commands that compute these results again, run in the folder that holds `results/`."""
    folder, config = f"results/{root.resolve().name}", runs[0].config
    lines = [
        ["python", "-m", "m2ray.gate", folder, "--config", config, "--split", runs[0].split],
        ["python", "-m", "m2ray.report", folder],
    ]
    checkpoints = {run.checkpoint for run in runs}
    for name, digest in published_codecs(root).items():
        if digest in checkpoints:
            lines.append(["python", "-m", "m2ray.evaluate", f"{folder}/{name}", "--episodes", EXAMPLE_SEEDS])
    return [shlex.join(line) for line in lines]
