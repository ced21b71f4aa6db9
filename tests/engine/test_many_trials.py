"""What the driver does per trial does not grow with the number of trials, and gives what it gave before."""

import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from statsmodels.stats.multitest import multipletests

from m2ray.engine.study import bounded_tpe
from m2ray.engine.study.bounded_tpe import BoundedTPE
from m2ray.evaluation.row_selection import RowsByConfiguration, judged_rows
from m2ray.evaluation.rows import read_rows
from m2ray.judging.holm import holm
from m2ray.judging.selection import gains_of_rows, paired_gain

ROOT = Path(__file__).parents[2]


def suggestions(sampler, trials):
    study = optuna.create_study(direction="maximize", sampler=sampler)
    drawn = []
    for _ in range(trials):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", 0, 1) if kind == "a" else trial.suggest_float("y", 0, 1)
        drawn.append((kind, x))
        study.tell(trial, -((x - 0.3) ** 2))
    return drawn


SETTINGS = {"seed": 1, "multivariate": True, "group": True, "n_startup_trials": 4, "constant_liar": True}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestBoundedTPE:
    def test_it_suggests_what_tpe_does_as_long_as_trials_are_few(self):
        assert suggestions(BoundedTPE(**SETTINGS), 40) == suggestions(optuna.samplers.TPESampler(**SETTINGS), 40)

    def test_it_looks_at_the_latest_and_the_best_of_many(self, monkeypatch):
        monkeypatch.setattr(bounded_tpe, "LATEST", 10)
        monkeypatch.setattr(bounded_tpe, "BEST", 3)
        study = optuna.create_study(direction="maximize")
        for value in [5.0, 9.0, 1.0, 8.0, 7.0, *range(10)]:
            study.tell(study.ask(), value)
        running = study.ask()
        shown = bounded_tpe._BoundedStudy(study)._get_trials(deepcopy=False)
        assert [trial.number for trial in shown] == [1, 3, 4, *range(5, 15), running.number]
        assert len(suggestions(BoundedTPE(**SETTINGS), 30)) == 30


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        values = [*rng.random(count) ** 4, 0.0, 1.0, 0.01, 0.01]
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist(), abs=1e-15)
    assert holm([]) == []


def test_rows_divided_once_are_the_rows_filtered_for_each_configuration():
    rows = read_rows(ROOT / "results" / "recipe-mini" / "rows.parquet")
    divided = RowsByConfiguration(rows)
    for config in ("k8", "attempt-02"):
        for split in ("search", "confirm"):
            filtered = judged_rows(rows, config, 1, split)
            assert judged_rows(divided.of(config), config, 1, split).equals(filtered)


def test_gains_of_all_checkpoints_are_those_of_each():
    rows = read_rows(ROOT / "results" / "recipe-mini" / "rows.parquet")
    rows = rows[rows.split == "search"]
    gains = gains_of_rows(rows)
    last = judged_rows(rows, "k8", 0, "search")
    (checkpoint,) = set(last[last.config == "k8"].checkpoint)
    assert gains["k8", 0, checkpoint] == pytest.approx(paired_gain(last))
    assert gains_of_rows(rows, {("k8", 0, checkpoint)}) == {("k8", 0, checkpoint): gains["k8", 0, checkpoint]}


def test_the_simulation_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    sys.modules.pop("scaling_trials", None)
    from scaling_trials import page, simulate

    found = simulate(6, tmp_path)
    assert found["trials"] == 6
    assert "| board" in page([found])
