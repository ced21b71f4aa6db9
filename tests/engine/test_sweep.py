"""One real sweep through the command line on a local Ray, and its board rebuilt from rows alone."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from sweeps import CONDITIONS, CONFIRM, ON_CONFIRM, SEARCH, sweep, write_space

from m2ray.config.sweep_record import read_sweep_record
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.receiver.loading import EMBEDDED
from m2ray.util.journal import Journal


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Folder, rows and what was printed; the receiver is a folder below the one that the sweep is called in."""
    where = tmp_path_factory.mktemp("swept")
    shutil.copytree(EMBEDDED / "mini", where / "receiver")
    done = sweep(write_space(where), "--results", where, "--receiver", "receiver", cwd=where)
    assert done.returncode == 0, done.stderr
    return where / "small", RowStore(where / "small").read(), done


def test_the_sweep_says_what_it_does_and_where_everything_is(swept):
    folder, _, done = swept
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert any("search: 3 configurations x 1 seed" in line for line in lines)
    (look,) = read_sweep_record(folder)["looks"]
    assert re.match(r"(first look|look \d+) at these messages", look["line"])
    assert any(f"confirm: 2 configurations; {look['line']}" in line for line in lines)
    assert f"confirm: {look['line']}" in (folder / "leaderboard.md").read_text().splitlines()
    assert sum("control: epoch 1/1" in line for line in lines) == 1
    assert sum(": epoch 2/2  k " in line for line in lines) == 2
    assert any("% " in line or "%, about" in line for line in lines)
    assert lines[-1].endswith(f"everything is in {folder}")
    board = [line for line in lines if re.match(r"(control|k\d+-[a-z]) ", line)]
    assert len(board) >= 3


def test_the_folder_holds_what_was_promised(swept):
    folder = swept[0]
    names = {path.name for path in folder.iterdir()} - {"ray"}
    assert names == {
        *("sweep.yaml", "trials.jsonl", "rows.parquet", "leaderboard.csv", "leaderboard.md"),
        *("attempts", "figures", "checkpoints", "report.html", "optuna.log", "search-time.json"),
    }
    board = pd.read_csv(folder / "leaderboard.csv")
    assert {path.stem for path in (folder / "attempts").iterdir()} == set(board.config)
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"conditions", "scores", "training", "outcomes"} <= figures
    about = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert about["space"]["trial"]["evaluation"]["text_bytes"] == [16]
    assert about["points"]["control"]["codec"]["place"] == "before"
    assert about["receiver"]["digest"]
    assert about["packages"]["ray"].startswith("2.")


def test_the_board_rebuilt_from_rows_alone_is_the_same_cell_by_cell(swept, tmp_path):
    folder = swept[0]
    copy = tmp_path / "small"
    copy.mkdir()
    for name in ("rows.parquet", "sweep.yaml"):
        shutil.copy(folder / name, copy)
    done = subprocess.run([sys.executable, "-m", "m2ray.report", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    old, new = (pd.read_csv(at / "leaderboard.csv", dtype=str) for at in (folder, copy))
    assert list(old.columns) == list(new.columns)
    for column in old.columns:
        assert old[column].fillna("").tolist() == new[column].fillna("").tolist(), column
    for name in ("leaderboard.csv", "leaderboard.md", "attempts/control.md", "figures/conditions.png"):
        assert (folder / name).read_bytes() == (copy / name).read_bytes(), name


def test_rows_are_complete_and_none_is_double(swept):
    folder, rows, _ = swept
    assert not rows.duplicated(KEY).any()
    board = pd.read_csv(folder / "leaderboard.csv")
    judged = board[board.split == "confirm"]
    assert len(judged) == 2
    assert "control" in set(judged.config)
    for config, seed in judged[["config", "seed"]].itertuples(index=False):
        own = rows[(rows.config == config) & (rows.split == "confirm")]
        free = rows[(rows.config == "") & (rows.split == "confirm")]
        one = own.iloc[0]
        free = free[(free.k == 0) | ((free.k == one.k) & (free.place == one.place))]
        played = pd.concat([own, free]).groupby("condition").episode.apply(sorted)
        assert set(played.index) == {*CONDITIONS, *ON_CONFIRM, f"tokens-{one.k}"}
        assert all(episodes == list(CONFIRM) for episodes in played)
        assert seed == 0


def test_every_reported_checkpoint_was_played_on_search(swept):
    folder, rows, _ = swept
    depends = CONDITIONS - {"null", "P0", "P1", "text-16"}
    records = [
        json.loads(file.read_text()) for file in (folder / "checkpoints").glob("*/seed-0/epoch-*/config.json")
    ]
    assert len(records) == 5
    for record in records:
        own = rows[(rows.checkpoint == record["digest"]) & (rows.split == "search")]
        assert set(own.condition) == depends
        assert len(own) == len(depends) * len(SEARCH)
    free = rows[(rows.config == "") & (rows.k == 0) & (rows.split == "search") & (rows.condition == "P1")]
    assert len(free) == len(SEARCH)  # once for all


def test_the_score_that_optuna_saw_is_the_boards(swept):
    folder = swept[0]
    board = pd.read_csv(folder / "leaderboard.csv").set_index("config")
    ends = [entry for entry in Journal(folder / "trials.jsonl").entries() if entry["event"] == "ended"]
    assert len(ends) == 3
    for entry in ends:
        assert board.loc[entry["config"], "score"] == pytest.approx(entry["score"], abs=2e-4)


WITHOUT_RAY = """
import sys
from m2ray.sweep import main
code = main(sys.argv[1:])
assert "ray" not in sys.modules
sys.exit(code)
"""


def test_a_dry_run_counts_and_checks_but_starts_and_writes_nothing(tmp_path):
    file = write_space(tmp_path, judge={"select": 2, "confirm": 2, "diagnose": 100})
    options = ["--results", tmp_path / "r", "--dry-run", "--trials", 5, "--seeds", "0,1"]
    argv = [sys.executable, "-c", WITHOUT_RAY, file, *options]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "configurations   1 point + 5 sampled",
        "point          control",
        "axis           codec.k: choice [8, 12]",
        # (1 epoch + 5 x 2 epochs) x 2 seeds, of 32 samples
        "training         x 2 seeds, 704 samples, 22 checkpoints, pruner none",
        "episodes         search 20, select 20, confirm 30",
        "conditions       normal, null",
        "confirm        besides, identity, constant, near, facts-1, facts-2, facts-3, tokens-8",
        # 4 conditions need the checkpoint, 1 its k and place (3 pairs), 3 neither; on confirm 6, 2, 7; for 22, 4
        # and 6 checkpoints. On confirm constant is a job of its own. The diagnoses are jobs as well.
        f"at most {20 * (88 + 3 + 3) + 20 * (16 + 3 + 3) + 30 * (36 + 6 + 7):,} answers to decode, in "
        f"{(22 + 3 + 1) + (4 + 3 + 1) + (6 + 3 + 1 + 6) + 3} jobs",
        "splits disjoint by seed and content",
        "time             about ",
        # the control and two of the sampled, one of the two seeds
        "diagnosis        3 codecs on 100 messages each",
    ):
        assert text in done.stdout, text
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
