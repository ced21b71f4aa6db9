"""A lock that excludes other processes and that a kill frees."""

import contextlib
import errno
import fcntl
import subprocess
import sys

import pytest

from m2ray.util.locks import Locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from m2ray.util.locks import try_lock
with try_lock(Path(sys.argv[1]), "process 7 on elsewhere"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_excludes_other_processes_and_names_its_holder_until_a_kill_frees_it(tmp_path):
    file = tmp_path / "new" / "x.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for _ in range(2):  # an attempt leaves the lock and its text as they are
                with pytest.raises(Locked, match=r"^process 7 on elsewhere$"), try_lock(file, "me"):
                    pytest.fail("both hold it")
        finally:
            other.kill()
    assert file.read_text() == "process 7 on elsewhere"
    with try_lock(file, "me") as locked:
        assert (locked, file.read_text()) == (True, "me")
    assert not file.exists()


def test_a_lock_excludes_within_a_process_and_is_free_after_an_error(tmp_path):
    file = tmp_path / "x.lock"
    with contextlib.suppress(ZeroDivisionError), try_lock(file, "first"):
        with pytest.raises(Locked, match="first"), try_lock(file, "second"):
            pytest.fail("both hold it")
        raise ZeroDivisionError
    with try_lock(file, "third") as locked:
        assert locked


def test_a_lock_on_a_file_that_its_holder_has_just_removed_is_taken_anew(tmp_path, monkeypatch):
    file, flock = tmp_path / "x.lock", fcntl.flock

    def removed_meanwhile(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        file.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with try_lock(file, "me"):
        assert file.read_text() == "me"
        with pytest.raises(Locked), try_lock(file, "other"):
            pytest.fail("both hold it")


def test_without_locks_on_the_file_system_the_block_runs(tmp_path, monkeypatch):
    def no_locks(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with try_lock(tmp_path / "x.lock", "me") as locked:
        assert not locked
