"""What people see while a sweep runs: plain lines in a log, a live table on a terminal."""

import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from m2ray.config.plan import load_plan
from m2ray.engine.cost.estimate import count_work
from m2ray.engine.cost.forecast import END_S, Forecast, forecast
from m2ray.engine.progress import Progress

EPOCH = {"epochs_total": 4, "k": 8, "score": 0.25, "shuffle_gap": 0.5, "prefix_cosine": 0.75}

SHOW = """
import time
from m2ray.engine.cost.forecast import Forecast
from m2ray.engine.progress import Progress
with Progress("night", Forecast({}, 2, 4, answers=4)) as board:
    board.phase("search: 2 configurations")
    for progress in (1, 2, 3, 4):
        epoch = {"progress": progress, "epochs_total": 4}
        board.reported("good", {**epoch, "k": 8, "score": 0.25, "shuffle_gap": 0.5})
        time.sleep(0.8)
    board.ended("good", "")
    board.reported("dull", {"progress": 1, "epochs_total": 4, "k": 4, "score": -0.5, "collapsed": True})
    board.ended("broken", "seed 0: loss nan at step 3; lower lr")
    board.evaluated("good on search: 5 conditions", "")
    board.solved("good", 15, 20)
    time.sleep(1.2)
print("the end")
"""


def plain(text: str) -> str:
    """Without what moves the cursor and colors."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def on_a_terminal() -> str:
    """All that the program above writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", SHOW], stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            parts.append(part)
        os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_a_terminal_shows_a_table_that_moves():
    raw = on_a_terminal()
    text = plain(raw)
    assert "\x1b[1A" in raw  # goes back up and draws over what stood there
    for epoch in ("1/4", "2/4", "3/4", "4/4"):
        assert re.search(rf"good +│ +training +│ +{epoch} +│ +8 +│ +0\.250 +│ +0\.500", text), epoch
    assert "night: search: 2 configurations" in text
    assert re.search(r"good +│ +trained", text)
    assert re.search(r"good .*75 \[53, 89\]", text)
    assert re.search(r"dull +│ +COLLAPSED", text)
    assert "broken: FAILED: seed 0: loss nan at step 3; lower lr" in text
    assert len(set(re.findall(r"(\d+) s, \d+%", text))) >= 3  # time goes on between events
    assert re.search(r"\d+ s, \d+%, about \d+ s left", text)
    assert text.rstrip().endswith("the end")


def test_a_narrow_terminal_keeps_the_telling_part_of_a_name():
    """Columns are dropped first, then the beginning of names."""
    board = Progress("night", Forecast({}, 2, 4, answers=4))
    names = [f"segments-k16-{digits}" for digits in ("fff3b16e", "779773c1")]
    for name in names:
        board.reported(name, {**EPOCH, "progress": 2})
    for width, shown in ((100, names), (60, names), (28, ["3b16e", "773c1"])):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        board._console = console
        console.print(board._table())
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert all(any(name in line for line in lines) for name in shown), lines


def lines_of(capsys, act) -> list[str]:
    with Progress("night", Forecast({}, 2, each=4, answers=32)) as board:
        act(board)
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_one_line_an_event(capsys):
    def act(board):
        board.phase("search")
        board.reported("good", {**EPOCH, "progress": 2})
        board.reported("dull", {**EPOCH, "progress": 1, "collapsed": True})
        board.ended("good", "")
        board.evaluated("good on search", "")
        board.evaluated("dull on search", "evaluator died, 3 times")

    lines = [line.partition("] ")[2] for line in lines_of(capsys, act)]
    assert lines == [
        "search",
        "good: epoch 2/4  k 8  score +0.250 nats  shuffle gap 0.500",
        "dull: epoch 1/4  k 8  score +0.250 nats  shuffle gap 0.500  COLLAPSED: ignores its message",
        "good: stopped early, clearly behind the best",
        "evaluated good on search",
        "evaluated dull on search: FAILED: evaluator died, 3 times",
    ]


def test_progress_counts_training_and_evaluation_by_their_cost(capsys):
    def act(board):
        board.phase("begin")
        board.reported("a", {**EPOCH, "progress": 2})
        board.ended("b", "loss nan")
        for _ in range(4):
            board.evaluated("a", "", answers=8)
        board.reported("a", {**EPOCH, "progress": 4})

    shares = [re.search(r"(\d+)%", line)[1] for line in lines_of(capsys, act)]
    # 2 of 8 samples, which cost 4 answers each, beside 32 answers; then 2 of 4, since b is over; 4 times 8 answers
    assert shares == ["0", "12", "17", "33", "50", "67", "83", "100"]


def test_costs_are_those_that_were_measured():
    forecast = Forecast({"point": 10}, 1, each=10, answers=200)
    forecast.epoch("point", 5, 10, seconds=5, spent_s=5.0)  # 1 s a sample
    forecast.answered(20, seconds=2)  # 0.1 s an answer
    forecast.answered(20, seconds=99, constant=True)  # with a training: not a measure
    assert forecast.left_s(18.0) is None, "nothing has been measured"
    # 5 of 20 s of training, 4 of 20 s of evaluation
    assert forecast.share == pytest.approx(9 / 40)
    forecast.epoch("sampled", 2, 4, seconds=2, spent_s=7.0)  # shorter than the longest
    assert forecast.share == pytest.approx(11 / 34)
    forecast.ended("sampled")  # stopped early
    assert forecast.share == pytest.approx(11 / 32)


