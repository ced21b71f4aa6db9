"""A sweep's progress: from another shell, and as JSON while it runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import sweep, write_space

from m2ray.cli.status import main
from m2ray.evaluation.rows import RowStore
from m2ray.judging.statistics import wilson
from m2ray.reporting.status import status_of
from m2ray.util.errors import UserError


@pytest.fixture(scope="module")
def json_sweep(tmp_path_factory):
    """Run a small sweep; return its folder and the progress that it prints as JSON."""
    results = tmp_path_factory.mktemp("status")
    done = sweep(write_space(results), "--results", results, "--json")
    return results / "small", [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_sweep_prints_each_step_as_json(json_sweep):
    folder, lines = json_sweep
    assert all({"seconds", "share", "event"} <= set(line) for line in lines[:-1])
    assert [line["share"] for line in lines[:-1]] == sorted(line["share"] for line in lines[:-1])
    events = {line["event"] for line in lines}
    assert {"phase", "epoch", "ended", "evaluated", "board"} == events
    leaderboard = lines[-1]["board"]
    assert lines[-1]["results"] == str(folder)
    assert {line["config"] for line in leaderboard} == {
        line["config"] for line in lines if line["event"] == "ended"
    }


@pytest.mark.slow
def test_status_agrees_with_rows_and_checkpoints(json_sweep, capsys):
    folder, lines = json_sweep
    before = {path: path.stat().st_mtime for path in folder.rglob("*")}
    found = status_of(folder)
    assert {path: path.stat().st_mtime for path in folder.rglob("*")} == before, "status must not write"
    rows = RowStore(folder).read()
    assert found["rows"] == len(rows)
    last = {line["config"]: line for line in lines if line["event"] == "epoch"}
    for line in found["configurations"]:
        assert line["state"] == "trained"
        assert line["epochs"]["0"] == last[line["config"]]["epochs_total"]
        assert line["score"] == pytest.approx(last[line["config"]]["score"])
        own = rows[(rows.config == line["config"]) & (rows.condition == "normal") & (rows.split == line["split"])]
        own = own[own.step == own.step.max()]
        assert line["n"] == len(own)
        assert line["normal_ci"] == pytest.approx(wilson(int(own.success.sum()), len(own)))
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert all(line["config"] in text for line in found["configurations"])
    assert main([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["configurations"] == found["configurations"]


@pytest.fixture
def published(tmp_path):
    """The folder of a sweep that is done."""
    for name in ("sweep.yaml", "rows.parquet"):
        shutil.copy(Path(__file__).parents[2] / "results" / "recipe-mini" / name, tmp_path)
    return tmp_path


def headline(folder, capsys):
    assert main([str(folder)]) == 0
    return capsys.readouterr().out.splitlines()[0].removeprefix(f"{folder.name}: ")


def test_a_sweep_that_ended_is_done(published, capsys):
    assert status_of(published)["state"] == "done"
    assert headline(published, capsys) == "done; python -m m2ray.report shows the leaderboard"


HOLD = """
import sys
from pathlib import Path
from m2ray.engine.cost.forecast import Forecast
from m2ray.engine.progress import Progress
from m2ray.engine.record import lock_results_folder
root = Path(sys.argv[1])
with lock_results_folder(root), Progress(
    "mine", Forecast({}, 2, each=2, answers=16), "quiet", root / "progress.json"
) as progress:
    progress.phase("search: 2 configurations")
    progress.reported("a", {"progress": 1, "epochs_total": 2, "k": 8, "score": 0.1})
    progress.evaluated("a on search", "", answers=4, seconds=1.0)
    progress.phase("select: 1 configuration")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_running_sweep_and_a_killed_one_are_told_apart(published, capsys):
    command = [sys.executable, "-c", HOLD, str(published)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        files = {path: path.stat().st_mtime for path in published.rglob("*")}
        found, line = status_of(published), headline(published, capsys)
        assert {path: path.stat().st_mtime for path in published.rglob("*")} == files, "status must not write"
        process.kill()
    assert (found["state"], found["phase"], found["share"]) == ("running", "select: 1 configuration", 0.25)
    assert found["left_s"] >= 0
    assert found["holder"].startswith(f"process {process.pid} on ")
    assert line.startswith(f"running ({found['holder']}): 25%, select: 1 configuration; about ")
    assert status_of(published)["state"] == "stopped"
    assert headline(published, capsys).startswith("not running; stopped, killed or died at 25%, select: 1 config")


def test_the_table_fits_the_terminal(published, capsys, monkeypatch):
    for width in (60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([str(published)]) == 0
        table = capsys.readouterr().out.splitlines()[3:]
        assert max(map(len, table)) <= width
        assert "normal %" in table[0]


def test_status_of_no_sweep_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no sweep.yaml; give results/NAME"):
        status_of(tmp_path)


def test_status_of_a_published_sweep_knows_it_by_its_rows(tmp_path):
    published = Path(__file__).parents[2] / "results" / "recipe-mini"
    for name in ("sweep.yaml", "rows.parquet"):
        shutil.copy(published / name, tmp_path)
    lines = {line["config"]: line for line in status_of(tmp_path)["configurations"]}
    assert status_of(tmp_path / "sweep.yaml")["configurations"] == list(lines.values())
    assert {line["state"] for line in lines.values()} == {"trained"}
    k8 = lines["k8"]  # of three training seeds, on the same episodes
    assert (k8["split"], k8["n"]) == ("confirm", 1000)
    assert k8["normal_ci"] == pytest.approx(wilson(round(1000 * k8["normal"]), 1000))
