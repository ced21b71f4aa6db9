"""What the driver does per trial does not grow with the number of trials, and gives what it gave before."""

import sys
from collections import deque
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from m2ray.engine.study import bounded_tpe
from m2ray.engine.study.bounded_tpe import BoundedTPE, EndedTrials
from m2ray.evaluation.row_selection import RowsByConfiguration, judged_rows
from m2ray.evaluation.rows import read_rows
from m2ray.judging.holm import holm
from m2ray.judging.selection import gains_of_rows, paired_gain

ROOT = Path(__file__).parents[2]


def suggestions(new_sampler, trials, at_once=1):
    """Return what a study suggests, with so many trials running at a time, and a new sampler for each."""
    study, ended, running, drawn = optuna.create_study(direction="maximize"), EndedTrials(), deque(), []
    for number in range(trials):
        if len(running) == at_once:
            ended.add(study.tell(*running.popleft()))
        study.sampler = new_sampler(ended, [trial for trial, _ in running], **SETTINGS, seed=number)
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", 0, 1) if kind == "a" else trial.suggest_float("y", 0, 1)
        drawn.append((kind, x))
        running.append((trial, -((x - 0.3) ** 2)))
    return drawn


SETTINGS = {"multivariate": True, "group": True, "n_startup_trials": 4, "constant_liar": True}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestBoundedTPE:
    @pytest.mark.parametrize("at_once", [1, 3])
    def test_it_suggests_what_tpe_does_as_long_as_trials_are_few(self, at_once):
        def plain(ended, running, **settings):
            return optuna.samplers.TPESampler(**settings)

        assert suggestions(BoundedTPE, 40, at_once) == suggestions(plain, 40, at_once)

    def test_it_looks_at_the_latest_and_the_best_of_many(self, monkeypatch):
        monkeypatch.setattr(bounded_tpe, "LATEST", 10)
        monkeypatch.setattr(bounded_tpe, "BEST", 3)
        study, ended = optuna.create_study(direction="maximize"), EndedTrials()
        trials = [study.ask() for _ in range(16)]
        values = dict(enumerate([5.0, 9.0, 1.0, 8.0, 7.0, *range(10)]))
        for number in [2, 0, 5, 1, *range(6, 15), 3, 4]:  # not as they began
            ended.add(study.tell(trials[number], values[number]))
        assert [trial.number for trial in ended.kept] == [1, 3, 4, *range(5, 15)]
        seen = BoundedTPE(ended, trials[15:])._bounded(study)._get_trials(deepcopy=False)
        assert [trial.number for trial in seen] == [1, 3, 4, *range(5, 15), 15]
        assert len(suggestions(BoundedTPE, 30)) == 30

    @given(st.lists(st.floats(-9, 9), min_size=1, max_size=40), st.randoms())
    def test_the_kept_are_those_of_a_whole_list_in_any_order_of_ending(self, values, random):
        study, ended = optuna.create_study(direction="maximize"), EndedTrials()
        trials = list(zip([study.ask() for _ in values], values, strict=True))
        random.shuffle(trials)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bounded_tpe, "LATEST", 5)
            patch.setattr(bounded_tpe, "BEST", 3)
            for trial, value in trials:
                ended.add(study.tell(trial, value))
        earlier = sorted(range(len(values))[:-5], key=lambda number: (-values[number], number))[:3]
        assert [trial.number for trial in ended.kept] == [*sorted(earlier), *range(len(values))[-5:]]


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
