"""A short round of malformed input to every command; `tests/fuzz/fuzz.py` runs them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "fuzz"


def fuzz(*argv) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), *map(str, argv)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_malformed_input_is_refused_in_one_line_that_names_the_fix_and_nothing_is_written(tmp_path):
    done = fuzz("--cases", 40, "--seed", 1, "--out", tmp_path / "fuzz.json")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "fuzz.json").read_text())
    assert (said["cases"], said["faults"]) == (40, 0)
    assert len({outcome["argv"].split()[0] for outcome in said["outcomes"]}) >= 5
    assert all(outcome["code"] == 2 and outcome["line"] for outcome in said["outcomes"])


def test_a_fault_is_found():
    """A case that is no malformed input at all: the command accepts it, which is what a fault looks like."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import fuzz, fuzz_bench
fuzz.cases = lambda count, seed: [fuzz_bench.Case("sound", fuzz_bench.GATE, fuzz_bench.nothing)]
sys.exit(fuzz.main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "sound | gate rows.parquet" in done.stdout
    assert "exit code 1; 0 lines on stderr; says something on stdout; names no fix" in done.stdout
