"""What a report says of a configuration, section by section: once, for Markdown (report.py) and HTML (html.py).

Backticks in a text mark code; nothing else in it is markup.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ray.codec.model_card import PLAYED
from m2ray.config.gate_file import GateConfig
from m2ray.diagnosis.store import FOLDER, diagnosis_folder, read_diagnosis
from m2ray.evaluation.rows import outcomes
from m2ray.judging.gate import FAIL, PASS, Verdict
from m2ray.judging.verdict_tables import (
    bar_lines,
    communication_matters,
    format_count,
    primary_table,
    retention_line,
    scale_gate_table,
    summary_table,
)
from m2ray.reporting.document import Block, Bullets, Commands, Grid, Link, Picture, Section, Text
from m2ray.reporting.leaderboard import JudgedRun
from m2ray.util.tables import Table
from m2ray.util.text import percent
from m2ray.util.trees import get_key


def config_section(
    root: Path, mine: Sequence[JudgedRun], statuses: Sequence[str], gate: GateConfig, about: Mapping[str, Any]
) -> Section:
    """Everything about one configuration.

    Args:
        root: The results folder.
        mine: Its training seeds.
        statuses: What the board says of each, `PASS: all criteria hold`.
        gate: What judged them.
        about: The sweep's record, as far as there is one.
    """
    summary = [f"Training seed {a.seed}: {status}" for a, status in zip(mine, statuses, strict=True)]
    seeds = [run_section(root, attempt, status, gate) for attempt, status in zip(mine, statuses, strict=True)]
    parts = [
        Section("Summary", [Bullets(summary)]),
        Section("Configuration", [Grid(configuration_table(mine, about))]),
        *seeds,
        Section("Commands", [Commands(commands(root, mine))]),
    ]
    return Section(mine[0].config, parts=parts)


def configuration_table(mine: Sequence[JudgedRun], about: Mapping[str, Any]) -> Table:
    """What was trained and how it was played, parameter by parameter."""
    one = mine[0].rows[mine[0].rows.config != ""].iloc[0]
    table = [
        ["Parameter", "Value"],
        ["receiver (frozen)", f"{get_key(about, 'receiver.name') or ''} (digest {one.receiver})".strip()],
        ["task", one.task],
        ["k", str(mine[0].k)],
        *([key, str(value)] for key, value in mine[0].params.items()),
    ]
    if objective := objective_text(mine[0], about):
        table.append(["training objective", objective])
    played = mine[0].rows.episode
    table.append(["evaluation", f"{one.decoding}, n = {played.nunique()} a condition"])
    table.append(["episodes", f"{played.min()} to {played.max()}, split {mine[0].split}"])
    return table


def objective_text(attempt: JudgedRun, about: Mapping[str, Any]) -> str:
    """The losses and their weights, as far as the sweep's record has them."""
    points = about.get("points")
    point = points.get(attempt.config) if isinstance(points, dict) else None
    losses = get_key(point, "losses") if isinstance(point, dict) else get_key(about, "space.trial.losses")
    if not isinstance(losses, dict):
        return ""
    weights = {name: get_key(losses, f"{name}.weight") for name, loss in losses.items() if loss is not None}
    for key, value in attempt.params.items():
        loss, _, last = key.removeprefix("losses.").partition(".")
        if key.startswith("losses.") and last == "weight" and value is not None:
            weights[loss] = value
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if isinstance(weight, (int, float)))


def run_section(root: Path, attempt: JudgedRun, status: str, gate: GateConfig) -> Section:
    """One training seed in the shape of the reference report."""
    title = f"Training seed {attempt.seed}, split {attempt.split}, k = {attempt.k}"
    told: list[Block] = [Text(f"Status: {status}")]
    verdict = attempt.verdict
    if verdict is None:
        return Section(title, told)
    counts = verdict.counts
    bars = Bullets(bar_lines(verdict, gate))
    parts = [
        Section("Primary metrics", [Grid(primary_table(counts, attempt.k, gate))]),
        Section("Statistical summary", [Grid(summary_table(counts, gate.alpha)), bars]),
    ]
    if curve := scale_gate_table(counts):
        parts.append(Section("Gate sweep results", [Grid(curve)]))
    solved, hard, n = communication_matters(attempt.rows)
    subset = [f"Episodes where null fails: {hard}/{n}"]
    if hard:
        subset.append(f"Normal success on null-failing episodes: {percent(solved / hard)} ({solved}/{hard})")
    parts.append(Section("Communication-matters subset", [Bullets(subset)]))
    if verdict.retention is not None:
        kept = retention_line(verdict.retention) + " (paired bootstrap, 95 %)"
        parts.append(Section("Retention", [Text(kept)]))
    normal, p0 = outcomes(attempt.rows, ["normal", "P0"], "nll")
    nats = f"normal {normal.mean():.3f}, P0 {p0.mean():.3f}; score on search {attempt.score:+.3f}"
    parts.append(Section("Nats per answer value", [Text(nats)]))
    parts += critical_sections(verdict)
    parts += diagnosis_sections(root, attempt)
    decisions = [["Gate", "Criterion", "Finding", "Decision"]]
    decisions += [[f.gate, f.name, f.sentence, PASS if f.passed else FAIL] for f in verdict.findings]
    parts.append(Section("Decision log", [Grid(decisions)]))
    parts.append(Section("Artifacts", [Bullets(artifacts(root, attempt))]))
    return Section(title, told, parts)


