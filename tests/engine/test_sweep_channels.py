"""A real sweep over the channels kv and hidden, and the commands that take its checkpoints."""

import json

import pandas as pd
import pytest
from sweeps import sweep, write_space

from m2ray.cli import diagnose, evaluate
from m2ray.evaluation.rows import read_rows

SECTIONS = {
    "name": "channels",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1010", "select": "4000:4010", "confirm": "2000:2020"},
        "codec": {"k": 3, "width": 32, "layers": 1, "scale_gate": 1.0},
        "training": {"epochs": 1, "epoch_samples": 16, "batch_size": 16, "warmup": 0},
        "evaluation": {
            "confirm_conditions": ["identity", "constant", "tokens", "init", "bits-8"],
            "text_bytes": [16],
            "scale_gates": [],
            "constant_samples": 64,
        },
    },
    "points": {
        "kv": {"set": {"codec.channel": "kv", "codec.channel_layers": [1, 3]}},
        "hidden": {"set": {"codec.channel": "hidden", "codec.channel_layers": [1], "codec.encoder": "resampler"}},
    },
    "axes": {},
    "search": {"trials": 0},
    "judge": {"select": 0, "confirm": 0},
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    where = tmp_path_factory.mktemp("channels")
    done = sweep(write_space(where, **SECTIONS), "--results", where)
    assert done.returncode == 0, done.stderr
    return where / "channels"


def test_the_board_names_what_each_channel_sends(swept):
    board = pd.read_csv(swept / "leaderboard.csv").set_index("config")
    assert set(board.index) == {"kv", "hidden"}
    assert not board.verdict.isin(["failed", "incomplete"]).any()
    assert board.bytes.to_dict() == {"kv": 3 * 2 * 2 * 64 * 4, "hidden": 3 * 128 * 4}
    assert board["codec.channel"].to_dict() == {"kv": "kv", "hidden": "hidden"}
    assert (board.text_bytes > 16).all()
    assert board.prefill_saved["kv"] > board.prefill_saved["hidden"] > 0
    assert " bytes " in (swept / "leaderboard.md").read_text()
    assert (swept / "figures" / "pareto.png").is_file()


def test_each_channel_has_an_identity_of_its_own(swept):
    rows = read_rows(swept / "rows.parquet")
    confirm = rows[rows.split == "confirm"]
    identity = confirm[confirm.condition == "identity"]
    assert set(identity.place) == {"message kv 1,3", "message hidden 1"}
    text = confirm[confirm.condition == "P1"].set_index("episode").answer
    for _, own in identity.groupby("place"):
        assert own.set_index("episode").answer.equals(text)


def test_a_checkpoint_of_a_channel_is_evaluated_and_diagnosed(swept, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "EVERY_S", 0.0)
    checkpoint = str(swept / "checkpoints" / "kv" / "seed-0" / "epoch-01")
    out = tmp_path / "rows.parquet"
    names = "normal,null,shuffle,P0,P1,identity,mean,rotate,bits-4"
    arguments = ["--seeds", "3000000:3000012", "--conditions", names, "--out", str(out)]
    assert evaluate.main([checkpoint, *arguments]) == 0
    assert set(read_rows(out).condition) == set(names.split(","))
    progress = [line for line in capsys.readouterr().err.splitlines() if " conditions after " in line]
    assert [line.split()[0] for line in progress] == list("12345678")
    found = tmp_path / "diagnosis"
    arguments = ["--seeds", "3000000:3000120", "--ceilings", "0", "--out", str(found)]
    assert diagnose.main([checkpoint, *arguments]) == 0
    assert json.loads((found / "diagnosis.json").read_text())["about"]["place"] == "message kv 1,3"
