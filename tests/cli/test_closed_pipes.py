"""How commands run: closed pipes."""

import os
import subprocess
import sys

import pytest

from m2ray.cli.runner import DONE, NOT_PASSED

FAILS = "normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50,P1=34/50"
PASSES = "normal=480/500,null=100/500,shuffle=50/500,P0=100/500,P1=490/500"
PRINTS = """
import sys
from m2ray.cli.runner import run_command

def main(argv):
    for line in range(100_000):
        print(line, flush=line % 100 == 0)
        print(line, file=sys.stderr)
    open(argv[0], "w").write("done")
    return 3

run_command(main)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("counts", "code"), [(FAILS, NOT_PASSED), (PASSES, DONE)])
def test_a_gate_keeps_its_exit_code_where_nobody_reads_its_output(counts, code, unbuffered):
    command = [sys.executable, "-m", "m2ray.gate", "--counts", counts, "--k", "4"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True) as gate:
        gate.stdout.close()
        error = gate.stderr.read()
    assert (gate.returncode, error) == (code, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_goes_on_when_its_reader_stops(tmp_path, unbuffered):
    done, script = tmp_path / "done", tmp_path / "prints.py"
    script.write_text(PRINTS)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    shell = 'set -o pipefail; "$0" "$1" "$2" 2>&1 | head -3'
    command = ["bash", "-c", shell, sys.executable, script, done]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout.splitlines()[0], ran.stderr) == (3, "0", "")
    assert done.read_text() == "done"
