"""Leaving: Ctrl-C and SIGTERM, once and twice, and a disk that is full in mid-sweep."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from sweeps import Process, sweep, write_space

from m2ray.cli.runner import BAD_INPUT
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.util.stopping import Stopped, check_stopped, stoppable

WAITING = """
import time
from m2ray.util.stopping import Stopped, check_stopped, stoppable
with stoppable({raises}):
    try:
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.1)
            check_stopped()
    except Stopped as stopped:
        print("saving", flush=True)
        time.sleep({rest})
        raise SystemExit(stopped.code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("raises", [False, True])
def test_the_first_signal_lets_finish_and_the_second_ends_at_once(number, code, times, raises):
    rest = 0 if times == 1 else 600
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(rest=rest, raises=raises)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "saving\n"
    if times == 2:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, len(err.strip().splitlines())) == (code, 1)
    assert "a second signal stops at once" in err


def test_signals_mean_what_they_meant_when_it_is_over():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped), stoppable(raises=True):
        os.kill(os.getpid(), signal.SIGTERM)
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            check_stopped()
    check_stopped()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_a_sweep_told_to_end_keeps_what_is_being_evaluated_and_one_told_twice_leaves_nothing_running(tmp_path):
    argv = [write_space(tmp_path), "--results", tmp_path]
    folder = tmp_path / "small"
    first = Process(*argv)
    first.until(lambda: list(folder.glob("rows/*.parquet")), "rows came in")
    before = RowStore(folder).read()
    first.popen.send_signal(signal.SIGTERM)
    _, err = first.popen.communicate(timeout=300)
    assert first.popen.returncode == 143, err
    assert err.strip().splitlines()[-1] == f"stopped; the same command with --resume continues {folder}"
    assert "Traceback" not in err
    first.until_gone()
    assert len(RowStore(folder).read()) >= len(before) > 0

    second = Process(*argv, "--resume")
    second.until((folder / "rows.parquet").is_file, "it has recalled the first one's rows")
    for _ in range(2):
        second.popen.send_signal(signal.SIGINT)
        second.popen.poll()
    second.popen.communicate(timeout=300)
    assert second.popen.returncode == 130
    second.until_gone()

    last = sweep(*argv, "--resume")
    assert last.returncode == 0, last.stderr
    rows = RowStore(folder).read()
    assert not rows.duplicated(KEY).any()
    assert len(pd.read_csv(folder / "leaderboard.csv")) == 3


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    run = f'"{sys.executable}" -m m2ray.sweep "{write_space(tmp_path)}" --results "{small}"'
    script = f"""
mount -t tmpfs -o size=600k none "{small}" || exit 77
{run} >&2; echo $?
mount -o remount,size=100m "{small}"
{run} --resume >&2; echo $?
cat "{small}/small/leaderboard.csv"
"""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77):
        pytest.skip(f"no mount here: {done.stderr}")
    full, resumed, *board = done.stdout.splitlines()
    assert full == str(BAD_INPUT), done.stderr
    assert "No space left on device; free some and run the same command" in done.stderr
    assert "Traceback" not in done.stderr
    assert resumed == "0", done.stderr
    assert len(board) == 1 + 3


def interrupted() -> None:
    """As Ray's compiled code does: whatever the handler raises comes out as a plain interrupt."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Stopped:
        raise KeyboardInterrupt from None


def test_a_stop_that_compiled_code_has_made_a_plain_interrupt_keeps_its_signal():
    with pytest.raises(Stopped) as stopped, stoppable(raises=True):
        interrupted()
    assert stopped.value.code == 143


def interrupted_at(folder, seconds):
    """Start a sweep, press Ctrl-C after so many seconds, and return its exit code and error output."""
    process = Process(write_space(folder), "--results", folder, "--name", f"at-{seconds:.3f}")
    try:
        time.sleep(seconds)
        # As a terminal does: to all processes of the group.
        os.killpg(process.popen.pid, signal.SIGINT)
        _, err = process.popen.communicate(timeout=180)
        return process.popen.returncode, err
    finally:
        process.kill()


SLOW, SLOWER = ([pytest.mark.slow, pytest.mark.timeout(limit)] for limit in (1800, 7200))


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=SLOW), pytest.param(200, marks=SLOWER)])
def test_ctrl_c_at_any_time_of_the_start_stops_a_sweep(tmp_path, times):
    """Python itself, which ends by the signal, has started within the first tenth of a second."""
    generator = random.Random(times)
    for _ in range(times):
        seconds = generator.uniform(0.5, 8.0)
        code, err = interrupted_at(tmp_path, seconds)
        assert code == 130, (seconds, code, err)
        assert "Traceback" not in err, (seconds, err)
        assert "Exception ignored" not in err, (seconds, err)
