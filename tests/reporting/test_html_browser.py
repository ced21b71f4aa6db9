"""The page of a sweep in a real browser: sorts, filters, opens; at phone and desktop width, light and dark."""

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

# Clicks in the page as a reader would, in a frame as wide as a phone or a desktop, and notes what it then shows.
HARNESS = """<!doctype html><pre id="said"></pre><script>
const said = {};
const frame = (width) => new Promise((done) => {
  const it = document.createElement("iframe");
  it.width = width; it.height = 800; it.src = "/report.html";
  it.onload = () => done(it);
  document.body.append(it);
});
const run = async () => {
  for (const width of [375, 1280]) {
    const it = await frame(width), page = it.contentDocument, get = (id) => page.getElementById(id);
    const shown = () => [...get("board").tBodies[0].rows].filter((row) => !row.hidden).map((row) =>
      row.cells[0].textContent);
    const headers = [...get("board").tHead.rows[0].cells];
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
    const box = page.documentElement, body = it.contentWindow.getComputedStyle(page.body);
    said[width] = {
      first: shown(), width: box.scrollWidth,
      shuffle: [clicked("shuffle"), clicked("shuffle"), clicked("shuffle")],
      config: clicked("config"),
      sorted: page.querySelectorAll("[aria-sort]").length,
      verdict: typed("verdict", "FAIL"), both: typed("words", "no such word"), none: typed("verdict", ""),
      words: typed("words", "WINNER criteria"),
      image: page.images[0].naturalWidth, ground: body.backgroundColor,
    };
    const place = page.querySelector("#board a").hash;
    it.contentWindow.location.hash = place;
    await new Promise((done) => it.contentWindow.addEventListener("hashchange", () => setTimeout(done, 0)));
    said[width].opened = page.querySelector(place).open;
  }
  document.getElementById("said").textContent = JSON.stringify(said);
};
run();
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def board(folder):
    return hostile_page(folder)[1]


@pytest.fixture(scope="module")
def browse(folder, board):
    """What the harness notes in a real browser, and what that says on its console."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine")
    (folder / "harness.html").write_text(HARNESS)
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def look(*options):
            command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
            command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom", *options]
            url = f"http://127.0.0.1:{server.server_port}/harness.html"
            done = subprocess.run([*command, url], capture_output=True, text=True, env={**os.environ, "LANG": "C"})
            found = json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)[1]))
            errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
            return found, errors

        yield look
        server.shutdown()


@pytest.mark.slow
def test_it_sorts_filters_and_opens_at_phone_and_desktop_width_without_a_word_on_the_console(browse, board):
    found, errors = browse()
    assert errors == []
    order = list(board.config)
    played = board[board.shuffle.notna()]
    rest = [name for name, value in zip(board.config, board.shuffle, strict=True) if pd.isna(value)]
    down = list(played.sort_values("shuffle", ascending=False, kind="stable").config)
    up = list(played.sort_values("shuffle", kind="stable").config)
    for width in ("375", "1280"):
        one = found[width]
        assert one["width"] <= int(width)
        assert one["first"] == order
        assert one["shuffle"] == [["descending", down + rest], ["ascending", up + rest], [None, order]]
        assert one["config"] == ["ascending", sorted(order)]
        assert one["sorted"] == 1
        assert one["verdict"] == [["loser"], f"1 of {len(order)} shown"]
        assert one["both"][0] == one["none"][0] == []
        assert one["words"][0] == ["winner", "winner"]
        assert one["image"] == 9
        assert one["opened"] is True


@pytest.mark.slow
def test_it_is_dark_where_the_reader_prefers_so(browse):
    light = browse("--blink-settings=preferredColorScheme=1")[0]["375"]["ground"]
    dark = browse("--blink-settings=preferredColorScheme=0")[0]["375"]["ground"]
    assert sum(map(int, re.findall(r"\d+", light))) > 700
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
