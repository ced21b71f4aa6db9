"""A short run of `tests/fuzz/fuzz.py`: malformed input to every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parents[1] / "fuzz"


def fuzz(*argv) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FUZZ / "fuzz.py"), *map(str, argv)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_malformed_input_is_refused_in_one_line_that_names_the_fix_and_nothing_is_written(tmp_path):
    done = fuzz("--cases", 15, "--seed", 1, "--out", tmp_path / "fuzz.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "fuzz.json").read_text())
    assert (figures["cases"], figures["faults"]) == (15, 0)
    assert len({outcome["argv"].split()[0] for outcome in figures["outcomes"]}) >= 5
    assert all(outcome["code"] == 2 and outcome["line"] for outcome in figures["outcomes"])


def test_a_fault_is_found():
    """Valid input as a case: the command accepts it, which counts as a fault."""
    code = f"""
import sys
sys.path.insert(0, {str(FUZZ)!r})
import fuzz, fuzz_input
fuzz.cases = lambda count, seed: [fuzz_input.Case("valid", fuzz_input.GATE, fuzz_input.nothing)]
sys.exit(fuzz.main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "valid | gate rows.parquet" in done.stdout
    assert "exit code 1; 0 lines on stderr; prints to stdout; names no fix" in done.stdout
