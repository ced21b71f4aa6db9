"""The spaces of search_spaces/: valid, faithful to the report they repeat, comparable, true to their schema."""

import importlib.util
import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from m2ray.cli.sweep import main
from m2ray.cli.train import main as train_main
from m2ray.config.axis import Axis
from m2ray.config.gate_file import load_gate
from m2ray.config.objectives import CrossEntropyTerm, LossTerm, MarginTerm
from m2ray.config.plan import config_name, load_plan
from m2ray.receiver.loading import load_receiver
from m2ray.training.trainer import train
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import read_yaml
from m2ray.util.trees import get_key

FOLDER = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [file.stem for file in FILES]
PLANS = {file.stem: load_plan(file) for file in FILES}


def configs(plan):
    return [*plan.points.values(), *plan.checked]


def test_the_spaces_are_those_of_the_documentation():
    methods = ["methods-gemma", "methods-qwen", "methods-smollm2", "methods-trained-sentences", "methods"]
    recipes = ["recipe-after", "recipe-behind", "recipe-mini", "recipe-qwen-k4", "recipe-qwen", "recipe-sentences"]
    searches = ["attempt-02-qwen", "attempt-02", "attempt-03", "constants", "gate1", "gate2"]
    rest = ["held-out", *methods, "quickstart", *recipes, "scale"]
    assert ["adapted-easy", "arithmetic", *searches, *rest] == NAMES


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_space_has_its_files_name_a_description_and_a_reference_to_the_schema(file):
    space = PLANS[file.stem].space
    assert space.name == file.stem
    assert space.about
    assert file.read_text().splitlines()[0] == "# yaml-language-server: $schema=space.schema.json"


@pytest.mark.parametrize("name", NAMES)
def test_a_space_evaluates_the_conditions_that_its_gate_compares(name):
    plan = PLANS[name]
    file = plan.space.judge.gate
    criteria = load_gate(FOLDER / file if file else None).criteria
    evaluated = set(plan.example.conditions_on("confirm"))
    if all(config.codec.encoder == "own" for config in configs(plan)):  # trains nothing
        evaluated.add("init")
    expected = [criterion for criterion in criteria if not criterion.silent]
    assert {condition for criterion in expected for condition in criterion.conditions} <= evaluated


# --- purpose of each -----------------------------------------------------------------------------------------


def test_attempt_02_has_the_frozen_settings_of_the_report():
    plan = PLANS["attempt-02"]
    (config,) = plan.points.values()
    codec, training, splits = config.codec, config.training, config.splits
    assert (codec.encoder, codec.k, codec.width, codec.place) == ("last_token", 4, 512, "before")
    assert (codec.calibration, codec.scale_gate, codec.bottleneck) == ("layernorm", 0.5, "none")
    assert config.losses.terms() == {
        "ce": CrossEntropyTerm(weight=1.0, value_weight=10.0),
        "contrast": MarginTerm(weight=0.5, margin=1.0),
        "reconstruction": LossTerm(weight=20.0),
        "info_preserve": LossTerm(weight=10.0),
        "help": MarginTerm(weight=1.0, margin=0.2),
    }
    assert (training.epochs, training.epoch_samples, training.batch_size) == (10, 1099, 8)
    assert (training.lr, training.schedule, training.warmup, training.grad_clip) == (
        1e-3,
        "cosine_per_epoch",
        0,
        1.0,
    )
    assert splits.seeds("train") == range(42, 542)
    assert [*splits.seeds("search"), *splits.seeds("select")] == list(range(1000, 1100))
    assert splits.seeds("confirm") == range(2000, 2100)
    assert (config.evaluation.temperature, config.evaluation.max_new_tokens) == (0.3, 128)
    assert config.evaluation.scale_gates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]


@pytest.mark.parametrize("name", ["attempt-03", "quickstart", "gate1", "gate2", "scale"])
def test_every_other_space_judges_attempt_02s_recipe_beside_its_own(name):
    plan, recipe = PLANS[name], PLANS["attempt-02"].points["attempt-02"]
    controls = [config for point, config in plan.points.items() if point.startswith("attempt-02")]
    assert controls
    for config in controls:
        assert config.codec.model_copy(update={"k": 4}) == recipe.codec
        samples = {"epochs": config.training.epochs, "epoch_samples": config.training.epoch_samples}
        assert (config.losses, config.training) == (recipe.losses, recipe.training.model_copy(update=samples))
        if name != "quickstart":
            assert config.training == recipe.training


def test_the_default_sweep_gives_its_control_as_many_samples_as_the_others():
    plan = PLANS["quickstart"]
    assert len({config.training.epochs * config.training.epoch_samples for config in plan.all}) == 1


