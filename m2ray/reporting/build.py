"""All reports of a results folder, rebuilt from its rows, journal, diagnoses and training histories.

Files: leaderboard.csv and leaderboard.md, `attempts/` with a text report for each configuration, `figures/`, the
table of diagnoses, and report.html.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from m2ray.config.condition_names import scale_gate_of
from m2ray.config.gate_file import GateConfig, load_gate, registered_gate
from m2ray.config.sweep_record import read_sweep_record
from m2ray.evaluation.confirm_ledger import looks_of
from m2ray.evaluation.rows import RowStore
from m2ray.reporting.answers import sampled_answers
from m2ray.reporting.diagnosis_table import write_arms
from m2ray.reporting.document import PLAIN_NAME, Figure, Section, Text, section_markdown
from m2ray.reporting.figures.judged_runs import FOLDER as FIGURES
from m2ray.reporting.figures.judged_runs import (
    DrawnFigure,
    draw_by_k,
    draw_conditions,
    draw_outcomes,
    draw_scale_gates,
    line_styles,
    runs_to_draw,
)
from m2ray.reporting.figures.knockout import draw_knockouts
from m2ray.reporting.figures.pareto import draw_pareto, sized_successes
from m2ray.reporting.figures.search import draw_scores, draw_search
from m2ray.reporting.figures.training import draw_training
from m2ray.reporting.html import Page, write_page
from m2ray.reporting.leaderboard import JudgedRun, judge_runs, make_leaderboard
from m2ray.reporting.leaderboard_text import leaderboard_text, legend, reasons
from m2ray.reporting.provenance import provenance
from m2ray.reporting.sections import config_section
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.plotting import png_and_svg, save, use_file_backend

REPORTS = "attempts"  # folder of the configurations' reports


class JudgedFolder(NamedTuple):
    """A results folder with the verdicts on its rows."""

    folder: Path
    gate: GateConfig
    record: dict[str, Any]
    runs: list[JudgedRun]
    leaderboard: pd.DataFrame
    source: list[str]  # lines about where the rows come from
    mark: str  # of the names of its files: see `ChosenGate`
    note: str


def build(folder: Path, gate_name: Path | str | None = None) -> pd.DataFrame:
    """Judge the rows of a results folder, write all of its reports, and return the leaderboard.

    The arguments are those of `judge_folder`.

    Raises:
        UserError: see `judge_folder` and `write_reports`.
    """
    judged = judge_folder(folder, gate_name)
    write_reports(judged)
    return judged.leaderboard


def judge_folder(folder: Path, gate_name: Path | str | None = None) -> JudgedFolder:
    """Judge the rows of a results folder, and write the leaderboard before anything is drawn.

    Args:
        folder: A results folder.
        gate_name: Name or file of the gate; by default the gate that the sweep was registered with.

    Raises:
        UserError: The folder has no rows, none of them can be judged, or its record is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give results/NAME of a sweep")
    gate, mark, note = gate_of(folder, gate_name)
    rows, record = read_named_rows(folder), read_sweep_record(folder)
    try:
        runs = judge_runs(rows, gate)
        leaderboard = make_leaderboard(rows, runs, gate, record.get("withdrawn"))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    source = [*([note] if note else []), *provenance(record), *looks_of(folder)]
    write_leaderboard(folder, leaderboard, gate, source, mark)
    return JudgedFolder(folder, gate, record, runs, leaderboard, source, mark, note)


def write_reports(judged: JudgedFolder) -> None:
    """Write all that shows the leaderboard in detail: figures, a report for each configuration, and the page.

    Where another gate than the registered one judged, only the page is written, under a name of its own.

    Raises:
        UserError: A file of the folder is damaged.
    """
    folder, gate, record, runs, leaderboard, source, mark, note = judged
    sections = config_sections(folder, runs, leaderboard, gate, record)
    answers = sampled_answers(runs_to_draw(runs, leaderboard))
    if mark:
        # Figures name verdicts: these are drawn for the page only.
        with tempfile.TemporaryDirectory() as drawn:
            figures, left_out = draw_all(folder, runs, leaderboard, record, Path(drawn))
            page = Page(record, leaderboard, gate, sections, figures, left_out, note, answers)
            write_page(folder, page, f"report{mark}.html", Path(drawn))
        return
    figures, left_out = draw_all(folder, runs, leaderboard, record)
    draw_knockouts(folder, runs)
    for section in sections:
        report = section._replace(blocks=[Text(line) for line in source])
        write_atomic(folder / REPORTS / f"{section.title}.md", (section_markdown(report) + "\n").encode())
    write_arms(folder)
    write_page(folder, Page(record, leaderboard, gate, sections, figures, left_out, answers=answers))


class ChosenGate(NamedTuple):
    """The gate that judges, and what sets its files apart where the sweep was registered with another one.

    `mark` is the end of these files' names, `note` the line that they begin with; both are empty for the
    registered gate, and where none was registered.
    """

    gate: GateConfig
    mark: str = ""
    note: str = ""


