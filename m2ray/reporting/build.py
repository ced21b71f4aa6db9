# NEWDOC
"""Leaderboard, attempt reports, pictures and page, from rows, and from the diagnoses where a sweep made any.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from m2ray.config.gate_file import GateConfig, load_gate
from m2ray.config.record import read_sweep_record, record_file
from m2ray.evaluation.confirm_ledger import confirm_looks
from m2ray.evaluation.rows import RowStore
from m2ray.reporting.arms import write_arms
from m2ray.reporting.document import Picture, Text, section_markdown
from m2ray.reporting.figures import FOLDER as FIGURES
from m2ray.reporting.figures import (
    draw_by_k,
    draw_conditions,
    draw_outcomes,
    draw_scale_gates,
    line_styles,
    runs_to_draw,
)
from m2ray.reporting.html import Page, write_page
from m2ray.reporting.leaderboard import JudgedRun, judge_runs, leaderboard_text, legend, make_leaderboard, reasons
from m2ray.reporting.provenance import provenance
from m2ray.reporting.search_figures import draw_scores, draw_search
from m2ray.reporting.sections import config_section
from m2ray.reporting.training_figures import draw_training
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.plotting import png_and_svg, save, use_file_backend
from m2ray.util.strict_yaml import validate

PLAIN_NAME = re.compile(r"[\w][\w .+=@-]{0,127}")


def registered_gate(folder: Path, path: Path | None) -> GateConfig:
    """The gate at a path, else the one a sweep was registered with, else the reference's."""
    registered = None if path else read_sweep_record(folder).get("gate")
    if registered is None:
        return load_gate(path)
    return validate(GateConfig, registered, f"{record_file(folder)}: gate")


def build(folder: Path, gate_file: Path | None = None) -> pd.DataFrame:
    """Write leaderboard, attempt reports, pictures, the table of diagnoses and the page; returns the leaderboard.

    Raises:
        UserError: no rows there, or none that can be judged.
    """

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give results/NAME of a sweep")
    gate = registered_gate(folder, gate_file)
    rows = RowStore(folder).read()
    if rows.empty:
        raise UserError(f"{folder}: holds no rows; run the sweep, or check the folder")
    for name in rows.config.unique():
        if name and PLAIN_NAME.fullmatch(name) is None:
            # Each configuration gets a file of its name.
            raise UserError(f"{folder}: rows: config: {name[:80]!r} is no plain name; fix the rows")
    try:
        attempts = judge_runs(rows, gate)
        board = make_leaderboard(rows, attempts, gate)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    about = read_sweep_record(folder)
    pictures, left_out = draw_all(folder, attempts, board, about)
    write_atomic(folder / "leaderboard.csv", board.to_csv(index=False).encode())
    text = [
        f"# {folder.resolve().name}",
        *provenance(about),
        *confirm_looks(folder),
        leaderboard_text(board, "github"),
    ]
    text += ["\n".join(f"- {line}" for line in reasons(board)), *legend(board, gate)]
    write_atomic(folder / "leaderboard.md", ("\n\n".join(text) + "\n").encode())
    reports = []
    for config in dict.fromkeys(board.config[board.seed.notna()]):
        mine = [attempt for attempt in attempts if attempt.config == config]
        lines = [board[(board.config == config) & (board.seed == attempt.seed)].iloc[0] for attempt in mine]
        statuses = [f"{line.verdict}: {line.reason}" for line in lines]
        report = config_section(folder, mine, statuses, gate, about)
        whole = report._replace(blocks=[Text(line) for line in [*provenance(about), *confirm_looks(folder)]])
        write_atomic(folder / "attempts" / f"{config}.md", (section_markdown(whole) + "\n").encode())
        reports.append(report)
    write_arms(folder)
    write_page(folder, Page(about, board, gate, reports, pictures, left_out))
    return board


def draw_all(
    root: Path, attempts: Sequence[JudgedRun], board: pd.DataFrame, about: dict[str, Any]
) -> tuple[list[Picture], list[str]]:
    """Draw every picture that the rows, the journal and the trainings allow into `figures/`, as PNG and SVG.

    Returns:
        The pictures in reading order, and what was left out and why, as lines.
    """

    use_file_backend()
    told = runs_to_draw(attempts, board)
    looks = line_styles([attempt.config for attempt in told])
    found: list[tuple[str, str, Any]] = []
    if told:
        found.append(("conditions", "Success under each condition, with 95 % intervals", draw_conditions(told)))
        found.append(
            ("slots", "Success against k, beside no message, full text and priming", draw_by_k(told, looks))
        )
        if any("scale_gate=" in name for attempt in told for name in attempt.rows.condition.unique()):
            found.append(("scale_gate", "Success against the prefix's scale", draw_scale_gates(told, looks)))
        found.append(("outcomes", "Which episodes each condition solves", draw_outcomes(told)))
    if told and board.score.notna().any():
        found.append(("scores", "Search score of every training, by k", draw_scores(board)))
    searched, words = draw_search(root, about)
    trained, more = draw_training(root, looks)
    found, left_out = [*found, *searched, *trained], [*words, *more]
    for name, _, figure in found:
        if figure is not None:
            save(figure, *png_and_svg(root / FIGURES / name))
    return [Picture(says, f"{FIGURES}/{name}.svg") for name, says, _ in found], left_out
