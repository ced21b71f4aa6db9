"""Nested trials on a real local Ray: DDP workers give one process's curve, resume when killed, and end cleanly."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from ray._private import services
from scripted_search import EPOCHS, ScriptedSearch, config
from tiny_trainings import loss_curve

from m2ray.codec.checkpoints import read_record
from m2ray.codec.tensor_file import load_tensors
from m2ray.config.space import Resources
from m2ray.engine import cluster
from m2ray.engine.trial import train_distributed
from m2ray.engine.tune_search import run_search
from m2ray.receiver.loading import load_receiver
from m2ray.training.microbatch import read_rows_at_once
from m2ray.training.trainer import STATE_FILE, TrainingFailed, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with pytest.MonkeyPatch.context() as patch:
        # As glibc does by itself: a step's pages go back, so that a worker can come to want more than it holds.
        for key in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
            patch.setenv(key, "131072")
        cluster.start(None, nested=True)
        yield
        cluster.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same training in this process."""
    folder = tmp_path_factory.mktemp("alone") / "seed-0"
    conf = config(k=8, lr=1e-3)
    train(conf, 0, load_receiver("mini"), folder, lambda metrics, at: None, {"config": "alone"})
    return folder


def distributed(folder, lr=1e-3, retries=1):
    conf = config(k=8, lr=lr).model_copy(update={"workers": 2})
    train_distributed(conf, 0, folder, {"config": "two"}, Resources(retries=retries))
    return folder


def test_two_workers_give_the_loss_curve_of_one(alone, tmp_path):
    two = distributed(tmp_path / "two" / "seed-0")
    assert len(loss_curve(alone)) == len(loss_curve(two)) >= EPOCHS
    torch.testing.assert_close(loss_curve(two), loss_curve(alone), rtol=2e-4, atol=1e-5)
    ends = [read_record(folder / f"epoch-{EPOCHS:02d}")["metrics"]["score"] for folder in (alone, two)]
    assert ends[1] == pytest.approx(ends[0], abs=1e-3)


def workers() -> list[int]:
    """Process ids of the DDP workers on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"TrainWorker" in title:
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def a_worker_killed_when(happened: Callable[[], bool]):
    """kill -9 of one DDP worker as soon as something has happened."""
    killed: list[int] = []

    def wait_and_kill() -> None:
        while not happened():
            time.sleep(0.02)
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=wait_and_kill, daemon=True)
    killer.start()
    yield
    killer.join(timeout=60)
    assert len(killed) == 1
    assert killed[0] not in workers()


def test_a_killed_worker_costs_at_most_an_epoch(alone, tmp_path):
    folder = tmp_path / "two" / "seed-0"
    with a_worker_killed_when((folder / "epoch-01" / "config.json").is_file):
        distributed(folder)
    torch.testing.assert_close(loss_curve(folder), loss_curve(alone), rtol=2e-4, atol=1e-5)


def test_a_training_that_was_given_up_is_taken_up_where_it_was(alone, tmp_path):
    folder = tmp_path / "two" / "seed-0"

    def epoch_is_over() -> bool:
        # The state to resume from is written last: a kill before that costs the epoch.
        state = folder / STATE_FILE
        return state.is_file() and load_tensors(state)[1]["step"] >= config().training.epoch_steps

    with a_worker_killed_when(epoch_is_over), pytest.raises(TrainingFailed):
        distributed(folder, retries=0)
    first = (folder / "epoch-01" / "codec.safetensors").stat().st_mtime_ns
    assert not (folder / f"epoch-{EPOCHS:02d}").exists()
    distributed(folder, retries=0)
    assert (folder / "epoch-01" / "codec.safetensors").stat().st_mtime_ns == first
    torch.testing.assert_close(loss_curve(folder), loss_curve(alone), rtol=2e-4, atol=1e-5)


@contextlib.contextmanager
def a_worker_without_memory_after(file: Path):
    """As soon as a file is there, one DDP worker gets hardly more memory than it holds then."""

    def wait_and_limit() -> None:
        while not file.is_file():
            time.sleep(0.02)
        pid = workers()[0]
        held = int(re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])
        limit = (held << 10) + (64 << 20)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))

    limiter = threading.Thread(target=wait_and_limit, daemon=True)
    limiter.start()
    yield
    limiter.join(timeout=60)


def test_a_worker_out_of_memory_halves_the_rows_of_all_and_costs_no_retry(tmp_path):
    conf = config(k=8, epochs=4, epoch_samples=512, batch_size=512)
    train(conf, 0, load_receiver("mini"), tmp_path / "one" / "seed-0", lambda m, at: None, {"config": "one"})
    folder = tmp_path / "two" / "seed-0"
    with a_worker_without_memory_after(folder / "epoch-01" / "config.json"):
        train_distributed(
            conf.model_copy(update={"workers": 2}), 0, folder, {"config": "two"}, Resources(retries=0)
        )
    assert 1 <= read_rows_at_once(folder) <= 256
    torch.testing.assert_close(loss_curve(folder), loss_curve(tmp_path / "one" / "seed-0"), rtol=2e-4, atol=1e-5)


def test_a_broken_optimisation_is_told_by_its_cause(tmp_path):
    with pytest.raises(TrainingFailed, match=r"loss .* at step \d+; lower lr"):
        distributed(tmp_path / "two" / "seed-0", lr=1e30, retries=0)


@pytest.fixture
def another_cluster():
    """A process that Ray takes for the node of another cluster on this machine."""
    argv = ["raylet", "-c", "read line", "--gcs-address=127.0.0.1:1"]
    with subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        assert "127.0.0.1:1" in services._find_address_from_flag("--gcs-address")
        yield
        process.stdin.close()


def test_nested_trials_report_like_those_in_process_and_leave_nothing_behind(another_cluster, tmp_path):
    two = {"workers": 2}
    trials = {
        "good": config().model_copy(update=two),
        "bad": config(k=24).model_copy(update=two),
        "nan": config(lr=1e30).model_copy(update=two),
        "last": config(lr=2e-6).model_copy(update=two),
    }
    script = ScriptedSearch(tmp_path, trials, seeds=(0, 1))
    one_at_a_time = Resources(retries=0, trials_at_once=1)  # so that "bad" has something to be held against
    run_search(script, script, one_at_a_time, "wilcoxon", 2 * EPOCHS, tmp_path / "ray", nested=True)
    assert script.progress("good") == list(range(1, 2 * EPOCHS + 1))
    assert script.progress("last") == list(range(1, 2 * EPOCHS + 1))
    assert script.progress("bad") == [1]  # stopped: the next trial found the CPUs free
    scores = [
        read_record(tmp_path / "good" / f"seed-{seed}" / f"epoch-{EPOCHS:02d}")["metrics"]["score"]
        for seed in (0, 1)
    ]
    assert script.ended["good"] == (pytest.approx(sum(scores) / 2), "")
    assert script.ended["nan"][0] is None
    assert script.ended["nan"][1].startswith("seed 0: ")
    assert script.ended["nan"][1].endswith("; lower lr")
    again = ScriptedSearch(tmp_path, {"good": trials["good"]}, seeds=(0, 1))
    run_search(again, again, Resources(), "none", 2 * EPOCHS, tmp_path / "ray", nested=True)
    assert again.ended["good"] == script.ended["good"]
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "a placement group was left behind"
        time.sleep(0.5)
