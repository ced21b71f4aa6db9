"""A local Ray's start: trials run in processes that are ready before anything is asked of them."""

import sys
import time
from pathlib import Path

import ray
from test_cluster import EPOCHS, Script, config

from m2ray import cluster
from m2ray.search import search
from m2ray.space import Resources

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
        script = Script(tmp_path, {"one": config()})
        search(script, script, Resources(), "none", EPOCHS, tmp_path / "ray", work=report_once)
    finally:
        cluster.stop()
    assert script.ended == {"one": (1.0, "")}
    assert script.reports["one"][0]["pid"] in before
