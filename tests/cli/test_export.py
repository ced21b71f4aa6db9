"""`m2ray.export`: a configuration of a sweep, for `m2ray.train` and as a point, with the same settings."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from sweeps import SPACE, write_space

from m2ray.cli import export
from m2ray.cli.train import load_config
from m2ray.config.plan import config_name, load_plan
from m2ray.config.sweep_record import write_sweep_record
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal
from m2ray.util.strict_yaml import read_yaml

RECIPE = Path(__file__).parents[2] / "results" / "recipe-mini"
CHOSEN = {"codec.k": 12, "training.lr": 0.0005}


@pytest.fixture
def sweep(tmp_path):
    """The folder of a sweep of one point and one sampled configuration, and both by name."""
    settings = {"training.batch_size": 8, "judge.confirm": 2}
    plan = load_plan(write_space(tmp_path), {"receiver": "mini"}, {}, settings)
    folder, sampled = tmp_path / "results", plan.sampled(CHOSEN)
    folder.mkdir()
    points = {name: config.model_dump() for name, config in plan.points.items()}
    record = {"space": plan.space.model_dump(by_alias=True), "points": points}
    write_sweep_record(folder, record)
    journal = Journal(folder / "trials.jsonl")
    journal.append({"event": "began", "config": "control", "chosen": {}})
    journal.append({"event": "began", "config": sampled.name, "chosen": CHOSEN})
    return folder, {"control": plan.points["control"], sampled.name: sampled.config}


def exported(*argv):
    assert export.main(list(map(str, argv))) == 0


def test_what_is_trained_is_the_trial_to_the_digest(sweep, tmp_path, capsys):
    folder, configs = sweep
    for name, config in configs.items():
        file = tmp_path / f"{name}.yaml"
        exported(folder, name, "--out", file)
        assert capsys.readouterr().out.endswith(f"next: python -m m2ray.train {file}\n")
        again = load_config(file, {})
        assert again == config
        assert config_name(again) == config_name(config)
        assert again.training_settings == config.training_settings
        assert again.training.batch_size == 8  # set on the command line of the sweep


def test_a_point_gives_the_same_codec_in_a_space_with_other_settings(sweep, tmp_path, capsys):
    folder, configs = sweep
    for name, config in configs.items():
        exported(folder, name, "--point")
        points = yaml.safe_load(capsys.readouterr().out)["points"]
        trial = {**SPACE["trial"], "codec": {"k": 32}, "losses": {"ce": {}, "kl": {}}, "training": {"lr": 0.5}}
        other = load_plan(write_space(tmp_path, trial=trial, points=points))
        assert other.points[name] == config


def test_a_checkpoint_says_what_was_trained(sweep, tmp_path):
    """Where the journal is from an earlier version with other defaults."""
    folder, configs = sweep
    name = next(name for name in configs if name != "control")
    trained = configs[name].model_dump(mode="json")
    trained["codec"]["width"] = 64
    checkpoint = folder / "checkpoints" / name / "seed-0" / "epoch-01"
    checkpoint.mkdir(parents=True)
    record = {"codec": {}, "receiver_digest": "r", "digest": "d", "config": name, "seed": 0, "trial": trained}
    (checkpoint / "config.json").write_text(json.dumps(record))
    exported(folder, name, "--out", tmp_path / "out.yaml")
    assert load_config(tmp_path / "out.yaml", {}).codec.width == 64


def test_a_published_codec_is_exported_as_it_was_trained(tmp_path):
    exported(RECIPE, "k8", "--out", tmp_path / "k8.yaml")
    again = load_config(tmp_path / "k8.yaml", {})
    published = load_config(RECIPE / "best-k8" / "trial.yaml", {})
    assert again.training_settings == published.training_settings


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["{folder}", "other"], "{folder}: no configuration 'other'; choose from control, segments-k12-"),
        (["{folder}/gone", "control"], "{folder}/gone: no sweep.yaml; give results/NAME of a sweep"),
        (["{folder}", "control", "--out", "x.txt"], "--out x.txt: name it something.yaml"),
        (
            ["{folder}", "control", "--out", "{folder}/sweep.yaml"],
            "--out {folder}/sweep.yaml: already there; choose",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(sweep, argv, error):
    with pytest.raises(UserError) as raised:
        export.main([word.format(folder=sweep[0]) for word in argv])
    assert str(raised.value).startswith(error.format(folder=sweep[0]))


def test_a_record_that_is_not_a_sweeps_is_refused(sweep):
    folder, _ = sweep
    record = read_yaml(folder / "sweep.yaml")
    record["points"]["control"]["codec"]["k"] = "many"
    write_sweep_record(folder, record)
    with pytest.raises(UserError, match=r"sweep\.yaml: points\.control: codec\.k: 'many' is not a whole number"):
        export.main([str(folder), "control"])
    shutil.rmtree(folder)
