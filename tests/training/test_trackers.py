"""A killed and resumed training in TensorBoard, MLflow and W&B, read back with their own tools."""

import importlib.util
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from m2ray.cli.train import main
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import config_name, load_plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.preflight import check_plan
from m2ray.receiver.loading import load_receiver
from m2ray.training.trackers import OPEN, Run, check_installed
from m2ray.training.trainer import TrainingFailed, train
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

EPOCHS, STEPS = 3, 12
INSTALLED = [name for name in ("tensorboard", "mlflow", "wandb") if importlib.util.find_spec(name)]
SMALL = {
    "splits": {"train": "100:300", "search": "1000:1010", "select": "1010:1012", "confirm": "1012:1014"},
    "codec": {"encoder": "segments", "k": 3, "width": 32, "layers": 1},
    "training": {"epochs": EPOCHS, "epoch_samples": 32, "batch_size": 8, "log_every": 1},
}
ONLINE = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT")


def config(receiver: str, *names: str, **training) -> TrialConfig:
    tree = {**SMALL, "receiver": receiver, "trackers": list(names), "training": {**SMALL["training"], **training}}
    return validate(TrialConfig, tree, "test")


def run(conf: TrialConfig, folder: Path) -> None:
    train(conf, 0, load_receiver(conf.receiver), folder, lambda metrics, at: None, {"config": "short"})


def begin_and_be_killed(tree: str, folder: str) -> None:
    """Train until the process kills itself after its second epoch."""
    conf = TrialConfig.model_validate_json(tree)

    def die(metrics, at):
        if metrics["epoch"] == 2:
            # As if killed before the second state was saved: that epoch, already logged, is repeated.
            (Path(folder) / "after-1").rename(Path(folder) / "training.safetensors")
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(folder) / "after-1").write_bytes((Path(folder) / "training.safetensors").read_bytes())

    train(conf, 0, load_receiver(conf.receiver), Path(folder), die, {"config": "short"})


