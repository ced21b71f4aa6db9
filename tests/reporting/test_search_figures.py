"""Figures of search and training: they draw what the journal and the training runs logged."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_reports import AXES, RAW_AXES, searched

from m2ray.reporting.figures.judged_runs import line_styles
from m2ray.reporting.figures.search import (
    UNSET,
    EndedTrial,
    draw_budget,
    draw_parallel,
    draw_scores,
    draw_search,
    importances,
    position_on_axis,
    read_trials,
)
from m2ray.reporting.figures.training import draw_training, read_histories
from m2ray.util.errors import UserError
from m2ray.util.plotting import use_file_backend

use_file_backend()


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def journal(root, *entries):
    (root / "trials.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_scores_with_the_same_k_are_side_by_side():
    leaderboard = pd.DataFrame(
        {
            "k": [4, 4, 4, 4, 8],
            "seed": [None, 0, 1, 0, 0],  # the first line is that of a configuration over its seeds
            "score": [0.2, 0.2, 0.2, 0.1999, 0.2],
            "verdict": ["PASS", "PASS", "PASS", "FAIL", "not confirmed"],
        }
    )
    figure = draw_scores(leaderboard)
    places = np.concatenate([points.get_offsets() for points in figure.axes[0].collections])
    assert len(places) == 4
    assert len(set(np.round(places[:, 0], 3))) == 4
    assert sorted(np.round(places[:, 0])) == [0, 0, 0, 1]


# --- the search ----------------------------------------------------------------------------------------------


def test_the_journal_gives_trials_in_the_order_they_ended_through_kills_and_failures(tmp_path):
    journal(
        tmp_path,
        {"event": "began", "config": "point", "chosen": {}},
        {"event": "began", "config": "a", "chosen": {"codec.k": 4}},
        {"event": "began", "config": "b", "chosen": {"codec.k": 8}},
        {"event": "ended", "config": "b", "score": None, "cause": "disk"},
        {"event": "ended", "config": "a", "score": 0.25, "cause": ""},
        {"event": "began", "config": "b", "chosen": {"codec.k": 8}},
        {"event": "ended", "config": "b", "score": 0.5, "cause": ""},
        {"event": "ended", "config": "point", "score": math.nan, "cause": ""},
    )
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"event": "ended", "conf')
    assert read_trials(tmp_path) == [
        EndedTrial("a", {"codec.k": 4}, 0.25),
        EndedTrial("b", {"codec.k": 8}, 0.5),
        EndedTrial("point", {}, None),
    ]
    assert read_trials(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"event": "ended", "config": "a"},
        {"event": "ended", "config": "a", "score": "high"},
        {"event": "began", "config": "a", "chosen": 3},
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, entry):
    journal(tmp_path, {"event": "began", "config": "a", "chosen": {}}, entry)
    with pytest.raises(UserError, match=r"trials\.jsonl: entry 2: not what a sweep writes there"):
        read_trials(tmp_path)


def test_the_best_so_far_never_falls_and_what_failed_is_marked():
    axes = draw_budget(searched([0.1, None, 0.05, 0.3, 0.2])).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    np.testing.assert_allclose(best.get_ydata(), [0.1, 0.1, 0.1, 0.3, 0.3])
    failed = next(line for line in axes.lines if line.get_label() == "failed")
    assert list(failed.get_xdata()) == [2]


def test_a_journal_with_times_gives_the_budget_in_minutes(tmp_path):
    entries = [
        {"event": "began", "config": "a", "chosen": {"codec.k": 4}, "at": 1000.0},
        {"event": "began", "config": "b", "chosen": {"codec.k": 8}, "at": 1002.0},
        {"event": "ended", "config": "b", "score": 0.5, "cause": "", "at": 1060.0},
        {"event": "ended", "config": "a", "score": 0.25, "cause": "", "at": 1120.0},
    ]
    journal(tmp_path, *entries)
    assert [(trial.config, trial.minutes) for trial in read_trials(tmp_path)] == [("b", 1.0), ("a", 2.0)]
    axes = draw_budget(read_trials(tmp_path)).axes[0]
    assert axes.get_xlabel() == "minutes since the search began"
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]


def test_an_outlier_does_not_make_the_others_look_alike():
    axes = draw_budget(searched([0.1, 0.12, 0.08, 0.11, -9.0])).axes[0]
    assert axes.get_ylim()[0] > -1
    assert [text.get_text() for text in axes.texts] == ["-9.00"]


def test_the_key_that_decides_the_score_is_the_most_important(tmp_path):
    rng = np.random.default_rng(0)
    chosen = {
        i: {
            "codec.encoder": str(rng.choice(["segments", "memory"])),
            "codec.k": int(rng.choice([4, 8, 16])),
            "training.lr": float(10 ** rng.uniform(-4, -2)),
        }
        for i in range(60)
    }
    for i in chosen:
        if chosen[i]["codec.encoder"] == "memory":
            chosen[i]["codec.lora_rank"] = int(rng.integers(2, 11))
    trials = searched([-abs(math.log10(chosen[i]["training.lr"]) + 3) for i in chosen], chosen)
    weights = importances(tmp_path, trials, AXES)
    assert next(iter(weights)) == "training.lr"
    assert weights["training.lr"] > 0.8
    assert sum(weights.values()) == pytest.approx(1)
    assert set(weights) == set(AXES)  # those that only some configurations have, too


def test_a_value_outside_the_space_is_refused(tmp_path):
    trials = searched([0.1, 0.2], {0: {"codec.k": 4}, 1: {"codec.k": 5}})
    with pytest.raises(UserError, match=r"trials\.jsonl: c1: not in sweep\.yaml's space"):
        importances(tmp_path, trials, AXES)


@pytest.mark.parametrize(
    ("key", "value", "height"),
    [
        ("training.lr", 1e-4, 0.0),
        ("training.lr", 1e-3, 0.5),
        ("codec.lora_rank", 10, 1.0),
        ("codec.lora_rank", None, UNSET),
        ("codec.k", 8, 0.5),
        ("codec.encoder", "memory", 1.0),
        ("codec.encoder", "other", UNSET),
    ],
)
def test_the_height_of_a_value_follows_its_axis(key, value, height):
    assert position_on_axis(AXES[key], value) == pytest.approx(height)


def test_lines_lead_to_ranks_and_keys_that_do_not_apply_are_below_the_axis():
    chosen = {
        0: {"codec.encoder": "segments", "codec.k": 4},
        1: {"codec.encoder": "memory", "codec.k": 8, "codec.lora_rank": 6},
        2: {"codec.encoder": "memory", "codec.k": 16, "codec.lora_rank": 2},
    }
    axes = draw_parallel(searched([0.2, -7.0, 0.1], chosen), AXES).axes[0]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 4]
    np.testing.assert_allclose(lines, [[1, 0.5, 0.5, 0], [1, 1, 0, 0.5], [0, 0, UNSET, 1]])
    assert {"not set", "-7.000", "+0.100", "+0.200"} <= {text.get_text() for text in axes.texts}


def test_what_the_journal_cannot_show_is_listed(tmp_path):
    assert draw_search(tmp_path, {}) == (
        [],
        ["Importance and parallel coordinates: nothing was searched."],
    )
    entries = [{"event": "began", "config": f"c{i}", "chosen": {"codec.k": 4}} for i in range(3)]
    entries += [{"event": "ended", "config": f"c{i}", "score": i / 10, "cause": ""} for i in range(3)]
    journal(tmp_path, *entries)
    found, left_out = draw_search(tmp_path, {"space": {"axes": RAW_AXES}})
    assert [name for name, _, _ in found] == ["budget", "parallel"]
    assert left_out[0].startswith("Parameter importance: needs 5 configurations")


# --- the trainings -------------------------------------------------------------------------------------------


def write_history(root, config, seed, **columns):
    folder = root / "checkpoints" / config / f"seed-{seed}"
    folder.mkdir(parents=True)
    steps = [{"step": i, **{k: v[i] for k, v in columns.items()}} for i in range(len(columns["loss"]))]
    (folder / "history.json").write_text(json.dumps(steps))


def test_curves_are_the_metrics_that_each_run_logged(tmp_path):
    styles = line_styles(["judged"])
    write_history(tmp_path, "judged", 0, loss=[3.0, 2.0, 1.0], shuffle_gap=[0.0, 0.1, 0.5], k=[8, 8, 4])
    write_history(tmp_path, "judged", 1, loss=[3.0, 2.5, 2.0], shuffle_gap=[0.0, 0.1, 0.2], k=[8, 8, 4])
    write_history(tmp_path, "other", 0, loss=[3.0, 3.0, 3.0], nll=[1.0, 1.0, 1.0], k=[8, 8, 8])
    ((name, _, figure),), left_out = draw_training(tmp_path, styles)
    assert (name, left_out) == ("training", [])
    panels = {axes.get_title(): axes for axes in figure.axes}
    losses = panels["loss, all terms (log scale)"]
    assert [list(line.get_ydata()) for line in losses.lines] == [[3, 3, 3], [3, 2, 1], [3, 2.5, 2]]
    assert losses.get_yscale() == "log"
    gaps = panels["gap to a wrong message (nats)"]
    assert [list(line.get_ydata()) for line in gaps.lines[:2]] == [[0, 0.1, 0.5], [0, 0.1, 0.2]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["judged", "not judged"]
    assert "n = 3 trainings" in figure.get_suptitle()


def test_without_checkpoints_curves_are_left_out_or_kept(tmp_path):
    found, left_out = draw_training(tmp_path, {})
    assert (found, len(left_out)) == ([], 1)
    assert left_out[0].startswith("Training curves: the checkpoints")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "training.svg").write_text("<svg/>")
    ((name, caption, figure),), left_out = draw_training(tmp_path, {})
    assert (name, figure, left_out) == ("training", None, [])
    assert caption.endswith("drawn while the checkpoints were in this folder")


@pytest.mark.parametrize(
    "text", ["{", "[1, 2]", '[{"loss": 1}]', '[{"step": "x"}]', '[{"step": 1, "nll": "low"}]']
)
def test_a_damaged_history_is_refused(tmp_path, text):
    folder = tmp_path / "checkpoints" / "a" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(text)
    with pytest.raises(UserError, match=r"history\.json: not a training's history"):
        read_histories(tmp_path)
