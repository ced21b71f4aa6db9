"""The documents: every command in them parses, and every link and every file that they name exists."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m2ray.__main__ import COMMANDS
from m2ray.cli.runner import Parser
from m2ray.config.packaged_spaces import find_space
from m2ray.config.plan import load_plan
from m2ray.util.errors import UserError

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]  # written by people
DOCUMENTS = [*PAGES, *sorted(ROOT.glob("results/*/**/*.md"))]
README_BYTES = 14_000  # at most; all else belongs into docs/
ENDS = ' ;,."'  # of a command within a text, or a line of a script
COMMAND = re.compile(r"python -m m2ray\.(\w+)([^\n`'#&]*)")
LIST_COMMAND = re.compile(r"python -m m2ray(?![.\w])([^\n`'#&]*)")
MAKE = re.compile(r"(?m)(?:^ *|`)make ([a-z][a-z ]*[a-z])")
LINK = re.compile(r"\]\((?!https?:)([^)]+)\)")
SCRIPT = re.compile(r"python ((?:scripts|tests)/[\w/]+\.py)")
MODULE = re.compile(r"`((?:m2ray/)?(?:\w+/)*\w+\.(?:py|yaml))`")
HEADING = re.compile(r"(?m)^#+ (.*)$")


class Parsed(Exception):
    """Raised in place of the work that a command line would start."""


def read(document: Path) -> str:
    """The text, with code that wraps to the next line in one line."""
    return re.sub(r"`[^`\n]+\n[^`\n]+`", lambda code: code[0].replace("\n", " "), document.read_text())


def commands():
    found = {}
    for document in DOCUMENTS:
        for module, rest in COMMAND.findall(read(document)):
            if document not in PAGES and rest.endswith(" ..."):  # reports quote long ones shortened
                continue
            found.setdefault(f"{module}{rest.rstrip()}".rstrip(ENDS), (module, rest))
    return found


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_line_is_understood(line, monkeypatch):
    module, rest = commands()[line]
    main = importlib.import_module(f"m2ray.{module}").main
    real = Parser.parse_args

    def parse(self, args=None, namespace=None):
        raise Parsed(real(self, args, namespace))

    monkeypatch.setattr(Parser, "parse_args", parse)
    with pytest.raises(Parsed) as parsed:
        main(shlex.split(rest.rstrip(ENDS)))
    space = vars(parsed.value.args[0]).get("space", "")
    if "search_spaces/" in space or not space.endswith(".yaml"):  # others are placeholders
        assert not space or find_space(ROOT / space if "/" in space else space).is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name, monkeypatch):
    def stop(self, args=None, namespace=None):
        raise Parsed(self)

    monkeypatch.setattr(Parser, "parse_args", stop)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"m2ray.{name}").main([])
    options = [action.option_strings[-1] for action in parsed.value.args[0]._actions if action.option_strings]
    (section,) = re.findall(rf"(?ms)^## {name}\n(.*?)(?=^## )", (DOCS / "commands.md").read_text())
    assert [option for option in options if option != "--help" and option not in section] == []


def test_the_list_of_commands_is_documented_without_arguments():
    arguments = [rest.rstrip(ENDS) for page in PAGES for rest in LIST_COMMAND.findall(read(page))]
    assert arguments
    assert not any(arguments)


def test_every_make_target_that_is_documented_exists():
    (targets,) = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())
    words = {word for page in PAGES for line in MAKE.findall(read(page)) for word in line.split()}
    assert {"check", "test", "spaces"} <= words <= set(targets.split())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(page.read_text())]
    return {heading.replace(" ", "-") for heading in plain}


def leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_scripts_exist(document):
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not leads_somewhere(document, link)]
    missing += [script for script in SCRIPT.findall(text) if not (ROOT / script).is_file()]
    assert not missing


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_files_of_the_package_that_are_named_exist(document):
    """As `m2ray/config/trial.py`, or as `config/trial.py` where a page says that paths are below `m2ray/`."""
    named = [path for path in MODULE.findall(document.read_text()) if "/" in path]
    assert [path for path in named if not any((base / path).is_file() for base in (ROOT, ROOT / "m2ray"))] == []


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= README_BYTES


def test_the_index_links_every_page():
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert set(LINK.findall((DOCS / "README.md").read_text())) == pages
    assert "docs/README.md" in README.read_text()


def test_every_message_that_troubleshooting_explains_is_in_the_source():
    source = "\n".join(path.read_text() for path in sorted((ROOT / "m2ray").rglob("*.py")))
    # Join the pieces of one text; replace what varies in it.
    messages_in_source = re.sub(r'"\s*f?"', "", re.sub(r"\{[^{}]*\}", "...", source))
    lines = (DOCS / "troubleshooting.md").read_text().splitlines()
    messages = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(messages) > 10
    assert [m for m in messages if not all(part.strip() in messages_in_source for part in m.split("..."))] == []


def test_every_packaged_space_is_documented():
    text = (DOCS / "commands.md").read_text()
    assert [file.stem for file in ROOT.glob("search_spaces/*.yaml") if f"[`{file.stem}`](" not in text] == []


def test_the_example_spaces_are_spaces():
    text = (DOCS / "spaces.md").read_text()
    file = ROOT / "search_spaces" / ".example-of-the-documents.yaml"  # beside the spaces that it refers to
    points = []
    for space in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        try:
            file.write_text(space)
            points.append(set(load_plan(file).points))
        finally:
            file.unlink()
    assert points == [{"attempt-02", "k4"}, {"embeddings", "kv", "kv-late"}]


def test_the_example_in_python_passes_a_message():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    outcome, verdict = done.stdout.splitlines()
    assert "success=True" in outcome
    assert verdict == "PASS"


def test_help_needs_no_torch():
    """It answers at once."""
    said = "atexit.register(lambda: print('torch' in sys.modules))"
    code = f"import atexit, sys; {said}; from m2ray.cli import sweep"
    command = [sys.executable, "-c", f"{code}; sweep.main(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_an_unknown_option_would_be_noticed():
    with pytest.raises(UserError):
        importlib.import_module("m2ray.sweep").main(["--no-such-option"])
