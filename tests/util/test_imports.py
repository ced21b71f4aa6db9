"""Packages that need no torch do not load it, not even through what they import."""

import json
import pkgutil
import subprocess
import sys
from importlib import import_module

PACKAGES = ("util", "tasks", "config", "judging", "reporting")

SCRIPT = """
import importlib, json, sys
for name in json.load(sys.stdin):
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
"""


def modules(name: str) -> list[str]:
    package = import_module(f"m2ray.{name}")
    return [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def run(names: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, input=json.dumps(names), capture_output=True, text=True, check=False)


def test_they_are_imported_without_torch():
    found = {name: modules(name) for name in PACKAGES}
    assert all(found.values())
    done = run([*(module for names in found.values() for module in names), "m2ray.evaluation.rows"])
    assert done.returncode == 0, done.stderr


def test_a_module_that_loads_torch_would_be_noticed():
    assert run(["m2ray.util.text", "m2ray.codec.codec"]).stderr == "m2ray.codec.codec loads torch\n"