@pytest.mark.parametrize("name", ["adapted-easy", "attempt-03", "constants", "gate1", "gate2", "methods", "scale"])
def test_a_long_sweep_judges_on_a_thousand_episodes_or_more(name):
    assert len(PLANS[name].example.splits.seeds("confirm")) >= 1000


def test_attempt_03_changes_attempt_02_by_one_proposed_fix_an_arm():
    plan = PLANS["attempt-03"]
    assert plan.space.search.trials == 0
    dumps = {name: config.model_dump() for name, config in plan.points.items()}
    control = dumps.pop("attempt-02")
    changed = {
        name: {
            key
            for section in ("codec", "losses", "training")
            for key in control[section]
            if get_key(tree, f"{section}.{key}") != control[section][key]
        }
        for name, tree in dumps.items()
    }
    assert changed == {
        "contrast": {"contrast"},
        "reconstruction": {"reconstruction_tokens"},
        "vq": {"bottleneck", "commitment"},
        "information": {"latent_information"},
        "all-fixes": {"contrast", "reconstruction_tokens", "bottleneck", "commitment", "latent_information"},
    }
    for name, tree in dumps.items():
        for key in changed[name] & set(control["losses"]):
            assert tree["losses"][key] == dumps["all-fixes"]["losses"][key], (
                "the same settings as in the arm alone"
            )
    before, strong = control["losses"]["contrast"], dumps["contrast"]["losses"]["contrast"]
    assert strong["weight"] >= 10 * before["weight"]
    assert strong["margin"] >= 2 * before["margin"]


def test_the_gate_spaces_search_the_slots_that_their_gates_are_about():
    assert {config.codec.k for config in configs(PLANS["gate1"])} == {4, 8}
    assert {config.codec.k for config in configs(PLANS["gate2"])} == {16}
    gates = load_gate("reference").criteria
    assert all(c.applies(4) and c.applies(8) for c in gates if c.gate == "gate1")
    assert all(c.applies(16) for c in gates if c.gate == "gate2")


def test_the_scale_space_is_the_attempts_receiver_and_slots_on_a_cluster_of_gpus():
    plan = PLANS["scale"]
    resources = plan.space.resources
    assert plan.space.axes["codec.k"] == Axis(choice=[4, 8, 16, 32, 64])
    assert [config.codec.k for config in plan.points.values()] == [4, 8, 16, 32, 64]
    assert plan.example.receiver == "Qwen/Qwen2.5-3B-Instruct"
    assert all(config.workers > 1 for config in configs(plan))
    assert (resources.accelerator, resources.gpus_per_worker) == ("A100", 1)
    assert resources.evaluators > 1
    assert resources.gpus_per_evaluator > 0


def test_the_constants_are_many_see_no_message_and_are_small(capsys):
    plan = PLANS["constants"]
    assert not plan.points
    assert plan.space.search.trials >= 12
    assert {config.codec.encoder for config in configs(plan)} == {"constant"}
    assert {config.codec.k for config in configs(plan)} == {4, 8, 16}  # both gates
    assert main([str(FOLDER / "constants.yaml"), "--dry-run"]) == 0
    assert "x 1 seed, 20,480 samples, 16 checkpoints" in capsys.readouterr().out


def test_no_space_uses_the_confirm_episodes_of_another():
    splits = {
        name: [plan.example.splits.seeds(split) for split in ("search", "select", "confirm")]
        for name, plan in PLANS.items()
    }
    for one, other in itertools.permutations(NAMES, 2):
        confirm = splits[one][-1]
        assert not any(set(confirm) & set(seeds) for seeds in splits[other]), (one, other)


def kinds():
    """One configuration of each kind that any space trains, of `mini` where there is one."""
    found = {}
    plans = sorted(PLANS.values(), key=lambda plan: plan.example.receiver != "mini")
    for config in (config for plan in plans for config in configs(plan)):
        codec, anneals = config.codec, config.training.anneal is not None
        found.setdefault((codec.encoder, codec.bottleneck, anneals, *config.losses.terms()), config)
    return list(found.values())


@pytest.mark.parametrize("config", kinds(), ids=config_name)
def test_every_kind_of_configuration_trains(config, tmp_path):
    sizes = {
        "epochs": 1,
        "epoch_samples": 8,
        "batch_size": 8,
        "start": None,
    }  # a start checkpoint fits its receiver only
    small = config.model_copy(
        update={
            "training": config.training.model_copy(update=sizes),
            "splits": config.splits.model_copy(update={"search": "1000:1020"}),
            "codec": config.codec.model_copy(update={"width": 16}),
            "task": config.task.model_copy(update={"level": "easy"}),  # the level that mini knows
        }
    )
    reported = []
    record = {"config": "any"}
    train(small, 0, load_receiver("mini"), tmp_path, lambda metrics, at: reported.append(metrics["step"]), record)
    assert reported == [1]


