"""The page of a sweep: one file that loads nothing, with all text from files escaped."""

import base64
import hashlib
import html as entities
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from made_reports import EVIL, SVG, hostile_page, results_folder, run_rows, write_made_page
from made_rows import make_rows
from PIL import Image

from m2ray.config.gate_file import load_gate
from m2ray.evaluation.rows import failure_row
from m2ray.reporting.answers import sampled_answers, unreadable_table
from m2ray.reporting.build import build
from m2ray.reporting.document import section_markdown
from m2ray.reporting.html import LARGEST_SVG, answers_json, data_url, headline, inline_code, number_of
from m2ray.reporting.leaderboard import judge_runs
from m2ray.reporting.leaderboard_text import display_cells
from m2ray.util.errors import UserError


class Reader(HTMLParser):
    """Every element with its attributes, and all text outside of script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return hostile_page(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page[0])


def test_words_from_files_are_words_and_nothing_else(page, reader):
    text = page[0]
    assert reader.all("script") == [{"type": "application/json", "id": "answers-data"}, {}]
    assert len(reader.all("style")) == 1
    assert not [attrs for _, attrs in reader.elements for name in attrs if name.startswith("on")]
    assert not [attrs for attrs in reader.all("img") if not attrs["src"].startswith("data:image/")]
    assert "49" not in re.findall(r"&amp;amp;(\S*)", text)
    plain = " ".join(reader.text.split())
    # Sweep record, description, configuration, failure, diagnosis, look at confirm, figures, and what is left out.
    assert plain.count(" ".join(EVIL.split())) >= 10
    assert EVIL not in text


def test_it_loads_nothing_and_runs_only_its_own_script(page, reader):
    text = page[0]
    sources = [attrs[name] for _, attrs in reader.elements for name in ("src", "srcset", "data") if name in attrs]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not reader.all("link") + reader.all("iframe") + reader.all("base")
    links = [attrs["href"] for attrs in reader.all("a")]
    assert all(link.startswith("#") or "/" not in link.partition(":")[0] for link in links)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_links_within_the_page_lead_somewhere_and_no_id_is_given_twice(reader):
    ids = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in reader.all("a") if a["href"].startswith("#")} <= set(ids)
    named = [attrs["aria-labelledby"] for _, attrs in reader.elements if "aria-labelledby" in attrs]
    assert set(named) <= set(ids)


def test_tables_have_captions_and_headers_and_figures_have_alternative_texts(page, reader):
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in reader.all("th"))
    leaderboard = re.search(r'<table id="leaderboard-table">.*?</table>', page[0], re.S)[0]
    inside = Reader(leaderboard)
    headers = [attrs for attrs in inside.all("th") if attrs["scope"] == "col"]
    assert len(inside.all("button")) == len(headers) == 15
    assert all(attrs["type"] == "button" for attrs in inside.all("button"))
    assert reader.all("html") == [{"lang": "en"}]
    assert [attrs["alt"] for attrs in reader.all("img")] == [f"One {EVIL}"]
    assert "Gone: the figure is not in this folder." in reader.text
    sideways = [attrs for _, attrs in reader.elements if attrs.get("class") == "wide"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in sideways)


def test_the_table_is_the_leaderboard(page):
    text, leaderboard, _ = page
    lines = re.findall(r'<tr data-verdict="([^"]*)"(?: class="seed")?>(.*?)</tr>', text, re.S)
    assert [entities.unescape(verdict) for verdict, _ in lines] == list(leaderboard.verdict)
    for (_, line), shown in zip(lines, display_cells(leaderboard), strict=True):
        cells = [Reader(cell).text for cell in re.findall(r"<t[dh].*?</t[dh]>", line, re.S)]
        assert sorted(cells[:-1]) == sorted(shown.values())
    options = re.findall(
        r"<option[^>]*>(.*?)</option>", text.partition('id="all-columns"')[2].partition("</form>")[0]
    )
    assert options == ["all", *dict.fromkeys(leaderboard.verdict)]


def test_each_configuration_holds_every_section_of_its_markdown(page):
    text, _, sections = page
    parts = re.split(r'<details id="configuration-\d+">', text)[1:]
    assert len(parts) == len(sections) == 3
    for part, section in zip(parts, sections, strict=True):
        markdown = section_markdown(section)
        headings = re.findall(r"^#+ (.*)$", markdown, re.M)
        shown = [Reader(h).text for h in re.findall(r"<h[3-6]>.*?</h[3-6]>", part)]
        assert shown[: len(headings)] == headings
        tables = [line for line in markdown.splitlines() if line.startswith("|--")]
        assert part.partition("</section>")[0].count("<table>") == len(tables)


def test_the_headline_says_in_words_which_carries_how_much_and_by_which_verdict(page):
    assert headline(page[1]) == [
        "winner carries the message: PASS.",
        "With 4 vectors in place of the text, the receiver solves 75.0 % [70.3, 79.2] of 200 episodes, 30.0 % "
        "without a message, 90.0 % with the full text.",
        "1 of 2 configurations passed on confirm: 1 PASS, 1 FAIL.",
    ]
    leaderboard = page[1]
    none = headline(leaderboard[leaderboard.verdict != "PASS"])
    assert none[0] == "loser comes closest, but is not shown to carry the message: FAIL."
    assert none[1].startswith("With 4 vectors in place of the text, the receiver solves 32.0 %")
    assert none[2] == "0 of 1 configuration passed on confirm: 1 FAIL."
    assert none[3].startswith("Why: BACKWARDS: ")
    assert headline(leaderboard[leaderboard.verdict == "failed"]) == ["Nothing has been judged on confirm."]


def test_the_summary_has_a_line_per_configuration_with_verdict_normal_amount_and_why(page):
    text, leaderboard, _ = page
    table = re.search(r'<table id="summary">.*?</table>', text, re.S)[0]
    lines = [
        [Reader(cell).text for cell in re.findall(r"<t[dh].*?</t[dh]>", line, re.S)]
        for line in re.findall(r"<tr>(.*?)</tr>", table, re.S)
    ]
    assert lines[0] == ["configuration", "verdict", "normal [95 %]", "keeps", "why"]
    assert [line[0] for line in lines[1:]] == list(dict.fromkeys(leaderboard.config))
    assert lines[1] == ["winner", "PASS", "75.0 % [70.3, 79.2]", "75 % of the text's gain", "all criteria hold"]
    assert lines[-1][1:4] == ["failed", "", ""]


def test_the_answers_are_those_of_the_rows_and_cannot_break_out(tmp_path):
    rows = run_rows("a", splits=("confirm",))
    rows = rows.assign(answer=[EVIL if i % 2 else f"{i}" for i in range(len(rows))])
    runs = judge_runs(rows, load_gate("reference"))
    (entry,) = sampled_answers(runs)
    assert entry["run"] == "a, seed 0, split confirm"
    expected = {
        (row.episode, row.condition): (row.answer, int(row.success))
        for row in rows[rows.condition.isin(["normal", "shuffle", "P0", "P1"])].itertuples()
        if row.episode < 2100
    }
    assert {(episode, name): (answer, right) for episode, name, answer, right in entry["answers"]} == expected
    text = answers_json([entry])
    assert "<" not in text
    assert json.loads(text) == [entry]


def test_shares_of_unparsed_and_truncated_answers_are_told():
    rows = make_rows().assign(parsed=[i % 4 > 0 for i in range(1400)])
    rows["truncated"] = pd.array([True, *[False] * 199, *[None] * 200, *[False] * 1000], dtype="boolean")
    table = {line[0]: line[1:] for line in unreadable_table(rows)}
    assert table["identity"] == ["200", "25.0%", "0.5%"]
    assert table["normal"] == ["200", "25.0%", "unknown"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("95.1", 95.1),
        ("[76.2, 81.2]", 76.2),
        ("+0.293", 0.293),
        ("-1", -1),
        ("", None),
        ("k16", None),
        ("1e", None),
    ],
)
def test_a_cell_is_sorted_by_the_number_it_shows(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("see `a<b` there", "see <code>a&lt;b</code> there"),
        ("a ` stray", "a ` stray"),
        ("`<b>`<i>", "<code>&lt;b&gt;</code>&lt;i&gt;"),
    ],
)
def test_backticks_alone_are_markup(text, shown):
    assert inline_code(text) == shown


def test_a_large_svg_is_replaced_by_its_png_in_fewer_colors(tmp_path):
    file = tmp_path / "one.svg"
    file.write_text(SVG + " " * LARGEST_SVG)
    assert data_url(file) == ""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    data = data_url(file)
    assert data.startswith("data:image/png;base64,")
    assert len(data) < (tmp_path / "one.png").stat().st_size
    file.write_text(SVG)
    assert data_url(file) == f"data:image/svg+xml;base64,{base64.b64encode(SVG.encode()).decode()}"
    (tmp_path / "two.png").write_text("not an image")
    with pytest.raises(UserError, match=r"two\.png: not an image"):
        data_url(tmp_path / "two.svg")


def test_a_leaderboard_of_failures_alone_has_its_page(tmp_path):
    text, leaderboard, sections = write_made_page(results_folder(tmp_path, failure_row("a", 4, "easy", "died")))
    assert sections == []
    assert "Nothing has been judged on confirm." in Reader(text).text
    assert len(leaderboard) == 1


def test_a_damaged_record_is_refused_before_a_page_is_written(tmp_path):
    folder = results_folder(tmp_path, run_rows("a", splits=("confirm",)))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"space": {"axes": {"codec.k": {"choice": []}}}}))
    with pytest.raises(UserError, match=r"sweep\.yaml: space\.axes\.codec\.k"):
        build(folder)
    assert (folder / "leaderboard.md").exists(), "what is judged is written before anything is drawn"
    assert not (folder / "report.html").exists()
