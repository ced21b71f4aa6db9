"""`python -m m2ray.false_pass`: input that it cannot use, and the files that it writes."""

import json

import pytest

from m2ray.cli.false_pass import main
from m2ray.judging import false_pass
from m2ray.util.errors import UserError


def test_a_gate_without_grades_is_refused(tmp_path):
    with pytest.raises(UserError, match="--gate reference: has no grades"):
        main(["--out", str(tmp_path / "out"), "--gate", "reference"])


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"--out: .*out is a file; choose another folder"):
        main(["--out", str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--sweeps", "--seeds", "--n"])
def test_numbers_below_the_least_are_refused(tmp_path, option):
    with pytest.raises(UserError, match=f"{option} 0: give"):
        main(["--out", str(tmp_path / "out"), option, "0"])


def test_both_tables_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(false_pass, "NULLS", false_pass.NULLS[:1])
    assert main(["--out", str(tmp_path), "--sweeps", "1", "--n", "100"]) == 0
    text = (tmp_path / "false-pass.md").read_text()
    assert text in capsys.readouterr().out
    assert "## Power" in text
    lines = json.loads((tmp_path / "false-pass.json").read_text())["lines"]
    assert {line["world"] for line in lines} >= {false_pass.NULLS[0].name, "P0 + 20 points"}