# --- the schema ----------------------------------------------------------------------------------------------

SCHEMA = json.loads((FOLDER / "space.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def script():
    path = FOLDER.parent / "scripts" / "write_schema.py"
    spec = importlib.util.spec_from_file_location("write_schema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_is_what_the_script_writes(tmp_path, monkeypatch):
    module = script()
    assert module.OUT == FOLDER / "space.schema.json"
    monkeypatch.setattr(module, "OUT", tmp_path / "written.json")
    assert module.main([]) == 0
    written, committed = (path.read_text() for path in (tmp_path / "written.json", FOLDER / "space.schema.json"))
    assert written == committed, "out of date: run `make schema`"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_space_fits_the_schema(file):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(read_yaml(file))


@pytest.mark.parametrize(
    "tree",
    [
        {"trial": {}},
        {"trial": {"codec": {"k": 4}}},
        {"trial": {"losses": {"contrast": {"margin": 2}}, "training": {"anneal": {"start": 30}}}},
        {"points": {"a": {"use": "b.yaml", "set": {"losses.help": None, "codec.k": 8}}}},
        {"points": {"a": {"set": {"losses.contrast": {"weight": 5.0}, "training.anneal.start": 30}}}},
        {"axes": {"losses.kl.weight": {"uniform": [0, 1], "when": {"codec.encoder": ["segments"]}}}},
    ],
)
def test_no_key_of_a_trial_is_required(tree):
    VALIDATOR.validate({"name": "a", **tree})


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "a", "pionts": {}},
        {"points": {}},
        {"name": "../a"},
        {"name": "a", "trial": {"recever": "mini"}},
        {"name": "a", "trial": {"codec": {"encodr": "segments"}}},
        {"name": "a", "trial": {"codec": {"encoder": "lasttoken"}}},
        {"name": "a", "trial": {"codec": {"k": 0}}},
        {"name": "a", "trial": {"codec": {"k": "4"}}},
        {"name": "a", "trial": {"losses": {"contrast": {"margin": -1}}}},
        {"name": "a", "trial": {"losses": {"contrast": {"margn": 1}}}},
        {"name": "a", "trial": {"training": {"anneal": {"strat": 20}}}},
        {"name": "a", "points": {"../b": {}}},
        {"name": "a", "points": {"b": {"sets": {}}}},
        {"name": "a", "points": {"b": {"set": {"codec.encodr": "segments"}}}},
        {"name": "a", "points": {"b": {"set": {"codec.k": 0}}}},
        {"name": "a", "points": {"b": {"set": {"losses.contrast": {"margn": 1}}}}},
        {"name": "a", "points": {"b": {"set": {"task.level": "medium"}}}},
        {"name": "a", "axes": {"codec.encodr": {"choice": ["segments"]}}},
        {"name": "a", "axes": {"codec.k": {"chioce": [4]}}},
        {"name": "a", "axes": {"codec.k": {"choice": []}}},
        {"name": "a", "axes": {"codec.k": {"int": [4]}}},
        {"name": "a", "axes": {"codec.k": {"choice": [4], "when": {"codec.encodr": ["segments"]}}}},
        {"name": "a", "axes": {"evaluation.temperature": {"choice": [0]}}},
        {"name": "a", "search": {"prunner": "asha"}},
        {"name": "a", "resources": {"gpus": 1}},
    ],
    ids=lambda tree: json.dumps(tree),
)
def test_a_misspelt_key_or_bad_value_does_not_fit_the_schema(tree):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(tree)


def test_a_dry_run_notes_settings_that_are_valid_but_seldom_meant(tmp_path, capsys):
    space = yaml.safe_load((FOLDER / "recipe-mini.yaml").read_text())
    space["points"] = {
        "asis": {"set": {"codec.k": 4}},
        "long": {"set": {"codec.k": 30}},
        "off": {"set": {"codec.k": 4, "codec.start": "states", "codec.scale_gate": 1.0}},
    }
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(space))
    assert main([str(file), "--dry-run", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    notes = [line.split("note", 1)[1].strip() for line in lines if "  note " in line]
    assert len(notes) == 2
    assert notes[0].startswith("codec.k 30 is more than the 15 to ")
    assert notes[1].startswith("codec.scale_gate 1: with codec.start: states slots start as hidden states of ")


@pytest.mark.parametrize("command", [main, train_main])
def test_the_record_of_a_sweep_is_refused_as_a_space_and_as_a_configuration(command):
    record = str(FOLDER.parent / "results" / "recipe-mini" / "sweep.yaml")
    with pytest.raises(UserError, match=r"sweep.yaml: the record of a sweep, not a space or configuration"):
        command([record])
