"""Several codecs trained on one receiver at once: each becomes what it becomes alone."""

import json
import math

import pytest
import torch
from tiny_trainings import config, loss_curve

from m2ray.codec.codec import load_codec
from m2ray.training.packed import train_packed
from m2ray.training.trainer import Trainer, TrainingFailed, train

# Of different k, place, encoder, objectives, batch and length.
MEMBERS = {
    "plain": {},
    "other-k": {"codec__k": 5},
    "after": {"codec__place": "after", "losses__help": {}},
    "before": {"codec__place": "before", "codec__encoder": "last_token", "losses__kl": {}},
    "slots": {"losses": {"slots": {}, "states": {}, "ce": {"weight": 1.0, "start": 0.5}}},
    "longer": {"training__epochs": 3, "training__batch_size": 4, "training__log_every": 3},
    "kv": {"codec__channel": "kv", "codec__scale_gate": 1.0, "losses__help": {}, "losses__states": {}},
    "one-layer": {"codec__channel": "kv", "codec__channel_layers": [1], "codec__place": "after", "codec__k": 2},
    "hidden": {"codec__channel": "hidden", "codec__channel_layers": [0], "codec__encoder": "resampler"},
    "codes": {"codec__bottleneck": "vq", "codec__codebook": 16, "codec__groups": 1, "losses__commitment": {}},
}


def begin(receiver, folder, name, reports=None, **changes):
    conf = config(receiver, **MEMBERS[name], **changes)
    reports = [] if reports is None else reports
    return Trainer(
        conf,
        0,
        receiver,
        folder / name,
        lambda metrics, at: reports.append((name, metrics["epoch"])),
        {"config": name},
    )


@pytest.mark.slow
def test_a_pack_trains_each_codec_as_it_would_be_trained_alone(tiny, tmp_path):
    reports, failures = [], []
    pack = [begin(tiny, tmp_path / "pack", name, reports) for name in MEMBERS]
    train_packed([iter([training]) for training in pack], lambda number, error: failures.append(error))
    assert not failures
    assert {name: max(e for n, e in reports if n == name) for name in MEMBERS} == {
        name: 3 if name == "longer" else 2 for name in MEMBERS
    }
    for name in MEMBERS:
        conf = config(tiny, **MEMBERS[name])
        last = train(conf, 0, tiny, tmp_path / "alone" / name, lambda metrics, at: None, {"config": name})
        packed = tmp_path / "pack" / name
        assert loss_curve(packed) == pytest.approx(loss_curve(tmp_path / "alone" / name), rel=1e-3)
        alone, together = (load_codec(folder, tiny).state_dict() for folder in (last, packed / last.name))
        for key, weight in alone.items():
            torch.testing.assert_close(together[key], weight, rtol=1e-2, atol=2e-4)


def test_the_trainings_of_a_queue_follow_each_other_and_precisions_take_turns(tiny, tmp_path):
    reports = []
    first = (begin(tiny, tmp_path / str(i), "plain", reports, training__epochs=1) for i in range(2))
    other = begin(tiny, tmp_path, "other-k", reports, training__precision="bfloat16")
    train_packed([first, iter([other])], lambda number, error: pytest.fail(str(error)))
    assert sorted(reports) == [("other-k", 1), ("other-k", 2), ("plain", 1), ("plain", 1)]
    assert loss_curve(tmp_path / "0" / "plain") == loss_curve(tmp_path / "1" / "plain")


def test_a_pack_continues_without_a_member_that_breaks_down(tiny, tmp_path, monkeypatch):
    pack = [begin(tiny, tmp_path, name) for name in ("plain", "other-k")]
    with torch.no_grad():
        next(pack[0].loss_module.codec.parameters()).fill_(math.nan)
    failures = []
    train_packed([iter([training]) for training in pack], lambda number, error: failures.append((number, error)))
    ((number, error),) = failures
    assert number == 0
    assert isinstance(error, TrainingFailed)
    assert pack[1].done
    assert all(math.isfinite(loss) for loss in loss_curve(tmp_path / "other-k"))


def test_a_pack_runs_the_rows_of_all_in_common_forward_passes(tiny, tmp_path, monkeypatch):
    made = []
    forward = type(tiny).forward

    def counted(self, requests, rows_at_once=None):
        made.append(len(requests))
        return forward(self, requests, rows_at_once)

    monkeypatch.setattr(type(tiny), "forward", counted)
    pack = [begin(tiny, tmp_path, name, training__epochs=1) for name in ("plain", "other-k")]
    made.clear()
    train_packed([iter([training]) for training in pack], lambda number, error: pytest.fail(str(error)))
    assert made.count(2) >= 4  # at least one per step; those of search_score come one by one


def test_a_pack_runs_the_messages_as_text_once(tiny, tmp_path, monkeypatch):
    keys = []
    forward = type(tiny).forward

    def counted(self, requests, rows_at_once=None):
        keys.extend(request.key for request in requests if request.key)
        return forward(self, requests, rows_at_once)

    monkeypatch.setattr(type(tiny), "forward", counted)
    with_text = {"losses__slots": {}, "losses__states": {}, "training__epochs": 1}
    pack = [begin(tiny, tmp_path / str(lr), "plain", **with_text, training__lr=lr) for lr in (1e-3, 3e-2)]
    train_packed([iter([training]) for training in pack], lambda number, error: pytest.fail(str(error)))
    assert {key[0] for key in keys} == {"words", "text"}
    assert len(keys) == len(set(keys)) == 2 * pack[0].step
    alone = begin(tiny, tmp_path / "alone", "plain", **with_text, training__lr=1e-3)
    alone.run()
    slow, fast = (loss_curve(tmp_path / str(lr) / "plain") for lr in (1e-3, 3e-2))
    assert slow == pytest.approx(loss_curve(alone.folder), rel=1e-4)
    assert slow != pytest.approx(fast, rel=1e-4)


def test_a_training_that_is_killed_within_an_epoch_resumes_from_its_last_minute(tiny, tmp_path, monkeypatch):
    """With a state saved after each step, a run that dies at any of them ends as the undisturbed one does."""
    conf = config(tiny, losses__slots={})
    train(conf, 0, tiny, tmp_path / "whole", lambda metrics, at: None, {"config": "a"})
    monkeypatch.setattr("m2ray.training.trainer.SAVE_S", -1.0)
    for steps in (3, 4, 6):
        training = Trainer(conf, 0, tiny, tmp_path / "parts", lambda metrics, at: None, {"config": "a"})
        while training.step < steps:
            loss, parts = training.loss_module(*training.next_batch())
            loss.backward()
            training.apply_step(loss, parts)
        training.close()
        del training
    resumed = Trainer(conf, 0, tiny, tmp_path / "parts", lambda metrics, at: None, {"config": "a"})
    assert resumed.step == 6
    last = resumed.run()
    assert loss_curve(tmp_path / "parts") == pytest.approx(loss_curve(tmp_path / "whole"), rel=1e-5)
    steps = [entry["step"] for entry in json.loads((tmp_path / "parts" / "history.json").read_text())]
    assert steps == list(range(1, 9))
    whole, parts = (load_codec(tmp_path / name / last.name, tiny).state_dict() for name in ("whole", "parts"))
    for key, weight in whole.items():
        torch.testing.assert_close(parts[key], weight)
