"""Two rounds of kills at random moments; `scripts/chaos.py` runs twenty, over every kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["driver", "evaluator"])
def test_nothing_is_lost_doubled_or_repeated_and_the_board_is_that_of_an_undisturbed_run(tmp_path, first):
    out = tmp_path / "chaos.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--first", first, "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(out.read_text())
    assert [said[key] for key in ("rounds", "lost", "doubled", "repeated", "boards_equal")] == [2, 0, 0, 0, 2]
    assert said["each"][0]["target"] == first
