"""Search spaces: names of configurations, suggestions kept in a journal, and nested dictionaries."""

import json
import re

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.config.plan import config_name, load_plan
from m2ray.config.trial import TrialConfig
from m2ray.util.trees import get_key, merge_trees, set_key

SPACE = """
name: remembered
axes:
  codec.bottleneck: {choice: [none, vq]}
  losses.commitment.weight: {uniform: [0.1, 0.5], when: {codec.bottleneck: [vq]}}
  training.lr: {loguniform: [1e-4, 1e-2]}
  codec.k: {choice: [8, 16]}
  codec.layers: {int: [1, 3]}
search: {trials: 4}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return load_plan(path)


# --- names ---------------------------------------------------------------------------------------------------


def test_a_name_describes_a_configuration_and_is_unique(plan):
    dumps = {config_name(config): config.model_dump_json() for config in plan.checked}
    assert len(dumps) == len({config.model_dump_json() for config in plan.checked})
    for name, text in dumps.items():
        assert re.fullmatch(r"segments-k(8|16)-[0-9a-f]{8}", name)
        assert config_name(TrialConfig.model_validate_json(text)) == name


def test_a_name_does_not_depend_on_how_a_configuration_is_judged():
    config = TrialConfig()
    longer = config.splits.model_copy(update={"confirm": "2000:9000"})
    warmer = config.evaluation.model_copy(update={"temperature": 1.0})
    assert config_name(config.model_copy(update={"splits": longer, "evaluation": warmer})) == config_name(config)
    assert config_name(config.model_copy(update={"workers": 2})) != config_name(config)


# --- what a sweep keeps --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), score=st.floats(-1e3, 1e3))
def test_a_past_suggestion_can_be_told_to_a_fresh_study_exactly(plan, seed, score):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    chosen = plan.suggest(trial)
    study.tell(trial, score)
    before = study.trials[0]

    kept = json.loads(json.dumps(chosen))  # as in a line of the journal
    fresh = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=1))
    again = optuna.trial.FixedTrial(kept)
    plan.suggest(again)
    past = optuna.trial.create_trial(params=kept, distributions=again.distributions, value=score)
    fresh.add_trial(past)
    assert fresh.trials[0].params == before.params == chosen
    assert fresh.trials[0].distributions == before.distributions
    assert plan.config(kept) == plan.config(chosen)
    assert config_name(plan.config(kept)) == config_name(plan.config(chosen))
    plan.config(plan.suggest(fresh.ask()))  # the study continues from there


# --- nested dictionaries -------------------------------------------------------------------------------------

keys = st.text("abc", min_size=1, max_size=2)
leaves = st.integers() | st.lists(st.integers(), max_size=2)
nested = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=10)
trees = st.dictionaries(keys, nested, max_size=3)


@settings(deadline=None)
@given(trees, trees)
def test_merging_lets_the_second_win_and_changes_neither(base, over):
    before = json.dumps([base, over])
    out = merge_trees(base, over)
    assert json.dumps([base, over]) == before
    assert merge_trees(base, {}) == base == merge_trees(base, base) == merge_trees({}, base)
    assert merge_trees(out, over) == out
    for key in {*base, *over}:
        if key not in over:
            assert out[key] == base[key]
        elif not (isinstance(over[key], dict) and isinstance(base.get(key), dict)):
            assert out[key] == over[key]
        else:
            assert out[key] == merge_trees(base[key], over[key])


@settings(deadline=None)
@given(trees, st.lists(keys, min_size=1, max_size=3), st.integers())
def test_a_key_that_is_set_is_read_back_and_nothing_else_changes(tree, path, value):
    key, before = ".".join(path), merge_trees(tree, {})
    try:
        set_key(tree, key, value)
    except ValueError as error:
        assert "expected a mapping of keys; fix either" in str(error)  # noqa: PT017
        return
    assert get_key(tree, key) == value
    assert all(tree[other] == before[other] for other in before if other != path[0])


def test_a_missing_key_is_none():
    assert get_key({"a": {"b": 1}}, "a.c") is None
    assert get_key({"a": {"b": 1}}, "a.b.c") is None
    assert get_key({}, "a") is None
    tree = {"losses": {"contrast": None}}
    set_key(tree, "losses.contrast.weight", 1.0)
    assert tree == {"losses": {"contrast": {"weight": 1.0}}}
