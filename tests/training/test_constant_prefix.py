"""The content-free prefix: trained once for its settings, whoever asks first, with the tested codec's budget."""

import json
import multiprocessing
import os

import pytest
from tiny_trainings import config

from m2ray.config.trial import CodecConfig
from m2ray.receiver.loading import load_receiver
from m2ray.training.constant_prefix import constant_config, trained_constant


def folders(root):
    return [folder for folder in root.iterdir() if folder.is_dir()]


def test_it_is_trained_on_as_many_samples_as_the_codec_in_batches_of_the_same_size(tiny):
    trial = config(tiny, training={"epochs": 3, "epoch_samples": 100, "batch_size": 8})
    training = constant_config(trial, trial.codec).training
    assert (training.steps, training.batch_size) == (trial.training.steps, 8) == (36, 8)
    fixed = config(tiny, evaluation={"constant_samples": 64})
    assert constant_config(fixed, fixed.codec).training.steps == 8


def test_trials_that_differ_in_nothing_that_it_depends_on_share_it(tiny, tmp_path):
    trial = config(tiny)
    first = trained_constant(tiny, trial, trial.codec, tmp_path)
    others = [
        config(tiny, codec={"encoder": "resampler", "k": 3, "width": 64}),
        config(tiny, losses={"ce": {"weight": 2.0}}),
        config(tiny, training={**trial.training.model_dump(), "lr": 0.5, "schedule": "constant"}),
        config(tiny, training={**trial.training.model_dump(), "epochs": 1, "epoch_samples": 64}),
        config(tiny, evaluation={"temperature": 0.5, "conditions": ["P0"]}),
    ]
    for other in others:
        assert trained_constant(tiny, other, other.codec, tmp_path).digest == first.digest
    assert len(folders(tmp_path)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": {"k": 4}},
        {"codec": {"k": 3, "place": "before"}},
        {"training__epochs": 1},
        {"training__batch_size": 4},
        {"evaluation": {"constant_samples": 72}},
        {"splits": {"train": "100:301", "search": "1000:1010"}},
        {"task": {"level": "easy", "held_out": {"facts": 0.1}}},
    ],
)
def test_it_never_stands_in_for_other_settings(tiny, tmp_path, changes):
    trial, other = config(tiny), config(tiny, **changes)
    for each in (trial, other):
        trained_constant(tiny, each, each.codec, tmp_path)
    assert len(folders(tmp_path)) == 2


def _train(name, root, queue):
    receiver = load_receiver(name)
    trial = config(receiver, training={"epochs": 1, "epoch_samples": 512, "batch_size": 8})
    queue.put((os.getpid(), trained_constant(receiver, trial, CodecConfig(k=3), root).digest))


@pytest.mark.slow
def test_processes_that_need_it_at_the_same_time_train_it_once(tiny_folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_train, args=(str(tiny_folder), tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert len({digest for _, digest in found}) == 1
    (folder,) = folders(tmp_path)
    history = json.loads((folder / "history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 21, 41, 61, 64]
    assert {file.name for file in folder.iterdir()} == {"lock", "history.json", "epoch-01", "training.safetensors"}
