"""`python -m m2ray.evaluate` without a checkpoint: is a receiver fit for a task?"""

import pytest

from m2ray.cli.evaluate import main
from m2ray.evaluation.rows import read_rows
from m2ray.util.errors import UserError


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.yaml").write_text("level: easy\n")
    return str(tmp_path / "task.yaml")


def test_it_prints_p0_p1_and_what_the_gate_needs_and_keeps_the_rows(task, tmp_path, capsys):
    out = tmp_path / "rows.parquet"
    assert main(["--receiver", "mini", "--task", task, "--seeds", "500:700", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = read_rows(out)
    assert rows.condition.unique().tolist() == ["P0", "P1"]
    assert set(rows.split) == {"search"}
    for name in ("P0", "P1"):
        share = 100 * rows[rows.condition == name].success.mean()
        assert f"| {name}          | 200 | {share:.1f}" in printed
    assert "PASS: text leaves room: P1 - P0 = +" in printed
    assert "PASS: enough episodes: n = 200; a codec at P0 + 20 points is found" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--receiver: missing; without a checkpoint give --receiver, --task and --episodes"),
        (["--receiver", "mini", "--seeds", "0:9"], "--task: missing"),
        (["--receiver", "mini", "--task", "TASK"], "--episodes: missing"),
        (["--receiver", "mini", "--task", "TASK", "--seeds", "9:1"], "--episodes: "),
        (
            ["--receiver", "mini", "--task", "TASK", "--seeds", "0:9", "--conditions", "normal"],
            "needs a checkpoint",
        ),
        (["somewhere", "--task", "TASK"], "--task: the checkpoint names its own task"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(task, arguments, message):
    with pytest.raises(UserError, match=message):
        main([task if each == "TASK" else each for each in arguments])
