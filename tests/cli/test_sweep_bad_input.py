"""Bad input of a sweep: exit 2, one line that names file, key and fix, nothing written, nothing trained."""

import sys

import pytest
import yaml
from sweeps import SPACE, write_space

from m2ray.cli import sweep
from m2ray.cli.runner import run_command
from m2ray.cli.sweep import main
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import write_sweep_record
from m2ray.engine import cluster
from m2ray.engine.record import describe_sweep

cluster_start = cluster.start


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command on input that it must refuse; return its error line."""

    def start_elsewhere(address, **named):
        if address is not None:  # a local Ray starts during the checks, and few of these cases use it
            cluster_start(address, **named)

    monkeypatch.setattr(cluster, "start", start_elsewhere)

    def refuse(*argv):
        before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["m2ray.sweep", *map(str, argv), "--results", str(tmp_path / "results")])
        with pytest.raises(SystemExit) as exit_:
            run_command(main)
        printed = capsys.readouterr()
        assert (exit_.value.code, printed.out) == (2, "")
        assert len(printed.err.splitlines()) == 1
        assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before
        return printed.err.removeprefix("error: ")

    return refuse


def changed(key, value) -> dict:
    """Return the space with one key set; the parts of the key, which may contain dots, are separated by /."""
    tree = yaml.safe_load(yaml.safe_dump(SPACE))
    *path, last = key.split("/")
    node = tree
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        # unknown and misspelt, in each section
        ("naem", "x", "naem: unknown key; did you mean `name`?"),
        ("trial/codex", {}, "codex: unknown key; did you mean `codec`?"),
        ("trial/codec/encodr", "segments", "codec.encodr: unknown key; did you mean `codec.encoder`?"),
        ("trial/training/learning_rate", 1e-3, "training.learning_rate: unknown key"),
        ("trial/losses", {"contrst": {}}, "losses.contrst: unknown key; did you mean `losses.contrast`?"),
        (
            "trial/evaluation/conditons",
            [],
            "evaluation.conditons: unknown key; did you mean `evaluation.conditions`?",
        ),
        ("trial/splits/valid", "1:2", "splits.valid: unknown key"),
        ("points/control/sets", {}, "points.control.sets: unknown key; did you mean `points.control.set`?"),
        ("points/control/set/codec.kay", 4, "points.control: codec.kay: unknown key"),
        (
            "axes/codec.k",
            {"choise": [1, 2]},
            "axes.codec.k.choise: unknown key; did you mean `axes.codec.k.choice`?",
        ),
        ("axes/codec.kk", {"choice": [1, 2]}, "codec.kk: unknown key; did you mean `codec.k`?"),
        ("search/trails", 3, "search.trails: unknown key; did you mean `search.trials`?"),
        ("search/pruner", "median", "search.pruner: 'median' does not exist; use 'none', 'asha' or 'wilcoxon'"),
        ("judge/slect", 1, "judge.slect: unknown key; did you mean `judge.select`?"),
        ("resources/cpu", 1, "resources.cpu: unknown key"),
        # wrong types and values
        ("search/trials", "two", "search.trials: 'two' is not a whole number; write one"),
        ("search/trials", -1, "search.trials: -1 is below 0; write 0 or more"),
        ("search/seeds", [], "search.seeds: "),
        ("search/seeds", [0, 0], "search.seeds: a seed is given twice; keep one"),
        ("trial/codec/k", 0, "codec.k: 0 is below 1; write 1 or more"),
        ("trial/codec/k", 4.5, "codec.k: 4.5 is not a whole number; write one"),
        (
            "trial/task",
            {"level": "arithmetic"},
            "receiver mini: its vocabulary lacks words of level arithmetic-8x10",
        ),
        ("trial/codec/k", 4000, "codec.k: 4000 slots exceed the context of mini"),
        ("trial/codec/encoder", "mlp", "codec.encoder: 'mlp' does not exist; use 'last_token'"),
        ("trial/losses", {"contrast": {"margin": -1}}, "losses.contrast.margin: -1 is below 0"),
        (
            "trial/evaluation/conditions",
            ["normal", "nul"],
            "condition 'nul' does not exist; use some of normal, null",
        ),
        ("trial/task", {"level": "esay"}, "level"),
        ("axes/codec.k", {"int": [5, 3]}, "axes.codec.k: int: the range [5, 3] is empty; write [low, high]"),
        ("axes/training.lr", {"loguniform": [0, 1]}, "axes.training.lr: loguniform: low must be above 0"),
        ("axes/training.lr", {"uniform": [0.0, float("inf")]}, "axes.training.lr.uniform"),
        (
            "axes/codec.k",
            {"choice": [4, 0]},
            "space.yaml: axes codec.k = 0: codec.k: 0 is below 1",
        ),
        (
            "axes/codec.width",
            {"choice": [32], "when": {"codec.encoder": ["memory"]}},
            "axes.codec.width.when: never holds; fix the keys or values it names",
        ),
        ("axes/task.level", {"choice": ["easy"]}, "axes.task.level: the same for all configurations"),
        ("trial/splits/select", "1010:1030", "select 1010:1030"),
        ("trial/splits/train", "1:2000", "train 1:2000"),
        (
            "trial/receiver",
            "./nobody",
            "receiver ./nobody: no such folder; give mini, mini-arithmetic, a folder, a hub name",
        ),
        ("judge/confirm", 3, "judge.confirm: more than judge.select; lower it"),
        ("judge/gate", "no.yaml", "no.yaml: no such file"),
        ("name", "../x", "name: "),
        ("points", {"a/b": {}}, "points.a/b"),
        # what would otherwise fail after the last training, or in each
        ("trial/evaluation/conditions", ["normal", "P0", "shuffle"], "trial.evaluation.conditions: lacks null"),
        ("trial/evaluation/confirm_conditions", ["facts-4"], "facts-4: the message of episode 2000 has 4 facts"),
        ("trial/evaluation/confirm_conditions", ["drop-9"], "drop-9: the codec has 8 slots; use drop-1 to drop-8"),
        ("trial/splits/confirm", "2000:2001", "condition shuffle: too few different messages"),
    ],
)
def test_a_faulty_space_is_refused(refused, tmp_path, key, value, says):
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(changed(key, value)))
    line = refused(file)
    assert says in line
    assert "space.yaml" in line or "no.yaml" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--trials", "-1"], "--trials: search.trials: -1 is below 0; write 0 or more"),
        (["--trials", "many"], "argument --trials: invalid int value: 'many'"),
        (["--seeds", "0,x"], "--seeds: '0,x' is not a list of whole numbers; write 0,1,2"),
        (["--seeds", ""], "--seeds: '' is not a list of whole numbers; write 0,1,2"),
        (["--seeds", "1,1"], "search.seeds: a seed is given twice; keep one"),
        (["--seeds", "-1"], "--seeds: search.seeds.0: -1 is below 0; write 0 or more"),
        (["--name", "a/b"], "--name: 'a/b' is not a plain folder name; use letters, digits, - and _"),
        (["--name", ".."], "--name: '..' is not a plain folder name"),
        (["--name", ""], "--name: '' is not a plain folder name"),
        (["--receiver", "./nobody"], "receiver ./nobody: no such folder"),
        (["--accept-changes"], "--accept-changes: goes with --resume; add that or leave it out"),
        (["--json", "--dry-run"], "--json: goes with a sweep that runs; leave it or --dry-run out"),
        (["--resume"], "no sweep.yaml to resume; check --name and --results, or leave --resume out"),
        (["--add-trials", "2"], "no sweep.yaml to resume; check --name and --results, or leave --add-trials out"),
        (["--add-trials", "0"], "--add-trials: 0 adds nothing; give 1 or more, or leave it out"),
        (["--add-seeds", "a"], "--add-seeds: 'a' is not a list of whole numbers; write 0,1,2"),
        (["--add-seeds", "-1"], "--add-seeds: '-1' has a seed that is not from 0 to 2^32 - 1; give others"),
        (["--add-seeds", "3", "--dry-run"], "--add-seeds: goes with a sweep that runs; leave it or --dry-run out"),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers"),
        (["--address", "head"], "--address head: write host:port of the head node, or auto"),
        (["--tirals", "3"], "unrecognized arguments: --tirals"),
    ],
)
def test_a_faulty_command_line_is_refused(refused, tmp_path, argv, says):
    assert says in refused(write_space(tmp_path), *argv)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "expected a mapping"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", "given twice"),
        ("name: empty\n", "nothing to run; add a point, or axes and search.trials"),
    ],
)
def test_a_file_that_is_not_a_space_is_refused(refused, tmp_path, content, says):
    file = tmp_path / "space.yaml"
    if content is not None:
        file.write_text(content)
    assert says in refused(file)


# --- a folder that holds a sweep already ---------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A space whose sweep has begun."""
    file = write_space(tmp_path)
    plan = load_plan(file)
    write_sweep_record(tmp_path / "results" / "small", describe_sweep(plan, load_plan_gate(plan), [str(file)]))
    return file


