"""The training loop: it learns, resumes, agrees with itself over workers, and names what breaks."""

import itertools
import json
import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from made_episodes import write_episodes
from tiny_trainings import config, loss_curve

from m2ray.codec.checkpoints import read_record, trial_of
from m2ray.codec.codec import Codec, load_codec
from m2ray.codec.local_paths import record_without_folders
from m2ray.codec.tensor_file import load_tensors, save_tensors
from m2ray.config.task import parse_seeds
from m2ray.config.trial import TrialConfig
from m2ray.engine.jobs import EvaluationJob, run_evaluation
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.loading import load_receiver
from m2ray.training.objectives import LOSSES
from m2ray.training.schedule import SlotAnnealer, is_collapsed, learning_rate, training_batch
from m2ray.training.trainer import TrainingFailed, train
from m2ray.util.errors import UserError
from m2ray.util.files import write_json
from m2ray.util.strict_yaml import validate


def run(conf, receiver, folder, seed=0):
    reports = []
    train(conf, seed, receiver, folder, lambda metrics, at: reports.append((metrics, at)), {"config": "test"})
    return reports


def test_every_loss_is_finite_reported_and_reaches_the_codec(tiny, tmp_path):
    everything = {name: {"weight": 0.1} for name in LOSSES}
    conf = config(
        tiny,
        losses=everything,
        codec={"encoder": "segments", "k": 3, "width": 32, "bottleneck": "vq", "codebook": 8},
    )
    reports = run(conf, tiny, tmp_path)
    metrics = reports[-1][0]
    assert all(math.isfinite(metrics[name]) for name in LOSSES)
    for name in ("prefix_norm", "prefix_cosine", "effective_rank", "shuffle_gap", "null_gap", "grad_norm"):
        assert math.isfinite(metrics[name])
    assert 1 <= metrics["code_perplexity"] <= 8


def test_training_lowers_the_loss_and_leaves_the_receiver_frozen(tiny, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    codec = {"encoder": "constant", "k": 8}
    conf = config(tiny, codec=codec, training__epochs=10, training__lr=5e-2, losses={"ce": {}})
    run(conf, tiny, tmp_path)
    losses = loss_curve(tmp_path)
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])
    assert all(torch.equal(before[n], t) for n, t in tiny.model.state_dict().items())


def test_same_seed_same_curve_other_seed_other_curve(tiny, tmp_path):
    conf = config(tiny)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(conf, tiny, tmp_path / name, seed)
    assert loss_curve(tmp_path / "a") == loss_curve(tmp_path / "b")
    assert loss_curve(tmp_path / "a") != loss_curve(tmp_path / "c")


class Killed(Exception):
    pass