@pytest.fixture(scope="module")
def tracked(tiny_folder, tmp_path_factory):
    """A training under every installed tracker, killed after its second epoch and resumed from its first."""
    folder, cwd = tmp_path_factory.mktemp("tracked") / "short" / "seed-0", tmp_path_factory.mktemp("cwd")
    conf = config(str(tiny_folder), *INSTALLED)
    with pytest.MonkeyPatch.context() as patch:
        for key in ONLINE:
            patch.delenv(key, raising=False)
        patch.chdir(cwd)
        process = mp.get_context("spawn").Process(
            target=begin_and_be_killed, args=(conf.model_dump_json(), str(folder))
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        ids = {file.name: file.read_text() for file in folder.glob("*.id")}
        run(conf, Path(os.path.relpath(folder)))
    assert ids == {file.name: file.read_text() for file in folder.glob("*.id")}
    assert not any(cwd.iterdir()), "a tracker wrote into the working directory"
    return folder


def history(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in json.loads((folder / "history.json").read_text())]


def assert_same_curve(got: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [step for step, _ in got] == [step for step, _ in wanted] == list(range(1, STEPS + 1))
    assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(got, wanted, strict=True))


def assert_epochs_have_a_score(got: list[tuple[int, float]], folder: Path) -> None:
    assert [step for step, _ in got] == [4, 8, 12]
    for epoch, (_, score) in enumerate(got, 1):
        record = json.loads((folder / f"epoch-{epoch:02d}" / "config.json").read_text())
        assert math.isclose(score, record["metrics"]["score"], rel_tol=1e-6)


@pytest.mark.parametrize("key", ["loss", "nll", "grad_norm", "lr", "shuffle_gap"])
def test_tensorboard_has_each_step_of_a_resumed_training_once(tracked, key):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert_same_curve([(e.step, e.value) for e in events.Scalars(key)], history(tracked, key))
    assert_epochs_have_a_score([(e.step, e.value) for e in events.Scalars("score")], tracked)
    (table,) = events.Tensors("configuration/text_summary")
    assert b"|codec.encoder|segments|" in table.tensor_proto.string_val[0]


def test_tensorboard_reads_a_process_that_resumes_within_the_same_second(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (0, 1):
        with OPEN["tensorboard"](Run("r", {}, tmp_path, step)) as log:
            log(step + 1, {"loss": 1.0})
        if step == 0:
            (first,) = (tmp_path / "tensorboard").iterdir()
            # In this second, and sorted by its process number after whatever comes next.
            first.rename(first.with_name(f"events.out.tfevents.{int(time.time()):010d}.{'~' * 8}.9.0"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_mlflow_has_one_finished_run_with_its_parameters_and_each_step_once(tracked):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("m2ray")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("short/seed-0", "FINISHED")
    assert found.info.run_id == (tracked / "mlflow.id").read_text()
    params = found.data.params
    assert (params["codec.encoder"], params["training.lr"], params["seed"]) == ("segments", "0.001", "0")
    assert not any(key.startswith("trackers") for key in params)
    for key in ("loss", "shuffle_gap"):
        got = [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, key)]
        assert_same_curve(sorted(got), history(tracked, key))
    scores = client.get_metric_history(found.info.run_id, "score")
    assert_epochs_have_a_score(sorted((metric.step, metric.value) for metric in scores), tracked)


def test_wandb_has_offline_files_of_one_run_id_to_sync(tracked):
    pytest.importorskip("wandb")
    run_id = (tracked / "wandb.id").read_text()
    folders = sorted((tracked / "wandb").glob("offline-run-*"))
    assert len(folders) == 2, "one for each process"
    for folder in folders:
        assert folder.name.endswith(f"-{run_id}")
        assert (folder / f"run-{run_id}.wandb").stat().st_size > 0


def test_mlflow_marks_a_training_that_broke_down_as_failed(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    # A store of several runs: the first creates the experiment, the second finds it.
    uri = f"sqlite:///{tmp_path / 'all.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run(config(str(tiny_folder), "mlflow", epochs=1), tmp_path / "good")
    with pytest.raises(TrainingFailed):
        run(config(str(tiny_folder), "mlflow", lr=1e30), tmp_path / "broken")
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("m2ray").experiment_id])
    assert sorted(found.info.status for found in runs) == ["FAILED", "FINISHED"]


def test_a_store_that_cannot_be_opened_is_named_in_one_line(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://somewhere")
    match = r"^trackers: mlflow: cannot start a run \(.*nonsense.*\); fix that or leave"
    with pytest.raises(UserError, match=match):
        run(config(str(tiny_folder), "mlflow"), tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(tiny_folder, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "receiver": str(tiny_folder), "trackers": [name]}))
    with pytest.raises(UserError) as raised:
        main([str(file), "--out", str(tmp_path / "run")])
    assert str(raised.value) == f'{file}: trackers: {name}: not installed; pip install "m2ray[trackers]"'
    assert [at.name for at in tmp_path.iterdir()] == ["short.yaml"]


def test_a_folder_that_has_a_trackers_name_does_not_pass_for_it(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="trackers: wandb: not installed"):
        check_installed(["wandb"])


def space(folder: Path, receiver: str, **over) -> Path:
    file = folder / "space.yaml"
    tree = {"name": "s", "trial": {**SMALL, "receiver": receiver, "trackers": ["mlflow"]}, "points": {"one": {}}}
    file.write_text(yaml.safe_dump({**tree, **over}))
    return file


def test_a_sweep_is_refused_before_it_begins_where_a_tracker_is_missing(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    plan = load_plan(space(tmp_path, str(tiny_folder)))
    with pytest.raises(UserError, match="trackers: mlflow: not installed"):
        check_plan(plan, load_plan_gate(plan))


def test_all_configurations_of_a_sweep_have_the_same_trackers(tiny_folder, tmp_path):
    points = {"one": {"set": {"trackers": ["wandb"]}}}
    with pytest.raises(UserError, match=r"points\.one\.set\.trackers: the same for all .* move it to trial"):
        load_plan(space(tmp_path, str(tiny_folder), points=points))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match=r"^test: trackers\.0: .*'tensorboard', 'mlflow' or 'wandb'"):
        validate(TrialConfig, {"trackers": ["comet"]}, "test")


def test_trackers_change_neither_a_configurations_name_nor_what_can_be_resumed(tiny_folder, tmp_path):
    plain, more = (config(str(tiny_folder), *names, epochs=1) for names in ([], ["tensorboard"]))
    assert config_name(plain) == config_name(more)
    run(plain, tmp_path)
    (tmp_path / "history.json").unlink()
    run(more, tmp_path)
    assert not (tmp_path / "history.json").exists(), "there was nothing left to train"
    with pytest.raises(UserError, match="made with other settings"):
        run(config(str(tiny_folder), epochs=1, lr=0.5), tmp_path)


def work(rank: int, tree: str, folder: str, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    run(TrialConfig.model_validate_json(tree), Path(folder))
    dist.destroy_process_group()


@pytest.mark.slow
def test_of_several_workers_one_logs_to_the_trackers(tiny_folder, tmp_path):
    conf = config(str(tiny_folder), "tensorboard", epochs=1).model_copy(update={"workers": 2})
    mp.spawn(work, (conf.model_dump_json(), str(tmp_path / "run"), str(tmp_path / "store")), nprocs=2)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
