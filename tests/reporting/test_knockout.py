"""The knock-out map: it counts what the rows hold, and names a slot only where chance does not explain it."""

import html

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_reports import results_folder, run_rows
from made_rows import rows_with

from m2ray.config.gate_file import load_gate
from m2ray.reporting.build import build
from m2ray.reporting.document import section_markdown
from m2ray.reporting.figures.judged_runs import drawn_conditions
from m2ray.reporting.figures.knockout import (
    draw_knockout,
    knockout_map,
    knockout_sections,
    knockout_sentence,
    run_maps,
)
from m2ray.reporting.leaderboard import judge_runs
from m2ray.util.errors import UserError
from m2ray.util.plotting import use_file_backend

use_file_backend()
REFERENCE = load_gate("reference")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def map_of(**facts):
    """Return the map of rows with one text a condition and episode; `drop_1` stands for condition drop-1."""
    rows = [
        {"condition": name.replace("_", "-"), "episode": i, "facts": text}
        for name, texts in facts.items()
        for i, text in enumerate(texts)
    ]
    return knockout_map(rows_with(*rows))


def dropped_rows(rows, lost):
    """Return rows with conditions drop-1 and drop-2; `lost` gives the facts of an episode under each of them."""
    normal = rows[rows.condition == "normal"].assign(facts="11-1")
    parts = [
        normal.assign(condition=f"drop-{slot}", facts=[lost(slot, i) for i in range(len(normal))])
        for slot in (1, 2)
    ]
    return pd.concat([rows[rows.condition != "normal"], normal, *parts], ignore_index=True)


def lost_in_half(slot, i):
    """Fact 1 is lost in every other episode without slot 1, fact 4 without slot 2; fact 3 cannot be read."""
    if i % 2:
        return "11-1"
    return "01-1" if slot == 1 else "11-0"


# --- the numbers ---------------------------------------------------------------------------------------------


def test_a_cell_is_the_loss_of_agreement_over_episodes_in_which_the_fact_can_be_read():
    found = map_of(
        normal=["11-", "11-", "1-0", "0-1", "1--"],
        drop_1=["01-", "11-", "0-0", "1-1", "0--"],
        drop_3=["11-", "10-", "1-0", "0-0", "1--"],
    )
    assert found.slots == [1, 3]
    np.testing.assert_allclose(found.points_JF, [[100 * (3 - 1) / 5, 0, 0], [0, 50, 50]])
    assert found.n_F.tolist() == [5, 2, 2]
    assert (found.facts, found.episodes) == (3, 5)


def test_it_equals_a_plain_count_on_random_rows():
    generator = np.random.default_rng(0)
    texts = {name: [] for name in ("normal", "drop_1", "drop_2", "drop_10")}
    for _ in range(60):
        readable = generator.random(generator.integers(1, 5)) < 0.8
        for column in texts.values():
            column.append("".join(str(generator.integers(2)) if open_ else "-" for open_ in readable))
    found = map_of(**texts)
    assert found.slots == [1, 2, 10]
    for j, name in enumerate(("drop_1", "drop_2", "drop_10")):
        for f in range(4):
            pairs = [
                (int(a[f]), int(b[f]))
                for a, b in zip(texts["normal"], texts[name], strict=True)
                if len(a) > f and a[f] != "-"
            ]
            expected = 100 * (sum(a for a, _ in pairs) - sum(b for _, b in pairs)) / len(pairs)
            assert found.points_JF[j, f] == pytest.approx(expected)
            assert found.n_F[f] == len(pairs)


def test_a_fact_that_no_episode_leaves_open_has_no_number():
    found = map_of(normal=["1-"] * 4, drop_1=["0-"] * 4)
    assert np.isnan(found.points_JF[0, 1])
    assert knockout_sentence(found).endswith("fact 2 cannot be read in any episode")


def test_without_blanked_slots_or_facts_there_is_no_map():
    assert map_of(normal=["11"], shuffle=["00"]) is None
    assert map_of(normal=["", ""], drop_1=["", ""]) is None
    rows = run_rows("a", splits=("confirm",))
    assert knockout_map(rows.drop(columns="facts")) is None