def test_an_interrupted_training_resumes_to_the_same_end(tiny, tmp_path):
    conf = config(tiny, training__anneal={"start": 8, "hold": 2}, training__epochs=3)
    run(conf, tiny, tmp_path / "whole")

    def die(metrics, at):
        if metrics["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(conf, 0, tiny, tmp_path / "cut", die, {"config": "test"})
    rest = run(conf, tiny, tmp_path / "cut")
    assert [metrics["epoch"] for metrics, _ in rest] == [3]
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    ends = [load_codec(tmp_path / name / "epoch-03", tiny).digest for name in ("whole", "cut")]
    assert ends[0] == ends[1]


def test_a_collapsed_training_starts_afresh_and_resumes_there(tiny, tmp_path):
    """A constant prefix always ignores its message."""
    conf = config(tiny, codec__encoder="constant", training__restarts=1, training__epochs=4)
    reports = run(conf, tiny, tmp_path / "whole")
    epochs = [(metrics["restart"], metrics["epoch"]) for metrics, _ in reports]
    assert epochs == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert reports[2][0]["lr"] == pytest.approx(reports[0][0]["lr"] / 2)
    for stop in (2, 3):  # killed right after it gave up, and an epoch later

        class Killed(Exception):
            pass

        seen = []

        def report(metrics, at, stop=stop, seen=seen):
            seen.append(metrics["epoch"])
            if len(seen) == stop:
                raise Killed

        folder = tmp_path / f"killed-{stop}"
        with pytest.raises(Killed):
            train(conf, 0, tiny, folder, report, {"config": "test"})
        rest = [(metrics["restart"], metrics["epoch"]) for metrics, _ in run(conf, tiny, folder)]
        assert rest == epochs[stop:]
        assert loss_curve(folder) == pytest.approx(loss_curve(tmp_path / "whole"))


def test_before_its_start_an_answer_objective_costs_nothing_and_is_not_logged(tiny, tmp_path):
    losses = {"ce": {"start": 0.5}, "slots": {"weight": 5.0}}
    run(config(tiny, losses=losses, training__log_every=100), tiny, tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 4, 8]
    # Logged steps always have the answer objectives; the total includes them only from their start.
    assert history[1]["loss"] == pytest.approx(5 * history[1]["slots"])
    assert history[2]["loss"] == pytest.approx(5 * history[2]["slots"] + history[2]["ce"])


def test_a_state_of_other_settings_is_refused(tiny, tmp_path):
    run(config(tiny), tiny, tmp_path)
    with pytest.raises(UserError, match="made with other settings"):
        run(config(tiny, training__lr=1e-4), tiny, tmp_path)


def test_a_training_on_a_file_is_neither_resumed_nor_evaluated_on_another(tiny, tmp_path):
    file, folder = tmp_path / "episodes.jsonl", tmp_path / "c" / "seed-0"
    write_episodes(file, 60)
    splits = {"train": "0:40", "search": "40:50", "select": "50:55", "confirm": "55:60"}
    conf = config(tiny, task={"file": str(file)}, splits=splits)
    checkpoint = run(conf, tiny, folder)[-1][1]
    assert read_record(checkpoint)["task_file"] == conf.task.file_digest
    assert trial_of(checkpoint) == conf.model_copy(update={"receiver_dtype": "auto"})
    assert run(conf, tiny, folder) == []
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[::-1]))
    job = EvaluationJob(conf, "confirm", ("normal",), checkpoint, tmp_path)
    for act in (lambda: trial_of(checkpoint), lambda: run_evaluation(job)):
        with pytest.raises(
            UserError, match=r"episodes.jsonl: not what .* was trained on .*; restore the file, or"
        ):
            act()
    with pytest.raises(UserError, match=r"episodes.jsonl: changed since .*training.safetensors was made; restore"):
        run(conf, tiny, folder)


def test_a_state_from_before_a_setting_existed_is_resumed(tiny, tmp_path):
    run(config(tiny), tiny, tmp_path)
    file = tmp_path / "training.safetensors"
    tensors, meta = load_tensors(file)
    trial, *rest = json.loads(meta["settings"])
    del trial["training"]["start"], trial["evaluation"]["score"]
    save_tensors(file, tensors, {**meta, "settings": json.dumps([trial, *rest])})
    assert run(config(tiny), tiny, tmp_path) == []


def test_a_broken_optimisation_is_named(tiny, tmp_path):
    with pytest.raises(TrainingFailed, match=r"at step \d+; lower lr"):
        run(config(tiny, training__lr=1e30), tiny, tmp_path)


def _worker(rank: int, path: str, tree: str, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train(
        TrialConfig.model_validate_json(tree),
        0,
        load_receiver(path),
        Path(folder),
        lambda m, at: None,
        {"config": "t"},
    )
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param({"ce": {}, "contrast": {}}, id="default"),
        pytest.param({name: {"weight": 0.5} for name in LOSSES}, id="all", marks=pytest.mark.slow),
    ],
)
def test_two_workers_on_the_same_global_batch_give_the_curve_of_one(tiny, tmp_path, losses):
    codec = {"encoder": "segments", "cut": "clauses", "k": 3, "width": 32, "layers": 1}
    if "commitment" in losses:
        codec |= {"bottleneck": "vq", "codebook": 8}
    conf = config(tiny, losses=losses, codec=codec)
    run(conf, tiny, tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tree = conf.model_copy(update={"workers": 2}).model_dump_json()
    mp.spawn(_worker, (tiny.name, tree, str(tmp_path / "two"), port), nprocs=2)
    one, two = loss_curve(tmp_path / "one"), loss_curve(tmp_path / "two")
    assert len(one) == len(two) == 8
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=2e-4, atol=1e-5)


