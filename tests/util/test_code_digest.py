"""The digest of the source code covers every Python file of the package, at any depth."""

import shutil
from pathlib import Path

import pytest

import m2ray
from m2ray.util import code_digest as module
from m2ray.util.code_digest import code_digest

PACKAGE = Path(m2ray.__file__).parent
FILES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package, to which the digest applies."""
    target = tmp_path / "m2ray"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "__file__", str(target / "util" / "code_digest.py"))
    return target


def test_a_copy_elsewhere_has_the_same_digest(copy):
    here = code_digest()
    assert len(here) == 16
    shutil.copytree(copy, copy.parent / "other" / "m2ray")
    module.__file__ = str(copy.parent / "other" / "m2ray" / "util" / "code_digest.py")
    assert code_digest() == here


def test_an_edit_of_any_file_changes_the_digest(copy):
    before = code_digest()
    assert {len(file.parts) for file in FILES} >= {1, 2}, "files at the root and below"
    seen = {before}
    for file in FILES:
        text = (copy / file).read_bytes()
        (copy / file).write_bytes(text + b"#\n")
        seen.add(code_digest())
        (copy / file).write_bytes(text)
    assert len(seen) == len(FILES) + 1
    assert code_digest() == before


@pytest.mark.parametrize("file", ["added.py", "util/added.py", "util/deeper/still/added.py"])
def test_a_file_that_is_added_or_moved_changes_the_digest(copy, file):
    before = code_digest()
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / file).write_text("")
    added = code_digest()
    (copy / file).rename(copy / "moved.py")
    assert len({before, added, code_digest()}) == 3


def test_other_files_do_not_count(copy):
    before = code_digest()
    (copy / "config" / "gates" / "reference.yaml").write_text("name: other")
    (copy / "util" / "__pycache__").mkdir()
    (copy / "util" / "__pycache__" / "files.cpython-311.pyc").write_bytes(b"x")
    assert code_digest() == before