def test_a_sample_of_a_content_free_prefix_counts_half(tmp_path):
    """It has one objective and no encoder: half as long as a sample of the default sweep's codecs."""
    space = tmp_path / "one.yaml"
    splits = {"train": "100000:200000", "search": "0:4", "select": "4:8", "confirm": "8:12"}
    trial = {"splits": splits, "losses": {"ce": {}}, "training": {"epochs": 1, "epoch_samples": 1000}}
    only = {"diagnose": 0, "select": 0, "confirm": 0}
    space.write_text(yaml.dump({"name": "one", "trial": trial, "points": {"one": {}}, "judge": only}))
    work = forecast(load_plan(space))
    work.epoch("one", 1000, 1000, seconds=1000, spent_s=1000.0)
    work.answered(count_work(load_plan(space)).answers, seconds=0.0)
    assert work.share == pytest.approx(1000 / 1500, abs=0.05)


def test_sampled_configurations_are_not_counted_as_long_as_a_point_that_trains_longer(tmp_path):
    """A control with ten times the training would else foretell ten times the work of the whole search."""
    space = tmp_path / "some.yaml"
    splits = {"train": "100000:200000", "search": "0:4", "select": "4:8", "confirm": "8:12"}
    trial = {"splits": splits, "losses": {"ce": {}}, "training": {"epochs": 2, "epoch_samples": 100}}
    points = {"long": {"set": {"training.epochs": 20}}}
    axes = {"training.epochs": {"choice": [1, 3]}, "codec.k": {"choice": [4, 8]}}
    some = {"name": "some", "trial": trial, "points": points, "axes": axes, "search": {"trials": 4}}
    space.write_text(yaml.dump(some))
    work = count_work(load_plan(space))
    assert (work.samples, work.reports) == (2000 + 4 * 300, 20 + 4 * 3)


def test_the_time_left_counts_what_must_be_under_way():
    """Two trials of two epochs, 100 s each: shortly before the second reports, half of its work is not news."""
    forecast = Forecast({"a": 200, "b": 200}, 0, each=0, answers=1)
    forecast.began("a", 0.0)
    forecast.began("b", 50.0)
    forecast.epoch("a", 100, 200, seconds=100, spent_s=100.0)
    forecast.measured(100.0)  # b has trained 50
    forecast.epoch("b", 100, 200, seconds=100, spent_s=150.0)  # a has trained 50 more
    assert forecast.share == pytest.approx(0.5, abs=0.01), "what is reported"
    assert forecast.left_s(150.0) == pytest.approx(75.0 + END_S, rel=0.05)  # 150 are left, 2 a second
    assert forecast.left_s(190.0) == pytest.approx(35.0 + END_S, rel=0.05)  # 70 are left
    assert forecast.left_s(250.0) > END_S, "an epoch that takes longer than those before is not over"
    forecast.ended("a")
    assert forecast.left_s(190.0) > END_S


def test_the_time_left_does_not_take_the_start_up_for_work():
    forecast = Forecast({}, 0, each=0, answers=100)
    forecast.answered(4, seconds=1)
    forecast.measured(60.0)  # a minute until the first work has ended
    assert forecast.left_s(60.0) is None
    forecast.answered(16, seconds=4)
    forecast.measured(64.0)
    assert forecast.left_s(64.0) == pytest.approx(20.0 + END_S)  # 16 answers in 4 s, 80 to go


def test_what_an_earlier_run_did_counts_but_not_towards_the_speed():
    forecast = Forecast({}, 2, each=4, answers=32)
    forecast.restored({"a"}, answers=16)
    assert forecast.share == 0.5
    forecast.answered(4, seconds=1)
    forecast.measured(10.0)
    forecast.answered(8, seconds=2)
    assert forecast.left_s(14.0) == pytest.approx(10.0 + END_S)  # an eighth in 4 s, five sixteenths to go


@pytest.mark.parametrize("missing", ["shuffle_gap", "prefix_cosine"])
def test_a_figure_that_a_codec_does_not_have_is_left_out(capsys, missing):
    metrics = {key: value for key, value in EPOCH.items() if key != missing}
    assert len(lines_of(capsys, lambda board: board.reported("a", {**metrics, "progress": 1}))) == 1


EVENTS = """
from m2ray.engine.cost.forecast import Forecast
from m2ray.engine.progress import Progress
import sys
with Progress("night", Forecast({}, 1, 1, answers=1), form=sys.argv[1]) as board:
    board.phase("search: 1 configuration")
    board.reported("good", {"progress": 1, "epochs_total": 1, "k": 8, "score": 0.25, "collapsed": False})
    board.ended("good", "")
    board.ended("broken", "lower lr")
    board.evaluated("good on search", "")
"""


def said(form):
    done = subprocess.run([sys.executable, "-c", EVENTS, form], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_quiet_says_only_what_went_wrong():
    assert said("quiet") == ["broken: FAILED: lower lr"]


def test_json_says_everything_an_object_a_line():
    lines = [json.loads(line) for line in said("json")]
    assert [line["event"] for line in lines] == ["phase", "epoch", "ended", "ended", "evaluated"]
    assert lines[1]["config"] == "good"
    assert lines[1]["score"] == 0.25
    assert [line["state"] for line in lines[2:4]] == ["trained", "failed"]
    assert lines[3]["cause"] == "lower lr"
