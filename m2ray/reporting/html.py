"""The page of a sweep, `report.html`: one file that needs no network, for phone and desktop, light and dark.

What it says comes from report.py, sections.py and the sweep's record; how it looks is in `page/`. Everything that
comes from files is escaped, and the page's own policy runs no script and loads nothing but what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from m2ray.config.gate_file import GateConfig
from m2ray.diagnosis.store import FOLDER
from m2ray.evaluation.confirm_ledger import confirm_looks
from m2ray.judging.gate import FAIL, PASS
from m2ray.reporting.document import Picture, Section
from m2ray.reporting.leaderboard import FAILED_RUN, display_cells, legend
from m2ray.reporting.provenance import recorded_changes
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic
from m2ray.util.tables import Table
from m2ray.util.text import pluralize
from m2ray.util.trees import get_key

FILE = "report.html"


PAGE = Path(__file__).parent / "page"


NUMBER = re.compile(r"\[?([-+]?\d+(?:\.\d+)?)(?:, .*\])?")  # an interval is sorted by its lower bound


TONES = {PASS: "pass", FAIL: "fail", FAILED_RUN: "fail"}


LARGEST_SVG = 100_000  # bytes; above, the PNG is smaller


TEXTS = ("config", "why")  # columns that are never figures, whatever a name looks like


COLOURS = 256  # of an embedded PNG


class Page(NamedTuple):
    """What a page is made of."""

    about: dict[str, Any]
    board: pd.DataFrame
    gate: GateConfig
    reports: Sequence[Section]
    pictures: Sequence[Picture]
    left_out: Sequence[str]


def write_page(folder: Path, page: Page) -> None:
    """Write report.html into a results folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"marked": inline_code, "digest": csp_hash}
    style, script = (Markup((PAGE / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    places = {section.title: f"attempt-{i}" for i, section in enumerate(page.reports, start=1)}
    columns, lines = table_of(page.board, places)
    text = environment.get_template(FILE).render(
        name=folder.resolve().name,
        says=get_key(page.about, "space.about"),
        answer=headline(page.board),
        looks=confirm_looks(folder),
        verdicts=list(dict.fromkeys(page.board.verdict)),
        columns=columns,
        lines=lines,
        legend=legend(page.board, page.gate),
        pictures=[*page.pictures, *other_pictures(folder)],
        left_out=page.left_out,
        attempts=[run_entry(section, page.board, places[section.title]) for section in page.reports],
        record=record_table(page),
        changes=changes_table(page.about),
        embedded=lambda path: data_url(folder / path),
        style=style,
        script=script,
    )
    write_atomic(folder / FILE, (text + "\n").encode())


def inline_code(text: object) -> Markup:
    """A text from anywhere, escaped; what stands in backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a stray one
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def csp_hash(text: str) -> str:
    """A source as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def headline(board: pd.DataFrame) -> list[str]:
    """How many passed in one sentence, and in another the best of them, or what came nearest."""
    told = board[board.verdict.isin([PASS, FAIL])]
    if told.empty:
        return ["Nothing has been judged on confirm."]
    passed = told[told.verdict == PASS]
    whole = [config for config, group in told.groupby("config") if (group.verdict == PASS).all()]
    count = (
        f"{len(passed)} of {pluralize(len(told), 'training')} passed on confirm, "
        f"{len(whole)} of {pluralize(told.config.nunique(), 'configuration')} with every training seed."
    )
    title, line = "Nearest, by success", told.loc[told.normal.idxmax()]
    if len(passed):
        title, line = "Best that passed, by search score", passed.iloc[0]
    share = f"{100 * line.normal:.1f} % [{100 * line.normal_ci_low:.1f}, {100 * line.normal_ci_high:.1f}]"
    rivals = (("P0", "without a message"), ("P1", "with the text"))
    told_too = [f", {100 * line[name]:.1f} % {words}" for name, words in rivals if not pd.isna(line[name])]
    seed = f"{line.config}, training seed {line.seed}, k = {line.k}"
    return [count, f"{title}: {seed} solves {share} of {line.n} episodes with its message{''.join(told_too)}."]


class Column(NamedTuple):
    """A column of the board, and whether it holds figures."""

    name: str
    number: bool


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by where that is a figure."""

    text: str
    number: float | None


class Line(NamedTuple):
    """A line of the board, and the place of its attempt on the page."""

    cells: list[Cell]
    verdict: str
    tone: str
    place: str | None


def table_of(board: pd.DataFrame, places: dict[str, str]) -> tuple[list[Column], list[Line]]:
    """The board's columns and lines."""
    shown = [
        {"config": line["config"], "verdict": line["verdict"], **line, "why": str(reason)}
        for line, reason in zip(display_cells(board), board.reason, strict=True)
    ]
    lines = [
        Line(
            [Cell(text, None if name in TEXTS else number_of(text)) for name, text in line.items()],
            line["verdict"],
            TONES.get(line["verdict"], ""),
            places.get(line["config"]),
        )
        for line in shown
    ]
    columns = []
    for i, name in enumerate(shown[0]):
        cells = [line.cells[i] for line in lines if line.cells[i].text]
        columns.append(Column(name, bool(cells) and all(cell.number is not None for cell in cells)))
    return columns, lines


def number_of(text: str) -> float | None:
    """The figure that a cell shows, None where it shows none."""
    found = NUMBER.fullmatch(text)
    return float(found[1]) if found else None


def run_entry(section: Section, board: pd.DataFrame, place: str) -> dict[str, Any]:
    """A configuration's part of the page: what its seeds came to stands in its heading."""
    found = [str(verdict) for verdict in board.verdict[board.config == section.title]]
    heads = [
        {"text": one if len(found) == 1 else f"{found.count(one)} {one}", "tone": TONES.get(one, "")}
        for one in dict.fromkeys(found)
    ]
    return {"section": section, "verdicts": heads, "place": place, "single": len(found) == 1}


def other_pictures(folder: Path) -> list[Picture]:
    """Pictures of the whole sweep that other commands put into its folder."""
    known = (
        Picture("What moves what: diagnoses of all arms", f"{FOLDER}/table.svg"),
        Picture("Success against bits per message", "distortion/distortion.svg"),
    )
    return [picture for picture in known if (folder / picture.path).is_file()]


def record_table(page: Page) -> Table:
    """Where the figures came from."""
    about, receiver = page.about, get_key(page.about, "receiver") or {}
    table = [["What", "Value"], ["gate", page.gate.name]]
    for title, key in (
        ("command", "command"),
        ("space", "file"),
        ("date", "date"),
        ("machine", "machine"),
        ("commit", "git"),
        ("code digest", "code"),
        ("python", "python"),
    ):
        if about.get(key) is not None:
            table.append([title, str(about[key])])
    if receiver:
        table.append(["receiver", f"{receiver.get('name')} (digest {receiver.get('digest')})"])
    packages = get_key(about, "packages")
    if isinstance(packages, dict):
        table.append(["packages", ", ".join(f"{name} {version}" for name, version in packages.items())])
    return table


def changes_table(about: dict[str, Any]) -> Table:
    """What was changed when the sweep was resumed."""
    return [["Date", "Setting", "Before", "Since"], *recorded_changes(about)]


def data_url(file: Path) -> str:
    """A picture as a data URL: a small SVG as it is, else the PNG beside it in fewer colours; empty without it.

    Raises:
        UserError: no picture.
    """
    if file.suffix == ".svg" and file.is_file() and file.stat().st_size <= LARGEST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
    file = file.with_suffix(".png")
    if not file.is_file():
        return ""
    from PIL import Image

    out = io.BytesIO()
    try:
        with Image.open(file) as picture:
            few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(out, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{file}: not a picture ({error}); rebuild or remove it") from None
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
