"""The documents: every command line in them is one that the commands take, every link leads somewhere."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m2ray.cli.runner import Parser
from m2ray.config.plan import load_plan
from m2ray.util.errors import UserError

ROOT = Path(__file__).parents[2]
ENDS = ' ;,.&"'  # of a command within a text, or a line of a script
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("results/*/**/*.md")),
]
COMMAND = re.compile(r"python -m m2ray\.(\w+)([^\n`'#]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
SCRIPT = re.compile(r"python (scripts/\w+\.py)")


class Parsed(Exception):
    """Raised in place of the work that a command line would start."""


def commands():
    found = {}
    for document in DOCUMENTS:
        for module, rest in COMMAND.findall(document.read_text()):
            found.setdefault(f"{module}{rest.rstrip()}".rstrip(ENDS), (module, rest))
    return found


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_line_is_understood(line, monkeypatch):
    module, rest = commands()[line]
    main = importlib.import_module(f"m2ray.{module}").main
    real = Parser.parse_args

    def parse(self, args=None, namespace=None):
        real(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", parse)
    with pytest.raises(Parsed):
        main(shlex.split(rest.rstrip(ENDS)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_scripts_are_there(document):
    text = document.read_text()
    gone = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    gone += [script for script in SCRIPT.findall(text) if not (ROOT / script).is_file()]
    assert not gone


def test_every_message_that_troubleshooting_explains_is_one_that_is_said():
    source = "\n".join(path.read_text() for path in sorted((ROOT / "m2ray").glob("*.py")))
    said = re.sub(
        r'"\s*f?"', "", re.sub(r"\{[^{}]*\}", "...", source)
    )  # pieces of one text, and what varies in it
    lines = (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    messages = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(messages) > 10
    unsaid = [m for m in messages if not all(part.strip() in said for part in m.split("..."))]
    assert not unsaid


def test_the_example_space_is_a_space():
    text = (ROOT / "docs" / "spaces.md").read_text()
    (space,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    file = ROOT / "search_spaces" / ".example-of-the-documents.yaml"  # beside the spaces that it refers to
    try:
        file.write_text(space)
        plan = load_plan(file)
    finally:
        file.unlink()
    assert set(plan.points) == {"attempt-02", "k4"}


def test_the_example_in_python_passes_a_message():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    said, verdict = done.stdout.splitlines()
    assert "success=True" in said
    assert verdict == "PASS"


def test_help_needs_no_torch():
    """It answers at once."""
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); from m2ray import sweep"
    command = [sys.executable, "-c", f"{code}; sweep.main(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_an_unknown_option_would_be_noticed():
    with pytest.raises(UserError):
        importlib.import_module("m2ray.sweep").main(["--no-such-option"])
