"""A sweep's progress: from another shell, and as JSON while it runs."""

import json
import shutil
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
