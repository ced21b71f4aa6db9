"""`--set KEY=VALUE`: the same values, checks and messages as in a YAML file."""

import pytest
import yaml
from sweeps import SPACE, write_space

from m2ray.cli.train import load_config
from m2ray.config.plan import load_plan
from m2ray.config.settings import parse_settings
from m2ray.util.errors import UserError


def plan_with(folder, *texts, **space):
    return load_plan(write_space(folder, **space), {}, {}, parse_settings(texts))


def config_with(folder, *texts):
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(SPACE["trial"]))
    return load_config(file, parse_settings(texts))


def refused(make, folder, *texts):
    with pytest.raises(UserError) as raised:
        make(folder, *texts)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_value_is_read_as_in_a_file(tmp_path):
    texts = ("training.lr=1e-3", "codec.cut=clauses", "splits.search=10:50", "trackers=[]", "training.start=null")
    config = config_with(tmp_path, *texts)
    assert (config.training.lr, config.codec.cut, config.splits.search) == (0.001, "clauses", "10:50")
    assert (config.trackers, config.training.start) == ([], None)


def test_a_key_of_a_configuration_holds_for_all_of_a_space(tmp_path):
    plan = plan_with(tmp_path, "training.batch_size=8", "losses.contrast.weight=0.5")
    assert {config.training.batch_size for config in plan.all} == {8}
    assert plan.points["control"].losses.contrast.weight == 0.5
    assert plan.space.trial["training"]["batch_size"] == 8  # the record of the sweep has it


def test_a_searched_key_that_is_set_is_not_searched(tmp_path):
    plan = plan_with(tmp_path, "codec.k=8")
    assert list(plan.space.axes) == ["training.lr"]
    assert {config.codec.k for config in plan.all} == {8}


def test_a_key_of_the_space_is_set_there(tmp_path):
    plan = plan_with(tmp_path, "search.trials=5", "judge.select=3", "axes.codec.width={choice: [8, 16]}")
    assert (plan.space.search.trials, plan.space.judge.select) == (5, 3)
    assert plan.space.axes["codec.width"].choice == [8, 16]
    plan = plan_with(tmp_path, "points.control.set.codec.k=6", "axes.training.lr={loguniform: [1e-5, 1e-3]}")
    assert plan.space.axes["training.lr"].loguniform == (1e-5, 1e-3)
    assert (plan.points["control"].codec.k, plan.points["control"].codec.encoder) == (6, "last_token")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("codec.k=0", "--set: codec.k: 0 is below 1; write 1 or more"),
        ("codec.kk=3", "--set: codec.kk: unknown key; did you mean `codec.k`?"),
        ("training.lr=fast", "--set: training.lr: 'fast' is not a number; write one such as 0.001"),
        ("codec.k", "--set: 'codec.k' is not KEY=VALUE; write it as codec.k=8"),
        ("codec..k=1", "--set: 'codec..k=1' is not KEY=VALUE; write it as codec.k=8"),
        (
            "codec.k=010",
            "--set: codec.k: not valid YAML (line 1: 010 starts with 0, so that YAML reads it in base 8;",
        ),
        ("codec.k.x=1", "--set: codec.k.x: k is 8, expected a mapping of keys; fix either"),
    ],
)
def test_faults_are_those_of_a_file_and_name_the_option(tmp_path, text, error):
    assert refused(config_with, tmp_path, text).startswith(error)
    assert refused(plan_with, tmp_path, text).startswith(error)


def test_a_fault_of_the_file_names_the_file(tmp_path):
    trial = {**SPACE["trial"], "training": {"epochs": 0}}
    with pytest.raises(UserError, match=rf"{tmp_path}/space.yaml: trial: training.epochs: 0 is below 1"):
        plan_with(tmp_path, "codec.k=8", trial=trial)


def test_a_fault_of_a_space_key_names_the_option(tmp_path):
    assert (
        refused(plan_with, tmp_path, "judge.confirm=-1") == "--set: judge.confirm: -1 is below 0; write 0 or more"
    )
    assert refused(plan_with, tmp_path, "search.trial=1").startswith(
        "--set: search.trial: unknown key; did you mean"
    )
    assert refused(plan_with, tmp_path, "codec.k=8", "codec.k=9") == "--set: codec.k: given twice; keep one"


def test_nothing_left_to_search_is_said(tmp_path):
    with pytest.raises(UserError, match="--set: sets every searched key, so that nothing is left to search"):
        plan_with(tmp_path, "codec.k=8", "training.lr=0.001", points={})
