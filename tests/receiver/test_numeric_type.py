"""The receiver's numeric type: measured once on this machine, kept, overridden by name, one for a whole sweep."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from m2ray.cli import evaluate
from m2ray.codec.checkpoints import trial_of
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import write_sweep_record
from m2ray.config.trial import TrialConfig
from m2ray.engine.proposer import OptunaProposer
from m2ray.engine.record import decided_type, describe_sweep
from m2ray.evaluation.rows import read_rows
from m2ray.receiver.loading import load_trial_receiver, load_unchecked
from m2ray.receiver.model import numeric_type
from m2ray.util.journal import Journal

PUBLISHED = Path(__file__).parents[2] / "results" / "recipe-mini" / "best-k8"
FLOAT, HALF = torch.float32, torch.bfloat16


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(numeric_type, "SMALL", 0)
    monkeypatch.setattr(numeric_type, "SECONDS", 0.0)


@pytest.mark.parametrize(
    ("seconds", "own", "fits", "chosen"),
    [
        ((1.0, 3.0), HALF, True, FLOAT),
        ((3.0, 1.0), FLOAT, True, HALF),
        ((1.0, 1.1), HALF, True, HALF),  # not faster by a fifth
        ((1.1, 1.0), FLOAT, True, FLOAT),
        ((1.0, 3.0), HALF, False, HALF),  # no memory for float32
        ((1.0, math.inf), HALF, True, FLOAT),  # does not run in bfloat16
        ((1.0, 1.1), torch.float16, True, FLOAT),
        ((3.0, 1.0), torch.float16, True, HALF),
    ],
)
def test_the_faster_type_is_taken_and_the_files_own_where_little_is_won(seconds, own, fits, chosen):
    assert numeric_type.faster(dict(zip((FLOAT, HALF), seconds, strict=True)), own, fits) == chosen


def test_a_layer_of_the_receiver_is_timed_in_both_types(tiny):
    seconds = numeric_type.layer_seconds(tiny.model, tiny.causal.layers[0])
    assert seconds.keys() == {FLOAT, HALF}
    assert all(0 < each < math.inf for each in seconds.values())
    assert tiny.dtype == FLOAT


def test_the_type_is_measured_once_and_kept_for_receivers_of_a_shape(tiny_folder, cache, monkeypatch):
    measured = []

    def measure(model, layer):
        measured.append(model)
        return {FLOAT: 3.0, HALF: 1.0}

    monkeypatch.setattr(numeric_type, "layer_seconds", measure)
    first, second = (load_unchecked(str(tiny_folder), "cpu") for _ in range(2))
    assert first.dtype == second.dtype == HALF
    assert len(measured) == 1
    assert first.digest == load_unchecked(str(tiny_folder), "cpu", "float32").digest


def test_a_named_type_and_that_of_the_file_are_not_measured(tiny_folder, cache, monkeypatch):
    monkeypatch.setattr(numeric_type, "layer_seconds", lambda *_: pytest.fail("measured"))
    assert load_unchecked(str(tiny_folder), "cpu", "bfloat16").dtype == HALF
    assert load_unchecked(str(tiny_folder), "cpu", "auto").dtype == FLOAT


def test_small_receivers_keep_the_type_of_their_file(tiny_folder, monkeypatch):
    monkeypatch.setattr(numeric_type, "layer_seconds", lambda *_: pytest.fail("measured"))
    assert load_unchecked(str(tiny_folder), "cpu").dtype == FLOAT


def test_a_type_that_is_not_set_leaves_no_trace_in_a_configuration():
    assert "receiver_dtype" not in TrialConfig().model_dump()
    assert TrialConfig(receiver_dtype="bfloat16").model_dump()["receiver_dtype"] == "bfloat16"


def test_older_checkpoints_are_read_in_the_type_of_their_receivers_file():
    assert trial_of(PUBLISHED).receiver_dtype == "auto"


@pytest.fixture
def answers(cache, tmp_path):
    def run(*words):
        file = tmp_path / "rows.parquet"
        at = [str(PUBLISHED), "--episodes", "9400000:9400016", "--conditions", "normal,P0", "--out", str(file)]
        assert evaluate.main([*at, *words]) == 0
        return read_rows(file)

    return run


def test_a_codec_is_evaluated_in_the_type_it_was_trained_in_unless_another_is_named(answers, monkeypatch, capsys):
    monkeypatch.setattr(numeric_type, "layer_seconds", lambda *_: {FLOAT: 3.0, HALF: 1.0})
    own = answers()
    assert (
        "mini runs in float32, as when the codec was trained; on this CPU bfloat16 is faster"
        in capsys.readouterr().err
    )
    np.testing.assert_array_equal(own.nll, answers("--receiver-dtype", "float32").nll)
    capsys.readouterr()
    other = answers("--receiver-dtype", "bfloat16")
    printed = capsys.readouterr()
    assert "the receiver ran in bfloat16" in printed.out
    assert "faster" not in printed.err
    assert 0 < np.abs(own.nll - other.nll).max() < 0.1


def test_nothing_is_said_where_the_own_type_is_the_fastest(answers, monkeypatch, capsys):
    monkeypatch.setattr(numeric_type, "layer_seconds", lambda *_: {FLOAT: 1.0, HALF: 3.0})
    answers()
    assert "faster" not in capsys.readouterr().err


SPACE = """
name: typed
trial: {splits: {train: "100000:100500", search: "1000:1020", select: "4000:4020", confirm: "5000:5050"}}
points: {one: {set: {codec.k: 4}}}
search: {trials: 0}
judge: {select: 0, confirm: 0}
"""


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "typed.yaml"
    file.write_text(SPACE)
    return load_plan(file)


def test_a_sweep_tells_its_trials_the_type_that_it_recorded(plan, tmp_path):
    record = describe_sweep(plan, load_plan_gate(plan), [])
    assert record["receiver_run"]["dtype"] == "float32"
    assert "receiver_dtype" not in record["points"]["one"]  # a resumed sweep compares them
    plan.receiver_dtype = "bfloat16"
    proposer = OptunaProposer(plan, tmp_path / "checkpoints", Journal(tmp_path / "trials.jsonl"))
    told = TrialConfig.model_validate_json(proposer.propose()["trial"])
    assert told.receiver_dtype == "bfloat16"
    assert load_trial_receiver(told).dtype == HALF
    assert proposer.configs["one"].receiver_dtype is None


def test_a_resumed_sweep_keeps_the_recorded_type_on_another_machine(plan, tmp_path):
    record = describe_sweep(plan, load_plan_gate(plan), [])
    record["receiver_run"]["dtype"] = "bfloat16"  # what another machine found faster
    write_sweep_record(tmp_path, record)
    assert decided_type(tmp_path, plan) == "bfloat16"
    del record["receiver_run"]
    write_sweep_record(tmp_path, record)
    assert decided_type(tmp_path, plan) == "auto"
