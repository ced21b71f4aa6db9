"""Trials on a real local Ray: reports, seeds, failures, killed processes, pruners, and starting Ray at all."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import ray
from scripted_search import EPOCHS, ScriptedSearch, config

from m2ray.codec.checkpoints import read_record
from m2ray.config.space import Resources
from m2ray.engine import cluster
from m2ray.engine.tune_search import run_search
from m2ray.util.errors import UserError

on_ray = pytest.mark.slow  # the default run has the whole of it in tests/test_sweep.py


@pytest.fixture(scope="module")
def local_ray():
    cluster.start(None, nested=False)
    yield
    cluster.stop()


def run(script, pruner="none", epochs=EPOCHS, alone=False):
    cpus = ray.cluster_resources()["CPU"] if alone else 1
    run_search(script, script, Resources(cpus_per_worker=cpus), pruner, epochs, script.root / "ray")
    return script


@pytest.fixture(scope="module")
def searched(local_ray, tmp_path_factory):
    """One search in which some trials go wrong in every way that trials do."""
    trials = {
        "plain": config(),
        "nan": config(lr=1e30),
        "killed-once": config(),
        "doomed": config(),
        "impossible": config().model_copy(update={"receiver": "./no-such-folder"}),
        "last": config(k=8),
    }
    return run(ScriptedSearch(tmp_path_factory.mktemp("search"), trials, kill={"killed-once": 1, "doomed": 5}))


@on_ray
def test_a_pack_of_trials_in_one_process_tells_each_trials_own_end(local_ray, tmp_path):
    trials = {
        "plain": config(),
        "nan": config(lr=1e30),
        "impossible": config().model_copy(update={"receiver": "./no-such-folder"}),
        "other-k": config(k=8),
        "next-pack": config(),
    }
    script = ScriptedSearch(tmp_path, trials)
    run_search(script, script, Resources(pack=4), "none", EPOCHS, tmp_path / "ray")
    assert {name: [report["epoch"] for report in script.reports[name]] for name in trials} == {
        "plain": [1, 2, 3],
        "nan": [],
        "impossible": [],
        "other-k": [1, 2, 3],
        "next-pack": [1, 2, 3],
    }
    assert len({report["pid"] for name in ("plain", "other-k") for report in script.reports[name]}) == 1
    for name in ("plain", "other-k", "next-pack"):
        assert script.ended[name] == (script.reports[name][-1]["score"], "")
    assert script.ended["nan"][0] is None
    assert "lower lr" in script.ended["nan"][1]
    assert "no-such-folder" in script.ended["impossible"][1]


@on_ray
def test_each_epoch_is_reported_with_its_checkpoint_and_the_last_score_counts(searched):
    assert searched.progress("plain") == [1, 2, 3]
    for report in searched.reports["plain"]:
        assert report["epochs_total"] == EPOCHS
        record = read_record(searched.root / "plain" / "seed-0" / f"epoch-{report['epoch']:02d}")
        assert report["checkpoint"].endswith(f"plain/seed-0/epoch-{report['epoch']:02d}")
        assert record["metrics"]["score"] == report["score"]
        assert (record["config"], record["params"]) == ("plain", {"training.lr": 1e-6})
    assert searched.ended["plain"] == (searched.reports["plain"][-1]["score"], "")
    assert searched.ended["plain"][0] > 0  # near the identity: the right message is worth something


@on_ray
def test_a_broken_optimisation_ends_its_trial_alone_with_its_cause(searched):
    score, cause = searched.ended["nan"]
    assert score is None
    assert cause.startswith("seed 0: loss ")
    assert cause.endswith("; lower lr")
    assert searched.ended["last"][1] == ""


@on_ray
def test_bad_input_that_only_a_trial_finds_is_its_cause(searched):
    assert searched.ended["impossible"][0] is None
    assert "receiver ./no-such-folder: no such folder" in searched.ended["impossible"][1]


@on_ray
def test_a_killed_trial_goes_on_from_its_last_epoch_to_the_same_end(searched):
    assert searched.progress("killed-once") == [1, 2, 3]
    assert searched.ended["killed-once"] == searched.ended["plain"]
    histories = [
        json.loads((searched.root / name / "seed-0" / "history.json").read_text())
        for name in ("plain", "killed-once")
    ]
    assert histories[0] == histories[1]


@on_ray
def test_a_trial_that_dies_each_time_is_given_up(searched):
    score, cause = searched.ended["doomed"]
    assert score is None
    assert "process died" in cause
    assert len(searched.reports["doomed"]) == 2  # once, and once more


@on_ray
def test_every_trial_ends_exactly_once(searched):
    assert set(searched.ended) == {"plain", "nan", "killed-once", "doomed", "impossible", "last"}


@on_ray
def test_what_is_complete_is_reported_again_and_not_trained_again(searched):
    root = searched.root
    before = {path: path.stat().st_mtime_ns for path in (root / "plain").rglob("*")}
    again = run(ScriptedSearch(root, {"plain": config()}))
    assert again.progress("plain") == [EPOCHS]
    assert again.ended == {"plain": searched.ended["plain"]}
    assert {path: path.stat().st_mtime_ns for path in (root / "plain").rglob("*")} == before


@on_ray
def test_another_configuration_in_the_same_place_is_refused_by_name(searched):
    again = run(ScriptedSearch(searched.root, {"plain": config(k=8)}))
    assert again.ended["plain"][0] is None
    assert "made with other settings" in again.ended["plain"][1]


@on_ray
def test_several_training_seeds_are_one_trial_and_the_searcher_sees_their_mean(local_ray, tmp_path):
    script = run(ScriptedSearch(tmp_path, {"a": config(epochs=2)}, seeds=(0, 3)), epochs=4)
    scores = [
        [read_record(tmp_path / "a" / f"seed-{seed}" / f"epoch-{e:02d}")["metrics"]["score"] for e in (1, 2)]
        for seed in (0, 3)
    ]
    assert scores[0] != scores[1]
    assert script.progress("a") == [1, 2, 3, 4]
    assert [r["epochs_total"] for r in script.reports["a"]] == [4] * 4
    seen = [report["score"] for report in script.reports["a"]]
    assert seen == pytest.approx([*scores[0], *((scores[0][1] + s) / 2 for s in scores[1])])
    assert script.ended["a"] == (seen[-1], "")


@pytest.mark.parametrize("pruner", ["wilcoxon", "asha", "none"])
@on_ray
def test_pruners_stop_what_is_clearly_behind_but_never_a_point(local_ray, tmp_path, pruner):
    trials = {"good": config(), "point": config(k=24), "bad": config(k=24, lr=2e-6), "fine": config(lr=2e-6)}
    script = run(ScriptedSearch(tmp_path, trials, points=("point",)), pruner, alone=True)
    assert script.progress("good") == [1, 2, 3]
    assert script.progress("point") == [1, 2, 3]
    assert script.progress("bad") == ([1, 2, 3] if pruner == "none" else [1])
    if pruner == "wilcoxon":  # hardly behind, if at all: the test does not tell it from the best
        assert script.progress("fine") == [1, 2, 3]
    assert all(cause == "" and math.isfinite(score) for score, cause in script.ended.values())


# --- starting Ray --------------------------------------------------------------------------------------------


def test_a_local_ray_that_misses_its_deadline_once_is_started_again(monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        if len(calls) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    cluster.start(None, nested=True)
    assert len(calls) == 2
    assert calls[1]["address"] == "local"  # whatever cluster this machine belongs to
    assert calls[1]["include_dashboard"]
    assert calls[1]["dashboard_host"] == "127.0.0.1"


def test_a_local_ray_that_never_starts_is_one_line(monkeypatch):
    calls = Counter()

    def init(**options):
        calls["init"] += 1
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"Ray: no local cluster starts \(during startup\.\)"):
        cluster.start(None, nested=False)
    assert calls["init"] == 3


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers \(.*refused\); start one with `ray up cluster.yaml`"),
        ("ray://127.0.0.1:1", r"no Ray cluster answers \(.*refused\); start one with"),
        ("no-such-host.invalid:6379", r"no Ray cluster answers \(.*\); start one with"),
        ("head", r"write host:port of the head node, or auto"),
        ("head:port", r"write host:port of the head node, or auto"),
        ("", r"write host:port of the head node, or auto"),
    ],
)
def test_nobody_at_the_address_is_one_line_at_once(address, says):
    with pytest.raises(UserError, match=f"--address {address}: {says}"):
        cluster.start(address, nested=False)


def test_a_token_that_another_ray_left_behind_keeps_no_local_cluster_from_starting(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"} | {"HOME": str(tmp_path)}
    code = "from m2ray.engine import cluster; cluster.start(None, nested=False); cluster.stop(); print('up')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "up", done.stderr
