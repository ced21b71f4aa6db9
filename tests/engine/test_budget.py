"""The budget of a search: what is spent, what is left out, and what a resumed sweep counts."""

import pytest
from scripted_sweep import SPACE, ScriptedSweep
from test_growing_sweeps import FEW, GOOD

from m2ray.config.space import Search
from m2ray.config.sweep_record import read_sweep_record
from m2ray.engine.cost.budget import FILE, Budget
from m2ray.util.journal import Journal


def budgeted(tmp_path, search, **space) -> ScriptedSweep:
    return ScriptedSweep(tmp_path, GOOD, trial={**SPACE["trial"], **FEW}, search=search, **space)


@pytest.mark.parametrize(("limit", "trained"), [(0.5, 1), (0.6, 2), (99, 3)])
def test_no_trial_starts_once_the_hours_are_spent_and_what_is_there_is_judged(
    tmp_path, monkeypatch, limit, trained
):
    sweep = budgeted(tmp_path, {"trials": 2, "max_hours": limit})
    sweep.run(monkeypatch)
    assert len(sweep.trained) == trained
    leaderboard = sweep.leaderboard()
    assert set(leaderboard.config) == {name for name, _ in sweep.trained}
    assert (leaderboard.split == "confirm").any()
    left = f"Budget: search.max_hours {limit:g} spent; not trained: {3 - trained} sampled"
    assert (left in (sweep.root / "leaderboard.md").read_text().splitlines()) == (trained < 3)


def test_points_that_a_budget_leaves_out_are_named_and_trained_when_it_is_raised(tmp_path, monkeypatch):
    sweep = budgeted(tmp_path, {"trials": 1, "max_hours": 0.5}, points={"first": {}, "second": {}})
    sweep.run(monkeypatch)
    assert sweep.trained == [("first", 0)]
    record = read_sweep_record(sweep.root)
    assert record["budget"] == "search.max_hours 0.5 spent; not trained: point second, 1 sampled"
    sweep.run(monkeypatch)
    assert sweep.trained == [("first", 0)], "a resumed sweep goes on counting"
    sweep.write(search={"trials": 1, "max_hours": 5})
    sweep.run(monkeypatch)
    assert len(sweep.trained) == 3
    record = read_sweep_record(sweep.root)
    assert "budget" not in record
    assert [look["configurations"][:1] for look in record["looks"]] == [["first"], ["second"]]


def test_what_had_begun_ends(tmp_path, monkeypatch):
    sweep = budgeted(tmp_path, {"trials": 5, "max_hours": 0.1})
    Journal(sweep.root / "trials.jsonl").append({"event": "began", "config": "control", "chosen": {}})
    Journal(sweep.root / "trials.jsonl").append(
        {"event": "began", "config": "a", "chosen": {"codec.k": 4, "training.lr": 0.001}}
    )
    (sweep.root / FILE).write_text('{"hours": 1.0, "core_hours": 1.0}')
    sweep.run(monkeypatch)
    assert [name for name, _ in sweep.trained] == ["control", "a"]


def test_core_hours_count_the_cores_that_trials_hold_and_survive_a_kill(tmp_path):
    seconds = [0.0]
    budget = Budget(tmp_path, Search(trials=1, max_core_hours=3), lambda: seconds[0])
    for cores in (0, 4, 2):
        seconds[0] += 1800
        budget.tick(cores)
    assert (budget.hours, budget.core_hours) == pytest.approx((1.5, 3.0))
    assert budget.spent == "search.max_core_hours 3"
    again = Budget(tmp_path, Search(trials=1, max_hours=2), lambda: seconds[0])
    assert (again.hours, again.core_hours) == pytest.approx((1.5, 3.0))
    assert again.spent == ""
    (tmp_path / FILE).write_text("{")
    assert Budget(tmp_path, Search()).hours == 0
