"""An installed wheel works without a clone: it has its data, and the default sweep finds its space."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with what pip installs from the wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "m2ray", source / "m2ray", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def run(site: Path, cwd: Path, *argv: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_every_file_of_the_package_is_in_the_wheel(site):
    def files(root: Path) -> set[str]:
        return {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts}

    assert files(ROOT / "m2ray") == files(site / "m2ray")


def test_the_default_sweep_runs_anywhere_and_writes_to_results_beside_it(site, tmp_path):
    done = run(site, tmp_path, "m2ray.sweep", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quickstart: ")
    assert f"writes to        {tmp_path.resolve()}/results/quickstart" in done.stdout


def test_the_spaces_are_listed(site, tmp_path):
    listed = run(site, tmp_path, "m2ray.sweep", "--list")
    assert "recipe-mini" in [line.split()[0] for line in listed.stdout.splitlines()]


def test_it_is_the_wheel_that_was_run(site, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import m2ray; print(m2ray.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == site / "m2ray" / "__init__.py"
