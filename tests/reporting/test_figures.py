"""Figures of the judged runs: they draw what the rows contain."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_reports import AXES, BAD, results_folder, run_rows, searched
from matplotlib.colors import to_hex

from m2ray.config.gate_file import load_gate
from m2ray.judging.statistics import wilson
from m2ray.reporting.build import draw_all
from m2ray.reporting.figures.judged_runs import (
    MAX_CONFIGS,
    draw_by_k,
    draw_conditions,
    draw_outcomes,
    draw_scale_gates,
    drawn_conditions,
    line_styles,
    runs_to_draw,
)
from m2ray.reporting.figures.search import draw_budget, draw_importance, draw_parallel, draw_scores
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard
from m2ray.util.plotting import COLORS, png_and_svg, save, use_file_backend

use_file_backend()


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def runs():
    """Two seeds of a codec that passes, and one that fails at another k, in the leaderboard's order."""
    parts = [run_rows("good", seed=0, k=8), run_rows("good", seed=1, k=8), run_rows("bad", BAD)]
    rows = pd.concat(parts, ignore_index=True).drop_duplicates()
    judged = judge_runs(rows, load_gate("reference"))
    return runs_to_draw(judged, make_leaderboard(rows, judged, load_gate("reference")))


@pytest.fixture(scope="module")
def styles(runs):
    return line_styles([run.config for run in runs])


def success_percent(rows, condition):
    return 100 * rows[rows.condition == condition].success.mean()


def test_every_figure_has_a_title_with_n_and_axis_labels_with_units(runs, styles):
    leaderboard = pd.DataFrame({"k": [4, 8], "seed": 0, "score": [0.1, 0.2], "verdict": ["PASS", "FAIL"]})
    drawn = [
        draw_conditions(runs),
        draw_by_k(runs, styles),
        draw_scale_gates(runs, styles),
        draw_outcomes(runs),
        draw_scores(leaderboard),
        draw_budget(searched([0.1, 0.2])),
        draw_importance({"codec.k": 1.0}, 7),
        draw_parallel(searched([0.1, 0.2]), AXES),
    ]
    for figure in drawn:
        title = figure.get_suptitle() or figure.axes[0].get_title()
        words = " ".join([title, figure.get_supxlabel(), *(axes.get_xlabel() for axes in figure.axes)])
        assert title
        assert re.search(r"n = \d", words), words
    for figure in drawn[:7]:
        labels = [figure.get_supxlabel(), *(axes.get_xlabel() for axes in figure.axes)]
        labels += [axes.get_ylabel() for axes in figure.axes]
        assert re.search(r"\(%\)|\(nats|k, prefix|episodes of|scale_gate|importance", " ".join(labels)), labels


def test_the_forest_has_a_panel_a_configuration_and_a_dot_a_seed_where_the_rows_say(runs):
    figure = draw_conditions(runs)
    good, bad = [axes for axes in figure.axes if axes.get_visible()]
    assert good.get_title() == "good\nk = 8, PASS, 2 of 2 seeds pass"
    assert bad.get_title() == "bad\nk = 4, FAIL"
    names = [label.get_text() for label in good.get_yticklabels()]
    assert names == ["normal", "null", "random", "shuffle", "P0", "P1", "identity"]
    dots = {}
    for container in good.containers:
        x, y = container.lines[0].get_data()
        dots[names[round(float(np.mean(y)))]] = x
    assert len(dots["normal"]) == 2  # both seeds solve as many
    for name in names:
        assert dots[name][0] == pytest.approx(success_percent(runs[0].rows, name))
    low, high = wilson(150, 200)
    segment, other = good.containers[0].lines[2][0].get_segments()
    for bounds in (segment, other):
        np.testing.assert_allclose(bounds[:, 0], [100 * low, 100 * high])


def test_conditions_are_those_of_the_rows_texts_by_length():
    rows = run_rows("a", splits=("confirm",))
    texts = [rows[rows.condition == "P1"].assign(condition=f"text-{size}") for size in (256, 16, 64)]
    runs = judge_runs(pd.concat([rows, *texts], ignore_index=True), load_gate("reference"))
    assert drawn_conditions(runs)[-4:] == ["identity", "text-16", "text-64", "text-256"]


def test_k_is_drawn_beside_the_bands_of_no_message_text_and_priming(runs, styles):
    rows = run_rows("a", splits=("confirm",))
    primed = rows[rows.condition == "null"].assign(condition="constant")
    judged = judge_runs(pd.concat([rows, primed], ignore_index=True), load_gate("reference"))
    axes = draw_by_k(judged, line_styles(["a"])).axes[0]
    bands = {patch.get_label(): patch for patch in axes.patches}
    low, high = wilson(60, 200)
    assert bands["P0, no message"].get_y() == pytest.approx(100 * low)
    assert bands["P0, no message"].get_height() == pytest.approx(100 * (high - low))
    assert bands["P1, full text"].get_y() == pytest.approx(100 * wilson(180, 200).low)
    names = axes.get_legend().get_texts()
    assert [t.get_text() for t in names] == ["P1, full text", "P0, no message", "constant, priming alone", "a"]
    several = draw_by_k(runs, styles).axes[0]
    assert [tick.get_text() for tick in several.get_xticklabels()] == ["4", "8"]


def test_scales_have_a_line_a_training_and_a_color_a_configuration(runs, styles):
    axes = draw_scale_gates(runs, styles).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 3, 3]
    assert [to_hex(line.get_color()).upper() for line in axes.lines] == [
        COLORS["normal"],
        COLORS["normal"],
        COLORS["shuffle"],
    ]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 30], [0.5, 60], [1, 75]])


def test_the_grid_shows_the_first_and_the_first_that_failed_and_hides_no_episode(runs):
    figure = draw_outcomes(runs)
    assert [axes.get_title() for axes in figure.axes] == ["good, seed 0, k = 8", "bad, seed 0, k = 4"]
    for axes, run in zip(figure.axes, (runs[0], runs[2]), strict=True):
        pixels = axes.images[0].get_array()
        names = [label.get_text().partition(",")[0] for label in axes.get_yticklabels()]
        for row, name in enumerate(names):
            assert 100 * pixels[row].mean() == pytest.approx(success_percent(run.rows, name))


def test_no_two_of_the_first_dozen_configurations_look_alike():
    styles = line_styles([f"c{i}" for i in range(20)])
    assert len(styles) == len(set(styles.values())) == MAX_CONFIGS


# --- all of them ---------------------------------------------------------------------------------------------


def test_the_same_figure_is_the_same_file(tmp_path, runs):
    written = []
    for name in ("one", "two"):
        save(draw_outcomes(runs), *png_and_svg(tmp_path / f"{name}-k1.5"))
        written.append([(tmp_path / f"{name}-k1.5.{kind}").read_bytes() for kind in ("png", "svg")])
    assert written[0] == written[1]
    assert b"<dc:date>" not in written[0][1]


def test_a_folder_of_rows_alone_gives_the_figures_that_rows_allow(tmp_path):
    folder = results_folder(tmp_path, run_rows("a"), run_rows("b", BAD))
    rows = pd.read_parquet(folder / "rows.parquet")
    judged = judge_runs(rows, load_gate("reference"))
    figures, left_out = draw_all(folder, judged, make_leaderboard(rows, judged, load_gate("reference")), {})
    names = ["conditions", "slots", "scale_gate", "outcomes", "scores"]
    assert [figure.path for figure in figures] == [f"figures/{name}.svg" for name in names]
    assert len(left_out) == 2
    assert all((folder / figure.path).with_suffix(".png").is_file() for figure in figures)
