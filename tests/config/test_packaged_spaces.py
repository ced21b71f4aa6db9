"""Spaces in the package: identical to search_spaces/, and found by name."""

from pathlib import Path

import pytest

from m2ray.cli.sweep import main
from m2ray.config.packaged_spaces import DEFAULT, FOLDER, find_space, packaged_spaces
from m2ray.config.plan import load_plan

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
    assert find_space("search_spaces/none.yaml") == Path("search_spaces/none.yaml")


def test_the_list_names_them_all(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {file.stem for file in ORIGINALS.glob("*.yaml")}
    assert "Does a small search find a codec that carries the message" in "\n".join(lines)
