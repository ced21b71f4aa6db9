"""Sweeps that are stopped, killed, resumed, or that fail in part: real ones, through the command line."""

import json
import signal

import pandas as pd
import pytest
from sweeps import SPACE, Process, sweep, write_space

from m2ray.evaluation.rows import KEY, RowStore
from m2ray.util.journal import Journal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nobody disturbed."""
    where = tmp_path_factory.mktemp("whole")
    file = write_space(where)
    done = sweep(file, "--results", where)
    assert done.returncode == 0, done.stderr
    return file, where / "small"


def trained(folder) -> dict:
    return {file: file.stat().st_mtime_ns for file in (folder / "checkpoints").rglob("*") if file.is_file()}


def events(folder, kind) -> list[str]:
    return [entry["config"] for entry in Journal(folder / "trials.jsonl").entries() if entry["event"] == kind]


def test_resuming_a_finished_sweep_does_nothing_and_says_the_same(whole):
    file, folder = whole
    before, board, rows = trained(folder), (folder / "leaderboard.csv").read_bytes(), RowStore(folder).read()
    done = sweep(file, "--results", folder.parent, "--resume", "--require-pass")
    assert done.returncode == 1  # nothing passes
    assert "epoch" not in done.stdout.split("config  ")[0]
    assert "evaluated" not in done.stdout
    assert trained(folder) == before
    assert (folder / "leaderboard.csv").read_bytes() == board
    pd.testing.assert_frame_equal(RowStore(folder).read(), rows)


def test_a_sweep_stopped_by_ctrl_c_and_then_killed_in_mid_training_ends_as_if_undisturbed(whole, tmp_path):
    file, undisturbed = whole
    folder = tmp_path / "small"
    argv = [file, "--results", tmp_path]

    first = Process(*argv)
    first.until(lambda: events(folder, "began"), "the first trial began")
    first.until(lambda: list(folder.glob("checkpoints/*/seed-0/epoch-01/config.json")), "an epoch ended")
    first.popen.send_signal(signal.SIGINT)
    _, err = first.popen.communicate(timeout=120)
    assert first.popen.returncode == 130, err
    assert err.strip().splitlines()[-1] == f"stopped; the same command with --resume continues {folder}"
    assert "Traceback" not in err
    first.until_gone()
    assert not (folder / "leaderboard.csv").exists()

    second = Process(*argv, "--resume")
    second.until(lambda: events(folder, "ended"), "a trial ended")
    second.until(lambda: len(set(events(folder, "began"))) > len(events(folder, "ended")), "another began")
    second.kill()
    ended = set(events(folder, "ended"))
    assert ended
    done_before = {
        at: time for at, time in trained(folder).items() if at.parts[-4] in ended or at.parts[-3] in ended
    }

    third = sweep(*argv, "--resume")
    assert third.returncode == 0, third.stderr
    after = trained(folder)
    assert {at: after[at] for at in done_before} == done_before
    assert sorted(events(folder, "ended")) == sorted({*events(folder, "ended")})
    assert len(events(folder, "ended")) == 3
    rows = RowStore(folder).read()
    assert not rows.duplicated(KEY).any()
    pd.testing.assert_frame_equal(rows, RowStore(undisturbed).read())
    assert (folder / "leaderboard.csv").read_bytes() == (undisturbed / "leaderboard.csv").read_bytes()


def test_a_sweep_that_grows_is_judged_on_other_messages_and_trains_only_what_is_new(tmp_path):
    file = write_space(tmp_path)
    argv = [file, "--results", tmp_path]
    assert sweep(*argv, "--trials", "1").returncode == 0
    folder = tmp_path / "small"
    before, rows = trained(folder), RowStore(folder).read()
    judged = set(rows.config[rows.split == "confirm"])

    grown = sweep(*argv, "--add-trials", "3", "--add-seeds", "5")
    assert grown.returncode == 0, grown.stderr
    after = trained(folder)
    assert {at: after[at] for at in before} == before
    assert len(events(folder, "ended")) == len(set(events(folder, "ended"))) == 1 + 4
    now = RowStore(folder).read()
    assert len(now.merge(rows, how="inner")) == len(rows)
    fresh = now[now.split == "confirm-2"]
    assert fresh.episode.nunique() == fresh.message.nunique() == 30
    assert not {*fresh.message} & {*rows.message[rows.split == "confirm"]}
    assert {*fresh.seed} == {-1, 0, 5}
    assert judged <= {*fresh.config}
    assert "2 looks at confirm: " in grown.stdout
    board = pd.read_csv(folder / "leaderboard.csv")
    assert (board[board.config.isin({*fresh.config})].split == "confirm-2").all()
    assert "Extended on " in (folder / "leaderboard.md").read_text()
    again = sweep(*argv, "--resume")
    assert again.returncode == 0, again.stderr
    assert "evaluated" not in again.stdout
    pd.testing.assert_frame_equal(RowStore(folder).read(), now)


def test_an_unfit_receiver_ends_a_sweep_before_any_training_and_leaves_its_name_free(tmp_path, tiny_folder):
    trial = {**SPACE["trial"], "receiver": str(tiny_folder)}
    trial["splits"] = {**trial["splits"], "search": "1000:1040"}
    trial["evaluation"] = {**trial["evaluation"], "max_new_tokens": 64}
    file = write_space(tmp_path, trial=trial)
    done = sweep(file, "--results", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "unfit for this task, so every verdict would be INVALID SETTING; 'text leaves room' cannot hold" in line
    assert "epoch" not in done.stdout
    assert not (tmp_path / "small" / "sweep.yaml").exists()
    assert sweep(write_space(tmp_path), "--results", tmp_path, "--trials", "1").returncode == 0


def test_a_trial_that_breaks_is_marked_and_the_others_go_on_over_several_seeds(tmp_path):
    points = {"broken": {"set": {"training.lr": 1e30}}, "fine": {}}
    file = write_space(tmp_path, points=points, search={"trials": 0}, axes={}, judge={"select": 0, "confirm": 0})
    done = sweep(file, "--results", tmp_path, "--seeds", "0,1", "--name", "other")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("failed: broken: seed 0: loss ")
    board = pd.read_csv(tmp_path / "other" / "leaderboard.csv")
    assert board.config.tolist() == ["fine", "fine", "fine", "broken"]  # over both seeds, then each
    assert board.seeds[:3].tolist() == ["0 1", "0", "1"]
    assert board.seed[1:3].tolist() == [0, 1]
    assert board.split[:3].tolist() == ["confirm", "confirm", "confirm"]
    assert board.verdict[3] == "failed"
    assert "lower lr" in board.reason[3]
    scores = [
        json.loads((tmp_path / f"other/checkpoints/fine/seed-{seed}/epoch-02/config.json").read_text())["metrics"][
            "score"
        ]
        for seed in (0, 1)
    ]
    ends = {
        e["config"]: e for e in Journal(tmp_path / "other" / "trials.jsonl").entries() if e["event"] == "ended"
    }
    assert ends["fine"]["score"] == pytest.approx(sum(scores) / 2)
    assert ends["broken"]["score"] is None


def test_a_sweep_on_a_running_cluster_leaves_it_running(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        space = write_space(tmp_path, search={"trials": 0}, axes={}, judge={"select": 0, "confirm": 0})
        done = sweep(space, "--results", tmp_path, "--address", cluster.address)
        assert done.returncode == 0, done.stderr
        assert pd.read_csv(tmp_path / "small" / "leaderboard.csv").config.tolist() == ["control"]
        assert cluster.head_node.live_processes()
    finally:
        cluster.shutdown()


def test_search_with_a_pruner_through_the_command_line(tmp_path):
    file = write_space(tmp_path, search={"trials": 3, "pruner": "asha"}, judge={"select": 1, "confirm": 1})
    done = sweep(file, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    board = pd.read_csv(tmp_path / "small" / "leaderboard.csv")
    assert len(board) == 4
    assert (board.verdict == "failed").sum() == 0


def test_settings_that_repeat_are_trained_once_and_equal_checkpoints_have_a_line_each(tmp_path):
    file = write_space(
        tmp_path,
        points={"first": {}, "second": {}, "third": {"set": {"training.log_every": 7}}},
        axes={"codec.k": {"choice": [4, 8]}, "training.log_every": {"choice": [7]}},
        search={"trials": 4},
    )
    done = sweep(file, "--results", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "small"
    began = events(folder, "began")
    assert len(began) == len(set(began)) == 4  # one of the two combinations is the third point
    leaderboard = pd.read_csv(folder / "leaderboard.csv").set_index("config")
    assert sorted(leaderboard.index) == sorted(began)
    assert leaderboard.checkpoint[["first", "second", "third"]].nunique() == 1
    assert (leaderboard.split == "confirm").all()
    assert sweep(file, "--results", tmp_path, "--resume").returncode == 0