def test_the_walk_over_training_seeds_meets_each_once_per_pass_and_no_other():
    source, seeds = EpisodeSource(validate(TrialConfig, {}, "t").task), parse_seeds("100:163")
    for training_seed in (0, 1, 7):
        drawn = training_batch(source, seeds, range(63), training_seed)
        assert sorted(episode.seed for episode in drawn) == list(seeds)
        again = training_batch(source, seeds, range(63, 126), training_seed)
        assert [e.seed for e in again] == [e.seed for e in drawn]


def test_evaluation_content_never_enters_training(tiny):
    conf = config(tiny, splits={"train": "10000:12000", "search": "3000:3200", "select": "4000:4100"})
    source = EpisodeSource(conf.task)
    trained = {e.content for e in training_batch(source, conf.splits.seeds("train"), range(2000), 0)}
    for split in ("search", "select", "confirm"):
        judged = source.get(conf.splits.seeds(split)[:200], split)
        assert not trained & {e.content for e in judged}


def test_a_receiver_that_was_trained_on_evaluation_seeds_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "card", {"train_seeds": "900:1005", "level": "easy"})
    with pytest.raises(UserError, match=r"splits\.search: overlaps the receiver's own training seeds"):
        EpisodeSource(config(tiny).task).check_receiver(tiny, config(tiny).splits)


def test_annealing_steps_down_when_ready_and_at_the_latest_on_the_line(tiny):
    conf = config(tiny, codec__k=3, training__anneal={"start": 10, "bound": 0.8, "hold": 5, "deadline": 0.5})
    eager, slow = SlotAnnealer(conf, 200, 1.0, 0.0), SlotAnnealer(conf, 200, 1.0, 0.0)
    eager_ks, slow_ks = [], []
    for step in range(200):
        eager.update(step, 0.0)
        slow.update(step, 1.0)
        eager_ks.append(eager.k)
        slow_ks.append(slow.k)
    for ks in (eager_ks, slow_ks):
        assert all(0 <= a - b <= 1 for a, b in itertools.pairwise(ks))
        assert ks[-1] == 3
    assert eager_ks.index(3) < slow_ks.index(3) <= 101
    assert slow_ks[50] in (6, 7)


def test_learning_rate_schedules():
    def rates(schedule):
        tree = {"training": {"schedule": schedule, "lr": 1.0, "warmup": 0}}
        conf = validate(TrialConfig, tree, "t")
        return [learning_rate(conf, step, 20, 10) for step in range(20)]

    assert rates("constant") == [1.0] * 20
    once, twice = rates("cosine"), rates("cosine_per_epoch")
    assert once[0] == 1.0
    assert math.isclose(once[10], 0.5)
    assert twice[0] == twice[10] == 1.0
    assert twice[9] < 0.05


@pytest.mark.parametrize("encoder", ["last_token", "segments"])
def test_checkpoints_load_without_the_training_code(tiny, tmp_path, encoder):
    reports = run(config(tiny, codec={"encoder": encoder, "k": 3, "width": 32}), tiny, tmp_path)
    for _, folder in reports:
        assert isinstance(load_codec(folder, tiny), Codec)