def test_a_folder_with_a_sweep_is_not_overwritten(refused, begun):
    assert (
        "results/small: already holds a sweep (a clone of the repository has the published ones); choose"
        in refused(begun)
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("trial/training/epochs", 3, "space.trial.training.epochs"),
        ("trial/splits/confirm", "2000:2040", "space.trial.splits.confirm"),
        ("axes/codec.k", {"choice": [8, 16]}, "space.axes.codec.k.choice"),
        ("points/control/set/codec.k", 4, "space.points.control.set.codec.k"),
        ("search/trials", 5, "space.search.trials"),
    ],
)
def test_a_changed_space_is_not_resumed(refused, begun, key, value, says):
    begun.write_text(yaml.safe_dump(changed(key, value)))
    line = refused(begun, "--resume")
    assert f"sweep.yaml: {says}: differs from what this sweep began with (was " in line
    assert "; restore it, start anew under another --name, or resume with --resume --accept-changes" in line


def test_a_changed_gate_is_not_resumed(refused, begun, tmp_path, monkeypatch):
    gate = load_plan_gate(load_plan(begun))
    other = gate.model_copy(update={"alpha": 0.01})
    monkeypatch.setattr(sweep, "load_plan_gate", lambda plan: other)
    assert "sweep.yaml: gate.alpha: differs" in refused(begun, "--resume")


def test_another_receiver_is_not_resumed(refused, begun, tiny_folder):
    assert "points.control.receiver: differs" in refused(begun, "--resume", "--receiver", tiny_folder)


def test_a_damaged_sweep_yaml_is_refused(refused, begun, tmp_path):
    (tmp_path / "results" / "small" / "sweep.yaml").write_text("space: [")
    assert "sweep.yaml: not valid YAML" in refused(begun, "--resume")


def test_a_training_that_this_machine_can_never_hold_is_refused(refused, tmp_path, monkeypatch):
    """Ray would wait for a node that never comes."""
    monkeypatch.setattr(cluster, "start", cluster_start)
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(changed("resources/cpus_per_worker", 4096)))
    line = refused(space)
    assert line.startswith("resources.cpus_per_worker: a training needs 4096 CPUs, and there are ")
    assert line.endswith("lower it or workers, or give the --address of a larger cluster\n")


def test_a_current_folder_that_was_deleted_is_named(refused, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert refused(write_space(tmp_path)) == (
        "current folder: it was deleted; cd to one that exists and run the command again\n"
    )
