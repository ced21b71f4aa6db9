"""The import rules of pyproject.toml hold, and an import inside a function gives its reason."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import m2ray

PACKAGE = Path(m2ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_rules_hold():
    done = lint(PACKAGE.parent)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


def unexplained(tree: ast.AST, lines: list[str]) -> list[int]:
    """Lines of imports of m2ray's own inside functions, without a comment in their block or right above it."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m2ray"):
                top = node.lineno - 1
                while lines[top - 1].strip().startswith(("from ", "import ")):
                    top -= 1
                end = node.end_lineno
                while end < len(lines) and lines[end].strip().startswith(("from ", "import ")):
                    end += 1
                if not any("#" in line for line in lines[top - 1 : end]):
                    found.append(node.lineno)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_an_import_inside_a_function_gives_its_reason(file):
    text = file.read_text()
    assert unexplained(ast.parse(text), text.splitlines()) == []


def test_an_import_without_a_reason_would_be_noticed():
    text = "def f():\n    from m2ray.util import text\n\n\ndef g():\n    from m2ray.util import text  # slow\n"
    assert unexplained(ast.parse(text), text.splitlines()) == [2]