@pytest.mark.parametrize(
    ("gaps", "cosine", "expected"),
    [
        ([0.0] * 5, 0.92, True),  # prefixes differ, but not to the receiver
        ([0.0] * 5, 1.0, True),
        ([0.04, -0.04, 0.03, -0.02, 0.01], 0.92, True),  # noise that averages out
        ([1.0] + [0.0] * 5, 0.92, True),  # only the last count
        ([0.1] * 5, 0.99, False),  # alike, but the receiver tells them apart
        ([-0.1] * 5, 0.92, False),  # backwards is not ignored
        ([0.016], 0.5, False),
    ],
)
def test_a_codec_with_which_a_wrong_message_costs_nothing_has_collapsed(gaps, cosine, expected):
    history = [{"shuffle_gap": gap, "prefix_cosine": cosine} for gap in gaps]
    assert is_collapsed(history, text_value=0.3) is expected


def test_logged_gaps_are_nats_per_value_whatever_values_weigh(tiny, tmp_path):
    first = []
    for name, weight in (("a", 1.0), ("b", 100.0)):
        run(config(tiny, losses={"ce": {"value_weight": weight}}), tiny, tmp_path / name)
        entry = json.loads((tmp_path / name / "history.json").read_text())[0]
        first.append((entry["shuffle_gap"], entry["null_gap"]))
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_reports_keep_the_batchs_nll_apart_from_that_on_search(tiny, tmp_path):
    metrics, _ = run(config(tiny), tiny, tmp_path)[-1]
    assert metrics["nll"] == json.loads((tmp_path / "history.json").read_text())[-1]["nll"]
    assert metrics["search_nll"] != metrics["nll"]


def test_a_training_begins_with_the_weights_of_a_checkpoint_of_another_k(tiny, tmp_path):
    ((_, start), *_) = run(config(tiny), tiny, tmp_path / "start")
    over = {"training__start": str(start), "training__lr": 1e-12, "training__epochs": 1, "codec__k": 2}
    ((metrics, end),) = run(config(tiny, **over), tiny, tmp_path / "resumed")
    before, after = load_codec(start, tiny), load_codec(end, tiny)
    assert (before.config.k, after.config.k) == (3, 2)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, msg=name)
    assert metrics["step"] == 4


def test_a_published_start_names_its_task_file_without_folders(tiny, tmp_path):
    """The same content in another folder is the same task; another content is not."""
    file, start = tmp_path / "episodes.jsonl", tmp_path / "start"
    write_episodes(file, 60)
    splits = {"train": "0:32", "search": "32:40", "select": "40:48", "confirm": "48:56"}
    over = {"splits": splits, "task": {"level": "easy", "file": str(file)}, "training__epochs": 1}
    conf = config(tiny, **over)
    ((_, end),) = run(conf, tiny, start)
    write_json(end / "config.json", record_without_folders(read_record(end)))
    assert str(tmp_path) not in (end / "config.json").read_text()
    ((metrics, _),) = run(config(tiny, **over, training__start=str(end)), tiny, tmp_path / "resumed")
    assert metrics["step"] == conf.training.steps
    write_episodes(file, 61)
    with pytest.raises(UserError, match=r"trained on another task; use a checkpoint of the same$"):
        run(config(tiny, **over, training__start=str(end)), tiny, tmp_path / "other")


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"codec__width": 64}, r"more than its k differs: codec.width is \d+, not 64; give both the same$"),
        ({"task": {"level": "medium"}}, r"trained on another task; use a checkpoint of the same$"),
        ({"training__start": "nowhere"}, r"nowhere: no config.json; give a checkpoint folder"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(tiny, tmp_path, over, says):
    ((_, start), *_) = run(config(tiny, training__epochs=1), tiny, tmp_path / "start")
    with pytest.raises(UserError, match=says):
        run(config(tiny, **{"training__start": str(start), **over}), tiny, tmp_path / "resumed")


def test_an_encoder_for_one_k_does_not_start_from_another(tiny, tmp_path):
    codec = {"encoder": "last_token", "k": 3, "width": 32}
    ((_, start), *_) = run(config(tiny, training__epochs=1, codec=codec), tiny, tmp_path / "start")
    with pytest.raises(UserError, match=r"the encoder last_token is made for one k; use 3$"):
        run(config(tiny, training__start=str(start), codec={**codec, "k": 2}), tiny, tmp_path / "resumed")
