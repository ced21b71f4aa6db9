"""The page of a sweep in a real browser: sorting, filtering, opening; phone and desktop width, light and dark."""

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading

import pandas as pd
import pytest
from made_reports import hostile_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Uses the page as a reader would, in a frame as wide as a phone or a desktop, and records what it then shows.
HARNESS = """<!doctype html><pre id="seen"></pre><script>
const seen = {};
const load = (width) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "/report.html";
  frame.onload = () => done(frame);
  document.body.append(frame);
});
const run = async () => {
  for (const width of [390, 1366]) {
    const frame = await load(width), page = frame.contentDocument, get = (id) => page.getElementById(id);
    const shown = () => [...get("leaderboard-table").tBodies[0].rows].filter((row) => !row.hidden).map((row) =>
      row.cells[0].textContent);
    const headers = [...get("leaderboard-table").tHead.rows[0].cells];
    const header = (name) => headers.find((cell) => cell.textContent.trim() === name);
    const clicked = (name) => {
      header(name).firstElementChild.click();
      return [header(name).getAttribute("aria-sort"), shown()];
    };
    const typed = (id, value) => {
      get(id).value = value;
      get(id).dispatchEvent(new Event("input", { bubbles: true }));
      return [shown(), get("count").value];
    };
    const listed = () => [...get("answers-table").tBodies[0].rows].map((row) => [...row.cells].map((cell) =>
      cell.textContent));
    const chosen = (id, value) => {
      get(id).value = value;
      get(id).dispatchEvent(new Event("input", { bubbles: true }));
      return [listed(), get("answers-count").value];
    };
    const answers = () => [chosen("answers-run", "1"), chosen("answers-condition", "P0"),
      chosen("answers-outcome", "1"), chosen("answers-words", "2001")];
    const box = page.documentElement, body = frame.contentWindow.getComputedStyle(page.body);
    seen[width] = {
      first: shown(), width: box.scrollWidth,
      shuffle: [clicked("shuffle"), clicked("shuffle"), clicked("shuffle")],
      config: clicked("config"),
      sorted: page.querySelectorAll("[aria-sort]").length,
      verdict: typed("verdict", "FAIL"), both: typed("words", "no such word"), none: typed("verdict", ""),
      words: typed("words", "WINNER criteria"),
      summary: [...get("summary").querySelectorAll("tbody th, tbody td")].every((cell) => {
        const place = cell.getBoundingClientRect();
        return place.left >= 0 && place.right <= width && (place.height > 0 || cell.textContent === "");
      }),
      answers: answers(),
      inside: [...page.querySelectorAll("img, select, input")].every((shown) =>
        shown.getBoundingClientRect().right <= width),
      image: page.images[0].naturalWidth, ground: body.backgroundColor,
    };
    const anchor = page.querySelector("#leaderboard-table a").hash;
    frame.contentWindow.location.hash = anchor;
    await new Promise((done) => frame.contentWindow.addEventListener("hashchange", () => setTimeout(done, 0)));
    seen[width].opened = page.querySelector(anchor).open;
  }
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
run();
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def leaderboard(folder):
    return hostile_page(folder)[1]


@pytest.fixture(scope="module")
def browse(folder, leaderboard):
    """Run the harness in a real browser; return what it records, and the errors on the console."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine")
    (folder / "harness.html").write_text(HARNESS)
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def visit(*options):
            command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
            command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom", *options]
            url = f"http://127.0.0.1:{server.server_port}/harness.html"
            done = subprocess.run([*command, url], capture_output=True, text=True, env={**os.environ, "LANG": "C"})
            found = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)[1]))
            errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
            return found, errors

        yield visit
        server.shutdown()


@pytest.mark.slow
def test_it_sorts_filters_and_opens_at_phone_and_desktop_width_without_console_errors(browse, leaderboard):
    found, errors = browse()
    assert errors == []
    order = list(leaderboard.config)
    evaluated = leaderboard[leaderboard.shuffle.notna()]
    rest = [name for name, value in zip(leaderboard.config, leaderboard.shuffle, strict=True) if pd.isna(value)]
    down = list(evaluated.sort_values("shuffle", ascending=False, kind="stable").config)
    up = list(evaluated.sort_values("shuffle", kind="stable").config)
    for width in ("390", "1366"):
        shown = found[width]
        assert shown["width"] <= int(width)
        assert shown["first"] == order
        assert shown["shuffle"] == [["descending", down + rest], ["ascending", up + rest], [None, order]]
        assert shown["config"] == ["ascending", sorted(order)]
        assert shown["sorted"] == 1
        assert shown["verdict"] == [["loser"], f"1 of {len(order)} shown"]
        assert shown["both"][0] == shown["none"][0] == []
        assert shown["words"][0] == ["winner", "winner", "winner"]  # over the seeds, and each of two
        assert shown["image"] == 9
        assert shown["summary"] is True, "all of the summary is visible without scrolling sideways"
        assert shown["inside"] is True, "pictures and fields are as wide as the page at most"
        every, under_p0, right, one = shown["answers"]
        assert every[1] == "400 of 400 answers, the first 50 shown"
        assert every[0][0][:2] == ["2000", "normal"]
        assert under_p0[1].startswith("100 of 400 answers")
        assert {(line[1], line[3]) for line in right[0]} == {("P0", "right")}
        assert all("2001" in line[0] or "2001" in line[2] for line in one[0])
        assert shown["opened"] is True


@pytest.mark.slow
def test_it_is_dark_if_the_reader_prefers_dark(browse):
    light = browse("--blink-settings=preferredColorScheme=1")[0]["390"]["ground"]
    dark = browse("--blink-settings=preferredColorScheme=0")[0]["390"]["ground"]
    assert sum(map(int, re.findall(r"\d+", light))) > 700
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