def gate_of(folder: Path, name: Path | str | None) -> ChosenGate:
    """Return the named gate, else the one that the sweep was registered with, else the gate `content`.

    What a gate file calls itself does not make it the registered gate: the criteria do.
    """
    registered = registered_gate(folder)
    if name is None and registered is not None:
        return ChosenGate(registered)
    gate = load_gate(name)
    if registered is None or gate.digest == registered.digest:
        return ChosenGate(registered or gate)
    note = (
        f"Not the registered gate: judged anew by `{gate.name}` ({gate.digest}); the sweep was registered with "
        f"`{registered.name}` ({registered.digest}), whose verdicts are in leaderboard.md."
    )
    marked = gate.model_copy(update={"name": f"{gate.name} ({gate.digest}, not the registered gate)"})
    return ChosenGate(marked, f"-by-{gate.digest}", note)


def read_named_rows(folder: Path) -> pd.DataFrame:
    """Return the rows of a results folder.

    Raises:
        UserError: There are none, or a configuration's name is not safe as the name of its report's file.
    """
    rows = RowStore(folder).read()
    if rows.empty:
        raise UserError(f"{folder}: holds no rows; run the sweep, or check the folder")
    for name in rows.config.unique():
        if name and PLAIN_NAME.fullmatch(name) is None:
            raise UserError(f"{folder}: rows: config: {name[:80]!r} is not a plain name; fix the rows")
    return rows


def write_leaderboard(
    folder: Path, leaderboard: pd.DataFrame, gate: GateConfig, source: Sequence[str], mark: str = ""
) -> None:
    """Write leaderboard.csv and leaderboard.md, the latter below the lines of `source`."""
    write_atomic(folder / f"leaderboard{mark}.csv", leaderboard.to_csv(index=False).encode())
    text = [
        f"# {folder.resolve().name}",
        *source,
        leaderboard_text(leaderboard, "github"),
        "\n".join(f"- {line}" for line in reasons(leaderboard)),
        *legend(leaderboard, gate),
    ]
    write_atomic(folder / f"leaderboard{mark}.md", ("\n\n".join(text) + "\n").encode())


def config_sections(
    folder: Path,
    runs: Sequence[JudgedRun],
    leaderboard: pd.DataFrame,
    gate: GateConfig,
    record: dict[str, Any],
) -> list[Section]:
    """Return the report of each configuration that has a judged run, in the leaderboard's order."""
    sections = []
    for config in dict.fromkeys(leaderboard.config[leaderboard.seed.notna()]):
        own = [run for run in runs if run.config == config]
        lines = leaderboard[leaderboard.config == config].itertuples()
        statuses = [f"{line.verdict}: {line.reason}" for line in lines]
        sections.append(config_section(folder, own, statuses, gate, record))
    return sections


def draw_all(
    root: Path,
    runs: Sequence[JudgedRun],
    leaderboard: pd.DataFrame,
    record: dict[str, Any],
    into: Path | None = None,
) -> tuple[list[Figure], list[str]]:
    """Draw every figure for which the folder has the data, as PNG and SVG, into its `figures/` or those of `into`.

    Returns:
        The figures in reading order, and lines about what was left out and why.
    """
    use_file_backend()
    shown = runs_to_draw(runs, leaderboard)
    styles = line_styles([run.config for run in shown])
    drawn: list[DrawnFigure] = []
    if shown:
        caption = "Success under each condition, with 95 % intervals"
        drawn.append(DrawnFigure("conditions", caption, draw_conditions(shown)))
        caption = "Success against k, beside no message, full text and priming"
        drawn.append(DrawnFigure("slots", caption, draw_by_k(shown, styles)))
        if any(scale_gate_of(name) is not None for run in shown for name in run.rows.condition.unique()):
            caption = "Success against the prefix's scale"
            drawn.append(DrawnFigure("scale_gate", caption, draw_scale_gates(shown, styles)))
        if sized_successes(shown):
            caption = "Success against bytes per message, beside the text and the text cut"
            drawn.append(DrawnFigure("pareto", caption, draw_pareto(shown, styles)))
        drawn.append(DrawnFigure("outcomes", "Episodes that each condition solves", draw_outcomes(shown)))
        if leaderboard.score.notna().any():
            drawn.append(DrawnFigure("scores", "Search score of every training, by k", draw_scores(leaderboard)))
    search_figures, search_left_out = draw_search(root, record)
    training_figures, training_left_out = draw_training(root, styles)
    drawn += [*search_figures, *training_figures]
    for name, _, figure in drawn:
        if figure is not None:
            save(figure, *png_and_svg((into or root) / FIGURES / name))
    figures = [Figure(caption, f"{FIGURES}/{name}.svg") for name, caption, _ in drawn]
    return figures, [*search_left_out, *training_left_out]
