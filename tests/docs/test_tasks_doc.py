"""docs/tasks.md: its file, tasks and space are read as they stand there."""

import json
import re
from pathlib import Path

import pytest

from m2ray.config.plan import load_plan
from m2ray.config.task import TaskConfig
from m2ray.tasks.scorers import SCORERS
from m2ray.tasks.text_episodes import OPTIONAL, REQUIRED
from m2ray.util.strict_yaml import load_yaml

TEXT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
*TASKS, SPACE = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
(LINES,) = re.findall(r"```jsonl\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder in which the page's file lies, under both of its columns' names."""
    monkeypatch.chdir(tmp_path)
    other = {"prompt_A": "m", "prompt_B": "p", "y": "t"}
    lines = [json.loads(line) | other for line in LINES.splitlines()]
    Path("mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_are_read(task):
    Path("task.yaml").write_text(task)
    assert len(load_yaml(TaskConfig, Path("task.yaml")).file_episodes()) == 2


def test_the_space_is_one():
    Path("mine.yaml").write_text(SPACE)
    plan = load_plan(Path("mine.yaml"))
    assert set(plan.points) == {"k8", "k16"}
    assert plan.example.task.is_text_file


def test_every_key_and_scorer_is_explained():
    keys = {*REQUIRED, *OPTIONAL, "file", "fields", "scorer", "threshold", "stop", "system", "examples", *SCORERS}
    assert [key for key in sorted(keys) if f"| `{key}` |" not in TEXT] == []
