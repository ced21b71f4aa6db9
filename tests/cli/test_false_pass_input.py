"""`python -m m2ray.false_pass` on input that it cannot use."""

import pytest

from m2ray.cli.false_pass import main
from m2ray.util.errors import UserError


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="no rows in it; give the results folder of a finished sweep"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_an_out_that_is_a_file_is_refused_before_the_rows_are_read(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"--out: .*out is a file; choose another folder"):
        main(["rows.parquet", "--out", str(tmp_path / "out")])
