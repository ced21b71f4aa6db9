"""Several nodes of a cluster: training and evaluation spread over them, nodes that go and nodes that come."""

import json
import os
import time

import pandas as pd
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from sweeps import SPACE, Process, write_space
from tiny_trainings import loss_curve

from m2ray.config.plan import load_plan
from m2ray.engine import cluster, ray_internals
from m2ray.engine.evaluator_pool import Pool
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def nodes(monkeypatch):
    """A cluster whose head, as in cluster.yaml, runs no trial."""
    monkeypatch.setenv(ray_internals.AUTH_MODE, "disabled")
    for key, value in {**ray_internals.ENVIRONMENT, **ray_internals.MALLOC}.items():
        monkeypatch.setenv(key, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def trainers(node) -> list[psutil.Process]:
    """DDP workers on a node."""
    below = psutil.Process(node.all_processes["raylet"][0].process.pid).children()
    return [process for process in below if "TrainWorker" in " ".join(process.cmdline())]


def test_a_training_over_two_nodes_waits_for_the_second_and_outlives_the_first(nodes, tmp_path):
    file = write_space(
        tmp_path,
        trial=SPACE["trial"] | {"workers": 2},
        points={"two": {"set": {"training.epochs": 3, "training.epoch_samples": 96}}},
        search={"trials": 0},
        axes={},
        judge={"select": 0, "confirm": 0},
        resources={"retries": 3},
    )
    folder = tmp_path / "small"
    seed = folder / "checkpoints" / "two" / "seed-0"

    first = nodes.add_node(num_cpus=1)
    sweep = Process(file, "--results", tmp_path, "--address", nodes.address)
    sweep.until((folder / "trials.jsonl").is_file, "the trial began")
    time.sleep(10)
    assert not list(seed.glob("epoch-*"))  # two workers of a CPU each do not fit on one node of one CPU
    others = [nodes.add_node(num_cpus=1)]
    sweep.until((seed / "epoch-01" / "config.json").is_file, "an epoch ended")
    assert [len(trainers(node)) for node in (first, *others)] == [1, 1]
    others.append(nodes.add_node(num_cpus=1))
    nodes.remove_node(first, allow_graceful=False)
    done = sweep.wait()
    assert done.returncode == 0, done.stderr

    config = load_plan(file, {}, {}).points["two"].model_copy(update={"workers": 1})
    alone = tmp_path / "alone" / "seed-0"
    train(config, 0, load_receiver("mini"), alone, lambda metrics, at: None, {"config": "alone"})
    torch.testing.assert_close(loss_curve(seed), loss_curve(alone), rtol=2e-4, atol=1e-5)
    assert pd.read_csv(folder / "leaderboard.csv").config.tolist() == ["two"]


def test_workers_that_are_to_be_strictly_spread_wait_for_a_node_each(nodes, tmp_path):
    file = write_space(
        tmp_path,
        trial=SPACE["trial"] | {"workers": 2},
        points={"two": {"set": {"training.epochs": 1}}},
        search={"trials": 0},
        axes={},
        judge={"select": 0, "confirm": 0},
        resources={"placement": "STRICT_SPREAD"},
    )
    epoch = tmp_path / "small" / "checkpoints" / "two" / "seed-0" / "epoch-01" / "config.json"
    seen = []
    first = nodes.add_node(num_cpus=4)
    sweep = Process(file, "--results", tmp_path, "--address", nodes.address)
    sweep.until((tmp_path / "small" / "trials.jsonl").is_file, "the trial began")
    time.sleep(10)
    assert not epoch.is_file()  # the node has room for both, and takes one
    second = nodes.add_node(num_cpus=4)
    sweep.until(
        lambda: seen.append([len(trainers(node)) for node in (first, second)]) or epoch.is_file(), "its end"
    )
    assert [1, 1] in seen
    assert max(map(max, seen)) == 1
    done = sweep.wait()
    assert done.returncode == 0, done.stderr


def test_evaluators_are_spread_over_nodes_and_the_job_of_a_lost_node_is_done_on_another(nodes, tmp_path):
    others = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
    cluster.start(nodes.address, nested=False)

    def work(job):
        number, wait = job
        at = ray.get_runtime_context().get_node_id()
        with (tmp_path / f"{number}.log").open("a") as log:
            log.write(f"{json.dumps([at, os.getpid()])}\n")
        lines = (tmp_path / f"{number}.log").read_text().splitlines()
        if wait and len(lines) == 1:
            time.sleep(600)
        return pd.DataFrame({"number": [number], "node": [at]})

    pool = Pool(work, 3, 0.0)
    for number in range(3):
        pool.submit((number, True))
    began = [tmp_path / f"{number}.log" for number in range(3)]
    deadline = time.monotonic() + 300
    while not all(file.is_file() and file.read_text().endswith("\n") for file in began):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    at = [json.loads(file.read_text())[0] for file in began]
    assert len(set(at)) == 3  # the head and the two others
    lost = next(node for node in others if node.node_id in at)
    number = at.index(lost.node_id)
    nodes.remove_node(lost, allow_graceful=False)
    while not (done := pool.poll(timeout=1.0)):
        assert time.monotonic() < deadline
    assert [(d.job, d.cause) for d in done] == [((number, True), "")]
    assert done[0].rows.node[0] != lost.node_id
    assert len(pool) == 2  # the others were not disturbed
    pool.close()
