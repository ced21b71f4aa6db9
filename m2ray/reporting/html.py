"""The HTML page of a sweep, `report.html`: one file that needs no network, for phone and desktop, light and dark.

Its contents come from the leaderboard, the configurations' sections and the sweep's record; template, style and
script are in `page/`. All text from files is escaped. The page's content security policy forbids every script and
style except its own, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from PIL import Image

from m2ray.config.gate_file import GateConfig
from m2ray.diagnosis.store import FOLDER
from m2ray.evaluation.confirm_ledger import looks_of
from m2ray.judging.verdict import ALL_HOLD, FAIL, INVALID, PART, PASS, PASSES, WHOLE
from m2ray.reporting.answers import VIEWED
from m2ray.reporting.document import Figure, Section
from m2ray.reporting.leaderboard import FAILED_RUN, VERDICTS, configuration_lines, seed_lines
from m2ray.reporting.leaderboard_text import display_cells, legend
from m2ray.reporting.provenance import recorded_changes
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.tables import Table
from m2ray.util.text import pluralize
from m2ray.util.trees import get_key

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "page"
NUMBER = re.compile(r"\[?([-+]?\d+(?:\.\d+)?)(?:, .*\])?")  # an interval is sorted by its lower bound
GRADED = (PART, PASS, WHOLE)  # verdicts with the amount as their reason, by a gate with grades
VERDICT_CLASSES = {
    WHOLE: "pass",
    PASS: "pass",
    PART: "part",
    FAIL: "fail",
    INVALID: "fail",
    FAILED_RUN: "fail",
}  # CSS classes
CARRIES = {  # by verdict, in plain words
    WHOLE: "carries the message nearly as well as the text",
    PASS: "carries the message",
    PART: "carries less than half of what the text gains",
    FAIL: "comes closest, but is not shown to carry the message",
}
TEXT_COLUMNS = ("config", "reason")  # never numbers, even if a name looks like one
FIRST_FIGURES = 3  # those that matter most; others are folded
LARGEST_SVG = 100_000  # bytes; a larger one is embedded as PNG, which is smaller
PNG_COLORS = 256  # of an embedded PNG


class Page(NamedTuple):
    """Contents of a page."""

    record: dict[str, Any]  # the sweep's
    leaderboard: pd.DataFrame
    gate: GateConfig
    sections: Sequence[Section]  # one per configuration
    figures: Sequence[Figure]
    left_out: Sequence[str]  # figures that are missing, and why
    note: str = ""  # above everything else
    answers: Sequence[dict[str, Any]] = ()  # for the viewer: see `m2ray.reporting.answers`


def write_page(folder: Path, page: Page, name: str = FILE, figures: Path | None = None) -> None:
    """Write a page into a results folder.

    Args:
        folder: The results folder.
        page: Its contents.
        name: The page's name.
        figures: The folder of figures that were drawn for this page only; others are in the results folder.

    Raises:
        UserError: A figure is damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"inline_code": inline_code, "csp_hash": csp_hash}
    text = environment.get_template(FILE).render(
        **_contents(folder, page),
        data_url=lambda path: (figures and data_url(figures / path)) or data_url(folder / path),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )
    write_atomic(folder / name, (text + "\n").encode())


def _contents(folder: Path, page: Page) -> dict[str, Any]:
    """Return the template's variables."""
    anchors = {section.title: f"configuration-{i}" for i, section in enumerate(page.sections, start=1)}
    columns, lines = leaderboard_table(page.leaderboard, anchors)
    return {
        "name": folder.resolve().name,
        "note": page.note,
        "description": get_key(page.record, "space.about"),
        "headline": headline(page.leaderboard),
        "confirm_looks": looks_of(folder),
        "verdicts": list(dict.fromkeys(page.leaderboard.verdict)),
        "summary": summary_lines(page.leaderboard, anchors),
        "columns": columns,
        "lines": lines,
        "legend": legend(page.leaderboard, page.gate),
        "first_figures": page.figures[:FIRST_FIGURES],
        "more_figures": [*page.figures[FIRST_FIGURES:], *other_figures(folder)],
        "answers": answers_json(page.answers),
        "runs": [entry["run"] for entry in page.answers],
        "viewed": VIEWED,
        "left_out": page.left_out,
        "configurations": [config_entry(s, page.leaderboard, anchors[s.title]) for s in page.sections],
        "record": record_table(page.record, page.gate),
        "changes": [["Date", "Setting", "Before", "Since"], *recorded_changes(page.record)],
    }


