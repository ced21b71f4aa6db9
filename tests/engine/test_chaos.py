"""Two rounds of kills at random moments (`tests/fuzz/chaos.py` runs twenty, of every kind), and damaged rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sweeps import Process, sweep, write_space

from m2ray.cli.runner import BAD_INPUT
from m2ray.evaluation.rows import RowStore

SCRIPT = Path(__file__).parents[1] / "fuzz" / "chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["driver", "evaluator"])
def test_nothing_is_lost_doubled_or_repeated_and_the_leaderboard_is_that_of_an_undisturbed_run(tmp_path, first):
    out = tmp_path / "chaos.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--first", first, "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=SCRIPT.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    totals = [figures[key] for key in ("rounds", "lost", "doubled", "repeated", "leaderboards_equal")]
    assert totals == [2, 0, 0, 0, 2]
    assert figures["each"][0]["target"] == first


@pytest.mark.slow
def test_a_sweep_whose_node_dies_says_so_and_can_be_resumed(tmp_path):
    file = write_space(tmp_path, search={"trials": 0}, axes={}, judge={"select": 0, "confirm": 0})
    process = Process(file, "--results", tmp_path)
    folder = tmp_path / "small"
    process.until((folder / "trials.jsonl").is_file, "the trial began")
    (raylet,) = process.processes("raylet/raylet")
    raylet.kill()
    done = process.wait()
    assert done.returncode == BAD_INPUT, done.stderr
    assert "this machine's node died" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("run the same command with --resume")
    again = sweep(file, "--results", tmp_path, "--resume")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_damaged_rows_are_set_aside_and_evaluated_again_to_the_same_leaderboard(tmp_path):
    file = write_space(tmp_path, search={"trials": 0}, axes={}, judge={"select": 0, "confirm": 0})
    assert sweep(file, "--results", tmp_path).returncode == 0
    folder = tmp_path / "small"
    rows, leaderboard = RowStore(folder).read(), (folder / "leaderboard.csv").read_bytes()
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/seed-*/**/*.safetensors")}

    data = bytearray((folder / "rows.parquet").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "rows.parquet").write_bytes(data)
    done = sweep(file, "--results", tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert "it is now rows.parquet.damaged; evaluated again" in done.stderr
    assert (folder / "rows.parquet.damaged").read_bytes() == data
    pd.testing.assert_frame_equal(RowStore(folder).read(), rows)
    assert (folder / "leaderboard.csv").read_bytes() == leaderboard
    again = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/seed-*/**/*.safetensors")}
    assert again == trained
