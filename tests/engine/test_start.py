"""A local Ray's start: processes are ready before anything is asked of them, and then keep to their own CPUs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from scripted_search import EPOCHS, ScriptedSearch, config

from m2ray.config.space import Resources
from m2ray.engine import cluster
from m2ray.engine.evaluator_pool import Pool
from m2ray.engine.tune_search import run_search
from m2ray.util.errors import UserError

MODULE = "wave"  # of the standard library; nothing here imports it


def ready() -> set[int]:
    """Processes of this session's Ray that have nothing to do."""
    session = ray.get_runtime_context().gcs_address.encode()
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            idle, parent = file.read_bytes(), (file.parent / "stat").read_text().rpartition(")")[2].split()[1]
            if idle.startswith(b"ray::IDLE") and session in Path(f"/proc/{parent}/cmdline").read_bytes():
                found.add(int(file.parent.name))
        except OSError:
            continue
    return found


def test_torch_that_was_imported_early_keeps_to_the_cpus_of_each_process(monkeypatch):
    def threads(job):
        import torch

        return torch.get_num_threads()

    monkeypatch.setenv("RAY_preload_python_modules", "torch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cluster.start(None, nested=False, preload=["torch"])
    try:
        pool = Pool(threads, 2, 0.0)
        for job in range(2):
            pool.submit(job)
        assert [done.rows for done in pool.drain()] == [1, 1]
        pool.close()
    finally:
        cluster.stop()


def test_a_short_folder_holds_the_sessions_where_the_usual_one_cannot(tmp_path, monkeypatch):
    own = Path("/tmp") / f"ray-{os.getuid()}"
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "ray").write_text("another's")  # cannot be written
    for folder in (tmp_path / ("long" * 12), Path(tempfile.mkdtemp(prefix="é", dir="/tmp"))):
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert cluster.session_folder() == own
    monkeypatch.setattr(tempfile, "tempdir", str(taken))
    assert cluster.session_folder() in (taken / own.name, own)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert cluster.session_folder() in (Path("/tmp/ray"), own)


def test_no_folder_for_the_sessions_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_SESSION_FOLDER", 3)
    with pytest.raises(UserError, match="set TMPDIR to a short folder of your own"):
        cluster.session_folder()


@pytest.mark.slow
def test_ray_starts_below_a_long_folder_with_a_name_that_is_not_ascii(tmp_path):
    folder = tmp_path / ("é" * 30)
    folder.mkdir()
    code = "from m2ray.engine import cluster; cluster.start(None, nested=False); cluster.stop(); print('up')"
    env = {**os.environ, "TMPDIR": str(folder), "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True)
    assert done.stdout == "up\n", done.stderr


def test_a_trial_gets_a_process_that_has_imported_what_it_was_told_to(tmp_path, monkeypatch):
    def report_once(settings) -> None:
        (member,) = settings["pack"]
        said = {"progress": 1, "epochs_total": 1, "epoch": 1, "score": float(MODULE in sys.modules)}
        ray.tune.report({"member": member["config"], **said})

    monkeypatch.setenv("RAY_preload_python_modules", MODULE)  # and taken back afterwards
    monkeypatch.delenv("RAY_preload_python_modules")
    cluster.start(None, nested=False, preload=[MODULE])
    try:
        until = time.monotonic() + 60
        while not (before := ready()) and time.monotonic() < until:
            time.sleep(0.1)
        script = ScriptedSearch(tmp_path, {"one": config()})
        run_search(script, script, Resources(), "none", EPOCHS, tmp_path / "ray", work=report_once)
    finally:
        cluster.stop()
    assert script.ended == {"one": (1.0, "")}
    assert script.reports["one"][0]["pid"] in before
