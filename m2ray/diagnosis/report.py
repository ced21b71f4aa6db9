"""Write a diagnosis: tables, the root cause question by question, and the files of one checkpoint."""

from __future__ import annotations

from pathlib import Path

from m2ray.diagnosis.figures import FigureInputs, draw_diagnosis
from m2ray.diagnosis.findings import (
    ALIKE,
    EMPTY,
    HOLDS,
    ONE_WAY,
    RECOVERED,
    STAGE,
    Diagnosis,
    format_nats,
    probe_accuracy,
)
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.util.files import write_atomic, write_json
from m2ray.util.tables import Table, markdown
from m2ray.util.text import percent

NO_PROBES = "does not apply to a task in free text: probes look for the facts of a puzzle"
PICTURES = ("stages", "maps")


def write_report(folder: Path, d: Diagnosis, shown: FigureInputs) -> None:
    """Write the pictures, diagnosis.md and, last, diagnosis.json: where that exists, the others do, too."""
    draw_diagnosis(folder, d, shown)
    about = ", ".join(f"{key} {value}" for key, value in d.about.items())
    pictures = [f"![{name}]({name}.png)" for name in PICTURES]
    title = f"# Diagnosis of {d.about['config']}, training seed {d.about['seed']}"
    text = "\n\n".join([title, about, *report_sections(d), *pictures])
    write_atomic(folder / "diagnosis.md", (text + "\n").encode())
    write_json(folder / "diagnosis.json", {**d.json(), "root_cause": root_cause(d)})


def report_sections(d: Diagnosis) -> list[str]:
    """Return the findings, the root cause and all figures, as sections in Markdown."""
    findings = "## Findings\n\n" + "\n".join(f"- {name}: {sentence}" for name, sentence in d.findings)
    titled = {"Root cause": root_cause(d), **tables(d)}
    return [findings, *(f"## {title}\n\n{markdown(table)}" for title, table in titled.items())]


# --- figures -------------------------------------------------------------------------------------------------


def tables(d: Diagnosis) -> dict[str, Table]:
    """Return the figures as tables, by title."""
    return {
        "Stages: what linear probes read, how alike messages are": _stage_table(d),
        "Nats by condition": _nll_table(d),
        "Success by decoding": _success_table(d),
        "Scale": _scale_table(d),
    }


def _stage_table(d: Diagnosis) -> Table:
    table = [
        ["stage", "facts %", "values left %", "majority %", "cosine", "centered", "rank", "spread %", "follows"]
    ]
    for name, similarity in d.maps.items():
        row = [name if name in d.path else f"({name})", "-", "-", "-"]
        if name in d.probes:
            probe = d.probes[name]
            row[1:] = [_percent_interval(part) for part in (probe.facts, probe.values)]
            row.append(f"{100 * probe.majority:.1f}")
        row += [f"{similarity.cosine:.3f}", f"{similarity.cosine_centred:.3f}"]
        row += [f"{similarity.effective_rank:.1f}", f"{100 * similarity.spread:.0f}", f"{similarity.follows:.2f}"]
        table.append(row)
    return table


def _nll_table(d: Diagnosis) -> Table:
    table = [["condition", f"nats per {d.digit}", "gap", "nats per format token", "gap"]]
    for name, (digits, other) in d.nll.items():
        gap = d.gaps.get(name)
        cells = ["", ""] if gap is None else [format_nats(gap.digits), format_nats(gap.format)]
        table.append([name, f"{digits:.3f}", cells[0], f"{other:.3f}", cells[1]])
    for name, seen_gap in d.seen.items():
        table.append([f"{name}, training messages", "", format_nats(seen_gap), "", ""])
    return table


def _success_table(d: Diagnosis) -> Table:
    table = [["prefix", "solved", "95 % CI", f"nats per {d.digit}"]]
    for name, success in d.success.items():
        low, high = stats.wilson(success.successes, success.n)
        # Free vectors are fitted until B answers right, not until the loss is lowest.
        least, most = ("at least ", "at most ") if name == "free" else ("", "")
        interval = f"[{percent(low)}, {percent(high)}]"
        table.append([name, f"{least}{success}", interval, f"{most}{success.digits:.3f}"])
    return table


def _scale_table(d: Diagnosis) -> Table:
    head = ["norm of a prefix vector, 1 = a token embedding's", "5 % quantile", "95 % quantile", "scale_gate"]
    return [head, [f"{figure:.2f}" for figure in d.norms]]


