"""Spaces in the package: identical to search_spaces/, and found by name."""

import re
from pathlib import Path

import pytest

from m2ray.cli.sweep import main
from m2ray.config.packaged_spaces import DEFAULT, FOLDER, find_space, packaged_spaces
from m2ray.config.plan import load_plan
from m2ray.util.errors import UserError

ORIGINALS = Path(__file__).parents[2] / "search_spaces"


def test_the_copies_are_the_originals():
    """Where they differ, run `make spaces`."""
    originals = {file.name: file.read_bytes() for file in ORIGINALS.glob("*.yaml")}
    assert {file.name: file.read_bytes() for file in FOLDER.glob("*.yaml")} == originals


@pytest.mark.parametrize("name", packaged_spaces())
def test_a_space_is_found_by_its_name_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_plan(find_space(name)).space.name


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).write_text("name: own")
    assert find_space(DEFAULT) == Path(DEFAULT)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("quikstart", "did you mean quickstart? `python -m m2ray.sweep --list` prints all of them"),
        ("recipe-quen", "did you mean recipe-qwen?"),
        ("search_spaces/gate3.yaml", "did you mean gate2?"),
        ("search_spaces/none.yaml", "check the path. `python -m m2ray.sweep --list` prints"),
    ],
)
def test_close_names_are_suggested_for_one_that_does_not_exist(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{name}: no such file, and not a packaged space; {says}")):
        find_space(name)


def test_the_list_names_them_all(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {file.stem for file in ORIGINALS.glob("*.yaml")}
    assert "Does a small search find a codec that carries the message" in "\n".join(lines)
