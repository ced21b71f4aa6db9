"""`python -m m2ray` lists every command, and each command has its help."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import m2ray
from m2ray.__main__ import COMMANDS

ROOT = Path(m2ray.__file__).parent


def test_all_commands_are_listed():
    stubs = {file.stem for file in ROOT.glob("*.py")} - {"__init__", "__main__", "api"}
    assert set(COMMANDS) == stubs
    done = subprocess.run([sys.executable, "-m", "m2ray"], capture_output=True, text=True, check=True)
    assert all(f"python -m m2ray.{name} " in done.stdout for name in stubs)


def run_m2ray(*words):
    return subprocess.run([sys.executable, "-m", "m2ray", *words], capture_output=True, text=True, check=False)


def test_a_command_can_be_the_first_word():
    counts = "normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50"
    judged = run_m2ray("gate", "--counts", counts, "--gate", "reference")
    assert (judged.returncode, judged.stderr) == (1, "")
    assert "Verdict: FAIL" in judged.stdout
    assert run_m2ray("gate", "--counts", "x").stderr.startswith("error: --counts: ")


def test_the_version_is_that_of_the_package():
    assert run_m2ray("--version").stdout == f"m2ray {importlib.metadata.version('m2ray')}\n"
    project = (ROOT.parent / "pyproject.toml").read_text()
    assert 'm2ray = "m2ray.__main__:main"' in project.splitlines()


def test_an_unknown_command_is_one_line_and_exit_code_2():
    unknown = run_m2ray("swep")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: 'swep': no such command; did you mean sweep?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as done:
        importlib.import_module(f"m2ray.{name}").main(["--help"])
    assert done.value.code == 0
    assert f"usage: python -m m2ray.{name}" in capsys.readouterr().out
