"""The row store when its writers die: killed at every write, rename and removal, or on a full disk."""

import errno
import io
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from made_rows import ROW, assert_same_rows, episode_rows

from m2ray.cli.runner import BAD_INPUT
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.util.errors import describe_os_error
from m2ray.util.files import write_atomic

PARTS = [episode_rows(5, condition=name) for name in ("normal", "null", "shuffle")]
KILLED = 9


def write_all(folder, acknowledged) -> None:
    """Append three parts, merging after the second and the third; report each when it is safe."""
    store = RowStore(folder)
    for number, part in enumerate(PARTS):
        store.append(part)
        os.write(acknowledged, bytes([number]))
        if number:
            store.compact()


def die_at(count, folder, acknowledged) -> None:
    """Write, and die at the count-th touch of the disk: before it, or with half of it written."""
    left = [count]

    def touch() -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(KILLED)

    def counted(call):
        def wrapped(*args, **kwargs):
            touch()
            return call(*args, **kwargs)

        return wrapped

    class Torn(io.FileIO):
        def write(self, data):
            if left[0] == 0:
                super().write(bytes(data)[: len(data) // 2])
            touch()
            return super().write(data)

    opened = pathlib.Path.open
    pathlib.Path.open = lambda self, mode="r", *rest, **more: (
        Torn(self, "w") if mode == "wb" else opened(self, mode, *rest, **more)
    )
    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    write_all(folder, acknowledged)
    os._exit(0)


def test_a_writer_killed_at_every_touch_of_the_disk_loses_and_doubles_no_row(tmp_path):
    undisturbed = pd.concat(PARTS).sort_values(KEY, ignore_index=True)
    fork, deaths = multiprocessing.get_context("fork"), 0
    while True:
        folder, (read_end, write_end) = tmp_path / str(deaths), os.pipe()
        process = fork.Process(target=die_at, args=(deaths, folder, write_end))
        process.start()
        process.join()
        os.close(write_end)
        safe = os.read(read_end, 100)
        os.close(read_end)
        store = RowStore(folder)
        found = store.read()
        assert not found.duplicated(KEY).any()
        assert set(found.condition.value_counts()) <= {5}, "a part is there whole or not at all"
        assert {PARTS[number].condition[0] for number in safe} <= set(found.condition), "what was safe is there"
        assert store.set_aside() == [], "and nothing of it is damaged"
        write_all(folder, os.open(os.devnull, os.O_WRONLY))
        assert_same_rows(store.read(), undisturbed)
        assert not store.parts.exists() or all(file.name.endswith(".tmp") for file in store.parts.iterdir())
        if process.exitcode == 0:
            break
        assert process.exitcode == KILLED
        deaths += 1
    assert deaths > 25


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path):
    """On a file system of a megabyte, in a mount of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    small = tmp_path / "small"
    small.mkdir()
    code = f"""
import sys, pandas as pd
from pathlib import Path
from m2ray.cli.runner import run_command
from m2ray.evaluation.rows import RowStore
def main(argv):
    for part in range(1000):
        texts = [str((i * 7919 + part) ** 9) for i in range(500)]
        rows = [{{**{ROW!r}, "episode": i, "seed": part, "answer": text}} for i, text in enumerate(texts)]
        RowStore(Path({str(small)!r})).append(pd.DataFrame(rows))
        print(part, flush=True)
    return 0
try:
    run_command(main)
finally:
    print("left", len(RowStore(Path({str(small)!r})).read()), *Path({str(small)!r}).rglob(".*"))
"""
    mount = f'mount -t tmpfs -o size=1m none "{small}" && exec "{sys.executable}" -'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no mount here: {done.stderr}")
    assert done.returncode == BAD_INPUT, done.stderr
    *parts, left = done.stdout.splitlines()
    assert len(done.stderr.splitlines()) == 1
    assert (
        "No space left on device; free some and run the same command again, a sweep with --resume" in done.stderr
    )
    assert left == f"left {500 * len(parts)}", "all that was acknowledged, and no half-written file beside it"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomic(file, b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomic(file, b"new")
    assert describe_os_error(raised.value).startswith(f"{file}: No space left on device; free some")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


WRITER = """
import sys
import pandas as pd
from pathlib import Path
from m2ray.evaluation.rows import RowStore
folder, number, row = Path(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])
store, part = RowStore(folder), 0
print("ready", flush=True)
while part != int(sys.argv[4]):
    rows = [{**row, "episode": i, "seed": part, "condition": str(number)} for i in range(50)]
    shared = [{**row, "episode": i, "condition": "shared"} for i in range(50)]
    store.append(pd.DataFrame(rows))
    store.append(pd.DataFrame(shared))
    part += 1
    if len(sys.argv) > 5 and part % int(sys.argv[5]) == 0:
        store.compact()
"""


def start_writer(folder, number, parts, *compact_every):
    arguments = [str(part) for part in (folder, number, ROW, parts, *compact_every)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE)


def test_many_processes_write_at_once_and_every_row_counts_once(tmp_path):
    writers = [start_writer(tmp_path, number, 5) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 3
    rows = RowStore(tmp_path).read()
    assert len(rows) == 3 * 5 * 50 + 50
    assert not rows.duplicated(KEY).any()
    assert not list(RowStore(tmp_path).parts.glob(".*"))


def test_a_reader_never_misses_a_row_while_a_writer_appends_and_compacts(tmp_path):
    writer = start_writer(tmp_path, 0, 20, 1)
    counts = []
    while writer.poll() is None:
        counts.append(len(RowStore(tmp_path).read()))
    assert writer.returncode == 0
    assert counts == sorted(counts), "rows that were there once are always there"
    assert len(RowStore(tmp_path).read()) == 20 * 50 + 50


def test_a_killed_writer_leaves_whole_parts_only(tmp_path):
    writer = start_writer(tmp_path, 0, -1)
    assert writer.stdout.readline() == b"ready\n"
    while len(list(RowStore(tmp_path).parts.glob("*.parquet"))) < 8:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    store = RowStore(tmp_path)
    rows = store.read()
    assert len(rows) % 50 == 0
    assert len(rows) >= 50 * 8
    store.append(episode_rows(3, condition="after"))
    store.compact()
    assert len(store.read()) == len(rows) + 3