# --- text ----------------------------------------------------------------------------------------------------


def inline_code(text: object) -> Markup:
    """Return a text as escaped HTML, with the parts in backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a stray backtick
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def csp_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def headline(leaderboard: pd.DataFrame) -> list[str]:
    """Return in plain words each judged configuration's verdict and amount, and how many passed."""
    judged = configuration_lines(leaderboard[leaderboard.verdict.isin(VERDICTS)])
    if judged.empty:
        return ["Nothing has been judged on confirm."]
    passed = judged[judged.verdict.isin(PASSES)]
    counts = ", ".join(f"{(judged.verdict == name).sum()} {name}" for name in dict.fromkeys(judged.verdict))
    count = f"{len(passed)} of {pluralize(len(judged), 'configuration')} passed on confirm: {counts}."
    line = passed.iloc[0] if len(passed) else judged.sort_values("normal").iloc[-1]
    if line.verdict == INVALID:
        first = f"Nothing can be said about {line.config}: the setting is not valid."
    else:
        first = f"{line.config} {CARRIES[line.verdict]}: {line.verdict}."
    baselines = (("P0", "without a message"), ("P1", "with the full text"))
    others = [f", {100 * line[name]:.1f} % {words}" for name, words in baselines if not pd.isna(line[name])]
    rate = f"{100 * line.normal:.1f} % [{100 * line.normal_ci_low:.1f}, {100 * line.normal_ci_high:.1f}]"
    solved = (
        f"With {pluralize(line.k, 'vector')} in place of the text, the receiver solves {rate} of {line.n} episodes"
        f"{''.join(others)}."
    )
    lines = [first, solved, count]
    if line.verdict in GRADED and line.reason != ALL_HOLD:
        return [*lines, f"Amount: {line.reason}."]
    return lines if line.verdict in PASSES else [*lines, f"Why: {line.reason}."]


