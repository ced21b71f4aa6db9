"""The benchmarks: m2ray and the reference loop do the same work, and every documented figure is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from m2ray.config.plan import load_plan

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "bench.py"


def test_the_sweeps_that_it_times_are_valid(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from bench_sweep import FIRST

    space = tmp_path / "first.yaml"
    space.write_text(yaml.dump(FIRST))
    assert load_plan(space).points.keys() == {"one"}


def test_the_page_of_the_gpu_suite_has_every_step_and_calls_a_rehearsal_unmeasured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu import STEPS, run_step, steps_page
    from gpu_steps import Run

    run = Run(tmp_path, "cpu", True, deadline=0.0)
    assert run_step(lambda run: {"figure": 1}, run, tmp_path / "sweep.json", "sweep") == 0
    page = (tmp_path / "steps.md").read_text()
    assert page == steps_page(tmp_path)
    states = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in page.splitlines()[6:]}
    assert states == {name: "unmeasured, rehearsed" if name == "sweep" else "unmeasured" for name in STEPS}


@pytest.mark.slow
def test_the_benchmark_compares_like_with_like_and_adds_part_to_part(tmp_path):
    """The script fails where losses or answers differ, so its success shows that they agree."""
    for part in ("train,eval", "pack"):
        command = [sys.executable, SCRIPT, "--parts", part, "--seconds", "0.5", "--out", tmp_path]
        subprocess.run([*map(str, command)], check=True, timeout=500)
    figures = json.loads((tmp_path / "bench.json").read_text())
    for name in ("packed_ratio", "packed_memory_ratio"):
        assert figures[name] > 0
    for place in ("message", "before", "after"):
        assert figures["train"][place]["train"] > 0
        assert figures["eval"][place]["eval_different_answers"] == 0
    assert figures["runs"].keys() == {"train", "eval", "pack"}
    table = (tmp_path / "bench.md").read_text()
    assert "| over the peer " in table
    assert "| packed_memory_ratio " in table