def critical_sections(verdict: Verdict) -> list[Section]:
    """What a verdict of FAIL hangs on, in words; nothing where all criteria hold."""
    failed = [f for f in verdict.findings if not f.passed]
    if not failed:
        return []
    title, lines = f"'{failed[0].name}' does not hold", []
    if verdict.backwards:
        title = "shuffle > normal"
        wrong, right = (format_count(verdict.counts[name]) for name in ("shuffle", "normal"))
        lines += [
            f"A wrong message does better, {wrong}, than the right one, {right}: the prefix does not carry what "
            "the message says.",
            "A codec that carried it would fall below P0 with a wrong message; this one primes B for any answer.",
        ]
    elif any(f.gate == "semantic" for f in failed):
        title = "what the message says makes no difference"
        lines.append(
            "The right message is not told apart from a wrong one or from none: what B gains from the prefix, if "
            "anything, does not depend on what the message says."
        )
    lines += [f"{f.gate}, {f.name}: {f.sentence}" for f in failed]
    return [Section(f"Critical finding: {title}", [Bullets(lines)])]


def diagnosis_sections(root: Path, attempt: JudgedRun) -> list[Section]:
    """What the diagnosis found, and the root cause, question by question; empty where there is none."""

    folder = diagnosis_folder(root, attempt.config, attempt.seed)
    found = read_diagnosis(folder)
    if not found:
        return []
    if cause := found.get("failed"):
        return [Section("Diagnosis", [Text(f"Failed: {cause}")])]
    about, at = found["about"], f"{FOLDER}/{folder.name}"
    sentences = [f"{finding['name']}: {finding['sentence']}" for finding in found["findings"]]
    where = f"On {about['n']} held-out messages, seeds {about['seeds']}."
    pictures = [
        Picture("Where the message is lost", f"{at}/stages.png"),
        Picture("How alike messages are at each stage", f"{at}/maps.png"),
    ]
    return [
        Section("Diagnosis", [Text(where), Bullets(sentences), Link("all figures", f"{at}/diagnosis.md")]),
        Section("Root cause", [Grid(found["root_cause"]), *pictures]),
    ]


def artifacts(root: Path, attempt: JudgedRun) -> list[str]:
    """What the verdict rests on, each with its digest."""
    one = attempt.rows[attempt.rows.config != ""].iloc[0]
    lines = [
        f"checkpoint digest `{attempt.checkpoint}`, step {one.step}, below "
        f"`checkpoints/{attempt.config}/seed-{attempt.seed}/` where it was trained"
    ]
    lines += [
        f"published codec `{name}/`, the same digest"
        for name, digest in published_codecs(root).items()
        if digest == attempt.checkpoint
    ]
    rows = root / "rows.parquet"
    if rows.is_file():
        sha = hashlib.sha256(rows.read_bytes()).hexdigest()
        lines.append(f"`rows.parquet`, SHA-256 `{sha}`, {len(attempt.rows)} of its rows behind this verdict")
    return [*lines, f"receiver digest `{one.receiver}`"]


def published_codecs(root: Path) -> dict[str, str]:
    """The codecs that stand in a results folder as folders of their own, and their digests."""
    found = {}
    for file in sorted(root.glob("*/config.json")):
        try:
            found[file.parent.name] = str(json.loads(file.read_text(encoding="utf-8"))["digest"])
        except (ValueError, KeyError, TypeError):
            continue  # somebody's own file: says nothing about a codec
    return found


def commands(root: Path, mine: Sequence[JudgedRun]) -> list[str]:
    """Command lines that give these figures again, from the folder that holds `results/`."""
    where, config = f"results/{root.resolve().name}", mine[0].config
    lines = [["python", "-m", "m2ray.gate", where, "--config", config, "--split", mine[0].split]]
    lines.append(["python", "-m", "m2ray.report", where])
    digests = {attempt.checkpoint for attempt in mine}
    for name, digest in published_codecs(root).items():
        if digest in digests:
            lines.append(["python", "-m", "m2ray.evaluate", f"{where}/{name}", "--seeds", PLAYED])
    return [shlex.join(line) for line in lines]