def answers_json(answers: Sequence[dict[str, Any]]) -> Markup:
    """Return the viewer's answers as JSON whose strings cannot close the script element."""
    text = json.dumps(list(answers), separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# --- leaderboard ---------------------------------------------------------------------------------------------


class SummaryLine(NamedTuple):
    """A configuration in the summary: what it carries, and why it has its verdict."""

    config: str
    anchor: str | None
    verdict: str
    css_class: str
    normal: str
    amount: str
    reason: str


def summary_lines(leaderboard: pd.DataFrame, anchors: dict[str, str]) -> list[SummaryLine]:
    """Return one line per configuration, in the leaderboard's order."""
    lines = []
    for line in configuration_lines(leaderboard).to_dict("records"):
        rate, low, high = (100 * line[name] for name in ("normal", "normal_ci_low", "normal_ci_high"))
        normal = "" if pd.isna(rate) else f"{rate:.1f} % [{low:.1f}, {high:.1f}]"
        retention = line["retention"]
        amount = "" if pd.isna(retention) else f"{100 * retention:.0f} % of the text's gain"
        config, verdict, reason = (str(line[name]) for name in ("config", "verdict", "reason"))
        css_class = VERDICT_CLASSES.get(verdict, "")
        lines.append(SummaryLine(config, anchors.get(config), verdict, css_class, normal, amount, reason))
    return lines


class Column(NamedTuple):
    """A column of the leaderboard, and whether it holds numbers."""

    name: str
    is_number: bool


class Cell(NamedTuple):
    """The text of a cell, and the number that it is sorted by, if any."""

    text: str
    number: float | None


class Line(NamedTuple):
    """A line of the leaderboard.

    Attributes:
        cells: One per column.
        verdict: Its verdict.
        css_class: The verdict's CSS class.
        anchor: Its configuration's place on the page.
        is_seed: True for a training seed below its configuration's own line.
    """

    cells: list[Cell]
    verdict: str
    css_class: str
    anchor: str | None
    is_seed: bool


def leaderboard_table(leaderboard: pd.DataFrame, anchors: dict[str, str]) -> tuple[list[Column], list[Line]]:
    """Return the leaderboard's columns and lines; `anchors` gives a configuration's place on the page."""
    # Configuration and verdict first: they are visible on a phone without scrolling.
    shown = [
        {"config": line["config"], "verdict": line["verdict"], **line, "reason": str(reason)}
        for line, reason in zip(display_cells(leaderboard), leaderboard.reason, strict=True)
    ]
    lines = [
        Line(
            [Cell(text, None if name in TEXT_COLUMNS else number_of(text)) for name, text in line.items()],
            line["verdict"],
            VERDICT_CLASSES.get(line["verdict"], ""),
            anchors.get(line["config"]),
            is_seed,
        )
        for line, is_seed in zip(shown, seed_lines(leaderboard), strict=True)
    ]
    columns = []
    for i, name in enumerate(shown[0]):
        filled = [line.cells[i] for line in lines if line.cells[i].text]
        columns.append(Column(name, bool(filled) and all(cell.number is not None for cell in filled)))
    return columns, lines


def number_of(text: str) -> float | None:
    """Return the number in a cell's text, None if it is not a number or an interval."""
    match = NUMBER.fullmatch(text)
    return float(match[1]) if match else None


# --- other parts ---------------------------------------------------------------------------------------------


def config_entry(section: Section, leaderboard: pd.DataFrame, anchor: str) -> dict[str, Any]:
    """Return a configuration's entry on the page; its heading has its verdict, and counts those of its seeds."""
    own = leaderboard.verdict[leaderboard.config == section.title]
    verdict, of_seeds = str(own.iloc[0]), [str(verdict) for verdict in own.iloc[1:]]
    counts = ", ".join(f"{of_seeds.count(name)} {name}" for name in dict.fromkeys(of_seeds))
    return {
        "section": section,
        "verdict": verdict,
        "css_class": VERDICT_CLASSES.get(verdict, ""),
        "seeds": f"{len(of_seeds)} training seeds: {counts}" if of_seeds else "",
        "anchor": anchor,
    }


def other_figures(folder: Path) -> list[Figure]:
    """Return the figures of the whole sweep that other commands have put into its folder."""
    known = (
        Figure("Comparison of the diagnoses of all configurations", f"{FOLDER}/table.svg"),
        Figure("Success against bits per message", "distortion/distortion.svg"),
    )
    return [figure for figure in known if (folder / figure.path).is_file()]


def record_table(record: dict[str, Any], gate: GateConfig) -> Table:
    """Return the table of what made the results: gate, command, machine, code, receiver and packages."""
    table = [["What", "Value"], ["gate", gate.name]]
    for title, key in (
        ("command", "command"),
        ("space", "file"),
        ("date", "date"),
        ("machine", "machine"),
        ("commit", "git"),
        ("code digest", "code"),
        ("python", "python"),
    ):
        if record.get(key) is not None:
            table.append([title, str(record[key])])
    if receiver := get_key(record, "receiver"):
        table.append(["receiver", f"{receiver.get('name')} (digest {receiver.get('digest')})"])
    packages = get_key(record, "packages")
    if isinstance(packages, dict):
        table.append(["packages", ", ".join(f"{name} {version}" for name, version in packages.items())])
    return table


def data_url(file: Path) -> str:
    """Return a figure as a data URL: a small SVG unchanged, else the PNG beside it with a reduced palette.

    Returns:
        An empty text if there is no such file.

    Raises:
        UserError: The PNG is damaged.
    """
    if file.suffix == ".svg" and file.is_file() and file.stat().st_size <= LARGEST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
    file = file.with_suffix(".png")
    if not file.is_file():
        return ""
    out = io.BytesIO()
    try:
        with Image.open(file) as image:
            method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
            image.convert("RGB").quantize(PNG_COLORS, method, dither=dither).save(out, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{file}: not an image ({error}); rebuild or remove it") from None
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
