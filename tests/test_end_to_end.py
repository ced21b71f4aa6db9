"""One real sweep through the command line on a local Ray of two CPUs; its board is rebuilt from rows alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from m2ray.rows import KEY, read_rows

SPACE = """
name: tiny
trial:
  receiver: mini
  splits: {train: "100000:101000", search: "1000:1024", select: "4000:4024", confirm: "2000:2040"}
  codec: {encoder: segments, k: 8, width: 32, layers: 1}
  losses: {ce: {}, states: {weight: 10.0}}
  training: {epochs: 2, epoch_samples: 64, batch_size: 16, warmup: 0}
  evaluation:
    conditions: [normal, "null", random, shuffle, P0, P1, identity, constant]
    text_bytes: [16]
    scale_gates: [0.5, 1.0]
    constant_samples: 64
points:
  control: {set: {codec.encoder: last_token, codec.k: 4, training.epochs: 1}}
axes:
  codec.k: {choice: [8, 12]}
  training.lr: {loguniform: [3e-4, 2e-3]}
search: {trials: 2, seeds: [0]}
judge: {select: 2, confirm: 1}
"""
FREE = {"P0", "P1", "identity", "text-16"}
SLOTS = {"null", "constant"}
OWN = {"normal", "random", "shuffle", "scale_gate=0.5", "scale_gate=1"}


def sweep(folder: Path, *argv: str, space: str = SPACE) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(space)
    command = [sys.executable, "-m", "m2ray.sweep", "tiny.yaml", "--results", "out", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return sweep(folder), folder / "out" / "tiny"


def board(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "leaderboard.csv")


def test_a_sweep_says_what_it_did_and_where(done):
    ran, root = done
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    for word in ("normal", "shuffle", "P0", "P1", "retention", "verdict", str(root)):
        assert word in ran.stdout
    assert {"sweep.yaml", "rows.parquet", "leaderboard.csv", "leaderboard.md"} <= set(os.listdir(root))
    assert len(list((root / "attempts").glob("*.md"))) == 3
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (root / "figures").glob("*.png"))


def test_the_board_has_the_control_and_one_winner_judged_on_confirm(done):
    found = board(done[1])
    assert len(found) == 3
    judged = found[found.split == "confirm"]
    assert set(judged.verdict) <= {"PASS", "FAIL"}
    assert "control" in set(judged.config)
    assert len(judged) == 2
    assert set(found[found.split != "confirm"].verdict) == {"not confirmed"}
    assert {"n", "normal", "normal_ci_low", "normal_ci_high", "null", "random", "shuffle", "P0", "P1"} <= set(
        found
    )
    assert {"seed", "k", "retention", "gate1", "gate2", "reason"} <= set(found)


def test_every_cell_has_every_episode_once(done):
    rows, found = read_rows(done[1] / "rows.parquet"), board(done[1])
    assert not rows.duplicated(KEY).any()
    confirm = rows[rows.split == "confirm"]
    for config in found[found.split == "confirm"].config:
        own = confirm[confirm.config == config]
        assert set(own.condition) == OWN
        assert (own.groupby("condition").episode.nunique() == 40).all()
        slots = confirm[(confirm.config == "") & (confirm.k == own.k.iloc[0])]
        assert set(slots.condition) == SLOTS
    assert set(confirm[confirm.k == 0].condition) == FREE
    assert (rows[rows.split == "search"].groupby(["checkpoint", "k", "condition"]).size() == 24).all()
    assert sorted(set(confirm.episode)) == list(range(2000, 2040))


def test_the_board_is_rebuilt_from_rows_alone_cell_by_cell(done, tmp_path):
    copy = tmp_path / "tiny"
    copy.mkdir()
    for name in ("rows.parquet", "sweep.yaml"):
        shutil.copy(done[1] / name, copy)
    command = [sys.executable, "-m", "m2ray.report", str(copy)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=200).returncode == 0
    pd.testing.assert_frame_equal(board(copy), board(done[1]))
    assert (copy / "leaderboard.md").read_bytes() == (done[1] / "leaderboard.md").read_bytes()


def test_a_finished_sweep_is_not_mixed_with_another(done):
    root = done[1]
    before = board(root)
    again = sweep(root.parent.parent)
    assert again.returncode == 2
    assert again.stderr == f"error: {root}: already holds a sweep; go on with --resume, or choose another --name\n"
    changed = sweep(root.parent.parent, "--resume", space=SPACE.replace("epochs: 2", "epochs: 3"))
    assert changed.returncode == 2
    assert "differs" in changed.stderr
    assert changed.stderr.count("\n") == 1
    pd.testing.assert_frame_equal(board(root), before)


@pytest.mark.slow
def test_a_finished_sweep_resumes_to_the_same_board_without_training(done):
    root = done[1]
    before, files = board(root), {f: f.stat().st_mtime_ns for f in root.glob("checkpoints/*/seed-*/*/*")}
    assert sweep(root.parent.parent, "--resume").returncode == 0
    pd.testing.assert_frame_equal(board(root), before)
    assert {f: f.stat().st_mtime_ns for f in root.glob("checkpoints/*/seed-*/*/*")} == files


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(done, tmp_path):
    """SIGKILL of driver and Ray once the first trial has ended; the rest is as if nothing had happened."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "m2ray.sweep", "tiny.yaml", "--results", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as running:
        journal = tmp_path / "out/tiny/trials.jsonl"
        while not (journal.is_file() and '"ended"' in journal.read_text()):
            assert running.poll() is None, "ended before it could be killed"
            time.sleep(0.2)
        os.killpg(running.pid, signal.SIGKILL)
    ended = [line for line in journal.read_text().splitlines() if '"ended"' in line]
    resumed = sweep(tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    lines = journal.read_text().splitlines()
    assert all(lines.count(line) == 1 for line in ended)
    assert not read_rows(tmp_path / "out/tiny/rows.parquet").duplicated(KEY).any()
    assert set(board(tmp_path / "out/tiny").config) == set(board(done[1]).config)


@pytest.mark.slow
def test_a_trial_that_breaks_down_is_named_and_the_others_go_on(tmp_path):
    space = SPACE.replace(
        "points:\n", "points:\n  broken: {set: {training.lr: 1e30, training.schedule: constant}}\n"
    ).replace("trials: 2", "trials: 1")
    ran = sweep(tmp_path, "--seeds", "0,1", space=space)
    assert ran.returncode == 3
    assert "failed: broken: seed 0: loss" in ran.stderr
    found = board(tmp_path / "out/tiny")
    assert list(found[found.config == "broken"].verdict) == ["failed"]
    assert sorted(found[found.config == "control"].seed) == [0, 1]
    assert len(found) == 5


@pytest.mark.slow
def test_require_pass_exits_1_where_nothing_passes(tmp_path):
    space = SPACE.replace("trials: 2", "trials: 0").replace("select: 2, confirm: 1", "select: 0, confirm: 0")
    space = space.replace("axes:\n  codec.k: {choice: [8, 12]}\n  training.lr: {loguniform: [3e-4, 2e-3]}\n", "")
    assert sweep(tmp_path, "--require-pass", space=space).returncode == 1


def test_a_dry_run_starts_and_writes_nothing(tmp_path):
    ran = sweep(tmp_path, "--dry-run")
    assert ran.returncode == 0
    assert "nothing" not in ran.stderr
    for word in ("control", "codec.k", "samples", "answers", "checks"):
        assert word in ran.stdout
    assert os.listdir(tmp_path) == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("argv", "change", "says"),
    [
        ((), ("codec:", "codek:"), "codek: unknown key; did you mean `codec`?"),
        ((), ("choice: [8, 12]", "choice: [0, 12]"), "codec.k: Input should be greater than or equal to 1, not 0"),
        ((), ("[3e-4, 2e-3]", "[2e-3, 3e-4]"), "tiny.yaml: axes.training.lr: loguniform: the range"),
        ((), ("choice: [8, 12]", "choice: [8, 4000]"), "4000 slots exceed the context"),
        ((), ('select: "4000:4024"', 'select: "2000:2024"'), "overlap"),
        ((), ("receiver: mini", "receiver: ./nowhere"), "receiver ./nowhere: no such folder"),
        (
            (),
            ("states: {weight: 10.0}", "states: {weight: .nan}"),
            "losses.states.weight: Input should be a finite number",
        ),
        (("--resume",), ("", ""), "no sweep.yaml to resume"),
        (("--name", "a/b"), ("", ""), "--name: 'a/b' is no plain folder name"),
        (("--seeds", "0,x"), ("", ""), "--seeds: '0,x' is no list of whole numbers"),
        (("--trials", "-1"), ("", ""), "search.trials"),
        (("--address", "127.0.0.1:1"), ("", ""), "--address 127.0.0.1:1: no Ray cluster answers"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, argv, change, says):
    ran = sweep(tmp_path, *argv, space=SPACE.replace(*change) if change[0] else SPACE)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "Traceback" not in ran.stderr + ran.stdout
    assert os.listdir(tmp_path) == ["tiny.yaml"]