def test_other_episodes_are_refused():
    with pytest.raises(UserError, match="condition drop-1: not on the episodes of normal"):
        map_of(normal=["11", "11"], drop_1=["11"])


# --- the sentence --------------------------------------------------------------------------------------------


def test_the_sentence_names_the_slot_that_carries_most_of_each_fact():
    n = 100
    found = map_of(
        normal=["111"] * n,
        drop_1=["011"] * 60 + ["111"] * 40,
        drop_2=["011"] * 20 + ["101"] * 30 + ["111"] * 50,
    )
    assert knockout_sentence(found) == (
        "fact 1 is carried most by slot 1 (60.0 points); fact 2 is carried most by slot 2 (30.0 points); "
        "fact 3 by no single slot"
    )


def test_chance_names_a_slot_in_at_most_one_map_of_twenty():
    generator, named, maps = np.random.default_rng(1), 0, 200
    for _ in range(maps):
        facts = {
            name: ["".join(row) for row in generator.integers(0, 2, (100, 4)).astype(str)]
            for name in ("normal", *(f"drop_{slot}" for slot in range(1, 9)))
        }
        named += "carried" in knockout_sentence(map_of(**facts))
    assert named / maps <= 0.05 + 3 * (0.05 * 0.95 / maps) ** 0.5


# --- the report ----------------------------------------------------------------------------------------------


@pytest.fixture
def rows():
    parts = [dropped_rows(run_rows("a", seed=seed, splits=("confirm",)), lost_in_half) for seed in (0, 1)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)


def test_the_figure_has_a_panel_a_seed_with_slots_and_facts_and_names_n(rows):
    runs = judge_runs(rows, REFERENCE)
    maps = run_maps(runs)
    figure = draw_knockout(runs[0], maps)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["seed 0", "seed 1"]
    for axes, found in zip(panels, maps.values(), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), found.points_JF)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "2"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "3", "4"]
        assert [text.get_text() for text in axes.texts] == ["50", "0", "0", "0", "0", "50"]  # fact 3 has none
    assert "split confirm, n = 200" in figure.get_suptitle()
    assert figure.get_supxlabel() == "fact, in the message's order"
    assert panels[0].get_ylabel() == "slot that is blanked"
    assert "points" in figure.axes[-1].get_ylabel()
    assert not [name for name in drawn_conditions(runs) if name.startswith("drop-")]


def test_the_report_has_the_map_a_sentence_a_seed_and_an_alternative_text(rows, tmp_path):
    folder = results_folder(tmp_path / "r", rows, run_rows("b", splits=("confirm",)))
    build(folder, "reference")
    text = (folder / "attempts" / "a.md").read_text()
    sentence = (
        "fact 1 is carried most by slot 1 (50.0 points); fact 2 by no single slot; fact 3 cannot be read in any "
        "episode; fact 4 is carried most by slot 2 (50.0 points)."
    )
    assert f"- Training seed 0: {sentence}\n- Training seed 1: {sentence}\n" in text
    assert "](../figures/knockout-a.svg)" in text
    assert {path.name for path in (folder / "figures").glob("knockout-*")} == {"knockout-a.png", "knockout-a.svg"}
    page = html.unescape((folder / "report.html").read_text())
    assert 'alt="Which slot carries which fact of the message: by how many points' in page
    assert page.count("Knock-out map") == 1
    assert "Knock-out map" not in (folder / "attempts" / "b.md").read_text()


def test_the_section_is_that_of_the_split_that_decides(rows):
    search = dropped_rows(run_rows("a", seed=0, splits=("search",)), lambda slot, i: "11-1")
    both = pd.concat([rows[rows.seed != 0], rows[rows.config == ""], search], ignore_index=True)
    (section,) = knockout_sections([run for run in judge_runs(both.drop_duplicates(), REFERENCE) if run.seed == 1])
    assert "split confirm" in section_markdown(section)