def _percent_interval(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


# --- root cause ----------------------------------------------------------------------------------------------


def root_cause(d: Diagnosis) -> Table:
    """Return what has to hold for a message to arrive, in order, with the figures; a `no` is a cause."""
    found = {finding.name for finding in d.findings}
    return [
        ["Question", "Measured", "Answer"],
        *_message_rows(d, found),
        *_reading_rows(d, found),
        *_ceiling_rows(d, found),
    ]


def _message_rows(d: Diagnosis, found: set[str]) -> list[list[str]]:
    """Return the questions on the message: as text, and in the prefix."""
    prefix, solved = d.maps["prefix"], d.success
    probed = [stage for stage in d.path if stage in d.probes]
    steps = ", ".join(f"{probe_accuracy(d.probes[stage])} from {STAGE[stage]}" for stage in probed)
    return [
        [
            "Does the message as text help B?",
            f"{solved['P1']} solved with it, {solved['P0']} without; worth {d.worth:.3f} nats per {d.digit}",
            _yes("deaf" not in found),
        ],
        [
            "Does the prefix still hold the message?",
            f"probes right about its facts: {steps} (chance 50%)" if d.probes else NO_PROBES,
            _held(d, found),
        ],
        [
            "Do prefixes of different messages differ?",
            f"mean cosine {prefix.cosine:.3f}, effective rank {prefix.effective_rank:.1f}",
            _yes(prefix.cosine <= ALIKE and prefix.effective_rank >= ONE_WAY),
        ],
    ]


def _reading_rows(d: Diagnosis, found: set[str]) -> list[list[str]]:
    """Return the questions on the receiver: whether it reads the prefix, and what helps it."""
    gain, scale, solved = d.gaps["null"], d.norms, d.success
    return [
        [
            "Does B read it?",
            f"a wrong message costs {format_nats(d.gaps['shuffle'].digits)} per {d.digit}",
            _read(found),
        ],
        [
            "Does it help B?",
            f"{solved['normal']} solved with it, {solved['P0']} without; retention {d.retention.value:.2f}",
            "yes" if d.prefix_helps else "hardly" if d.ahead["P0"].low > 0 else "no",
        ],
        [
            "Is its gain over zeros content rather than form?",
            f"{format_nats(gain.digits)} per {d.digit}, {format_nats(gain.format)} per format token",
            _yes("format" not in found) if max(gain.digits.low, gain.format.low) > 0 else "no gain",
        ],
        [
            "Does it hold on unseen messages as on trained ones?",
            f"a wrong message costs {format_nats(d.seen['shuffle'])} per {d.digit} on those it was trained on",
            _yes("memorised" not in found),
        ],
        [
            "Is its scale one that B knows?",
            f"norm {scale.mean:.2f} of a token embedding's, 90 % of vectors {scale.low:.2f} to {scale.high:.2f}",
            _yes("norm" not in found),
        ],
    ]


def _ceiling_rows(d: Diagnosis, found: set[str]) -> list[list[str]]:
    """Return the questions on ceilings, where they were measured."""
    rows, solved = [], d.success
    if "constant" in solved:
        figures = f"{solved['normal']} solved, {solved['constant']} with a trained prefix without content"
        rows.append(["Is it more than priming?", figures, _yes("priming" not in found)])
    if "free" in solved:
        figures = f"{d.free_bound}, the codec {solved['normal']}, the text {solved['P1']}"
        rows.append(["Could so many vectors carry it?", figures, _capacity(found)])
    return rows


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _held(d: Diagnosis, found: set[str]) -> str:
    """Return whether the prefix holds the message. Probes are linear: a receiver can read more than they do."""
    if not d.probes:
        return "not probed"
    lost = [STAGE[stage] for stage in d.path if f"lost_{stage}" in found]
    if lost:
        return f"{'in part' if 'healthy' in found else 'no'}: lost at {', '.join(lost)}"
    held = d.probes["prefix"].held
    if held >= HOLDS or d.retention.value >= RECOVERED:
        return "yes"
    return "in part" if held > EMPTY or "healthy" in found else "no: linear probes read nothing of it"


def _capacity(found: set[str]) -> str:
    if "capacity_suffices" in found:
        return "yes"
    return "too few episodes to tell" if "capacity_unknown" in found else "not shown"


def _read(found: set[str]) -> str:
    answers = {"healthy": "yes", "wrong_hurts": "in part", "hardly_read": "hardly", "backwards": "backwards"}
    return next((answer for name, answer in answers.items() if name in found), "no")
