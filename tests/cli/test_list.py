"""`python -m m2ray` lists every command, and each command has its help."""

import importlib
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


@pytest.mark.parametrize("name", COMMANDS)
def test_each_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as done:
        importlib.import_module(f"m2ray.{name}").main(["--help"])
    assert done.value.code == 0
    assert f"usage: python -m m2ray.{name}" in capsys.readouterr().out
