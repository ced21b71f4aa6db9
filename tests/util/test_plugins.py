"""Plugins: the example package of `docs/plugs.md`, installed and used; and the errors of broken plugins."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sweeps import SPACE

from m2ray.cli.runner import BAD_INPUT, DONE
from m2ray.codec import encoder_registry
from m2ray.codec.checkpoints import checkpoints
from m2ray.config import condition_names, trial
from m2ray.evaluation import conditions
from m2ray.evaluation.rows import read_rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "plug_example"

TRIAL = {
    "task": {"level": "password-6x3"},
    "splits": {"train": "100:400", "search": "1000:1012", "select": "4000:4004", "confirm": "2000:2012"},
    "codec": {"encoder": "mean_pool", "k": 4, "place": "before"},
    "losses": {"ce": {}, "worst": {"weight": 0.1}},
    "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16},
    "evaluation": {
        "conditions": ["normal", "null", "shuffle", "P0", "P1"],
        "confirm_conditions": ["first_half", "near"],  # the family does not define near: left out
        "max_new_tokens": 4,
        "text_bytes": [16],
        "scale_gates": [1.0],
    },
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The example package, built and installed by pip into a folder."""
    source, target = tmp_path_factory.mktemp("source") / "plug_example", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def install_package(site: Path, package: str, group: str, name: str, value: str, code: str = "") -> None:
    """Install a package as pip does: a module, and metadata with one entry point."""
    (site / f"{package}.py").write_text(code)
    about = site / f"{package}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


def run_python(site: Path, cwd: Path, *words: object) -> subprocess.CompletedProcess:
    """Run a Python command that finds the packages in a folder installed."""
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=False)


def refused(site: Path, cwd: Path, *words: object) -> str:
    """Run a command that refuses its input, and return its one line of error."""
    done = run_python(site, cwd, *words)
    assert done.returncode == BAD_INPUT, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def config_file(folder: Path, tree: dict, **sections: dict) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**tree, **sections}))
    return file


# --- the example ---------------------------------------------------------------------------------------------


def test_all_four_kinds_are_trained_and_evaluated_by_the_commands(installed, tiny_folder, tmp_path):
    config = config_file(tmp_path, TRIAL, receiver=str(tiny_folder))
    trained = run_python(installed, tmp_path, "-m", "m2ray.train", config, "--out", "run")
    assert trained.returncode == DONE, trained.stderr
    checkpoint = tmp_path / "run" / "seed-0" / "epoch-01"
    (history,) = (tmp_path / "run").rglob("history.json")
    assert all(entry["worst"] >= 0 for entry in json.loads(history.read_text()))
    assert json.loads((checkpoint / "config.json").read_text())["codec"]["encoder"] == "mean_pool"

    words = ("-m", "m2ray.evaluate", checkpoint, "--seeds", "5000:5020", "--out", "rows.parquet")
    evaluated = run_python(installed, tmp_path, *words)
    assert evaluated.returncode == DONE, evaluated.stderr
    rows = read_rows(tmp_path / "rows.parquet")
    assert set(rows.condition) == {*TRIAL["evaluation"]["conditions"], "first_half", "text-16", "scale_gate=1"}
    assert set(rows.task) == {"password-6x3"}
    nll = rows.pivot(index="episode", columns="condition", values="nll")
    assert (nll.first_half - nll.normal).abs().min() > 0

    without = refused(tmp_path / "nothing", tmp_path, *words)
    assert "level 'password-6x3' does not exist; use one of easy" in without, "the package is gone"


@pytest.mark.slow
def test_rays_workers_use_plugins_too(installed, tiny_folder, tmp_path):
    trial = {**TRIAL, "receiver": str(tiny_folder)}
    evaluation = {**trial["evaluation"], "conditions": [*trial["evaluation"]["conditions"], "random", "identity"]}
    evaluation["max_new_tokens"] = 64  # the tiny receiver's tokens are short
    space = {**SPACE, "trial": {**trial, "evaluation": evaluation}, "points": {"plugged": {}}}
    space |= {"axes": {}, "search": {"trials": 0}, "judge": {"select": 0, "confirm": 0, "diagnose": 0}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    done = run_python(installed, tmp_path, "-m", "m2ray.sweep", "space.yaml", "--results", "out")
    assert done.returncode == DONE, done.stdout + done.stderr
    assert len(checkpoints(tmp_path / "out" / "small" / "checkpoints")) == 1
    rows = read_rows(tmp_path / "out" / "small" / "rows.parquet")
    assert (rows[rows.split == "confirm"].condition == "first_half").sum() == 12
    record = yaml.safe_load((tmp_path / "out" / "small" / "sweep.yaml").read_text())
    assert record["packages"]["plug-example"] == "0.1.0"


def test_the_document_shows_the_whole_example():
    shown = (ROOT / "docs" / "plugs.md").read_text()
    files = ("pyproject.toml", "plug_example/password.py", "plug_example/parts.py")
    whole = [(EXAMPLE / file).read_text() for file in files]
    for kind, text in zip(("toml", "python", "python"), whole, strict=True):
        blocks = re.findall(rf"```{kind}\n(.*?)```", shown, re.DOTALL)
        for block in blocks:
            text = text.replace(block, "")
        assert re.fullmatch(r"(\"\"\".*\"\"\")?\s*", text), "all of the file is shown, except its docstring"


@pytest.mark.slow
def test_the_encoder_of_the_document_gets_its_verdict(tmp_path):
    shown = (ROOT / "docs" / "plugs.md").read_text()
    project, code, space = (
        re.findall(rf"```{kind}\n(.*?)```", shown, re.DOTALL)[0] for kind in ("ini", "py", "yml")
    )
    source, site = tmp_path / "my_encoder", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(project)
    (source / "my_encoder.py").write_text(code)
    (tmp_path / "space.yaml").write_text(space)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    smaller = {
        "training.epoch_samples": 64,
        "evaluation.constant_samples": 64,
        "search.seeds": "[0]",
        "judge.diagnose": 0,
        "splits.confirm": "2000:2040",
        "splits.search": "1000:1020",
    }
    words = [word for key, value in smaller.items() for word in ("--set", f"{key}={value}")]
    done = run_python(site, tmp_path, "-m", "m2ray.sweep", "space.yaml", *words)
    assert done.returncode == DONE, done.stdout + done.stderr
    assert re.search(r"^parts: (INVALID SETTING|FAIL|PART|PASS|WHOLE): ", done.stdout, re.MULTILINE)
    assert (tmp_path / "results" / "my-encoder" / "report.html").is_file()


def test_the_configuration_of_the_document_is_valid(installed, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "plugs.md").read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(block)
    line = refused(installed, tmp_path, "-m", "m2ray.train", "config.yaml")
    assert "receiver mini: its vocabulary lacks words of level password-6x3, such as `digit`; use another" in line


# --- broken plugins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it' .*broken.py, line 1"),
        ("", "AttributeError: module 'broken' has no attribute 'named'"),
        ("def named(name):\n    return 1 / 0", r"ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("def named(name):\n    return 'six'", "returned 'six' for 'shaky-6', which is not a Level"),
    ],
    ids=["import", "attribute", "call", "result"],
)
def test_a_family_that_fails_is_one_line_with_package_and_entry_point(tmp_path, code, fault):
    install_package(tmp_path, "broken", "m2ray.tasks", "shaky", "broken:named", code)
    config = config_file(tmp_path, {"task": {"level": "shaky-6"}})
    line = refused(tmp_path, tmp_path, "-m", "m2ray.train", config)
    assert "task.level: plugin of package broken, m2ray.tasks: shaky = broken:named: " in line
    assert re.search(f"{fault}.*; fix or uninstall it$", line), line


@pytest.mark.parametrize(
    ("group", "name", "sections"),
    [
        ("m2ray.tasks", "easy", {"task": {"level": "easy"}}),
        ("m2ray.encoders", "segments", {"codec": {"encoder": "segments"}}),
        ("m2ray.losses", "ce", {"losses": {"ce": {}}}),
        ("m2ray.conditions", "null", {"evaluation": {"conditions": ["null"]}}),
    ],
)
def test_a_name_that_m2ray_itself_defines_is_refused(tmp_path, group, name, sections):
    install_package(tmp_path, "greedy", group, name, "greedy:thing")
    line = refused(tmp_path, tmp_path, "-m", "m2ray.train", config_file(tmp_path, sections))
    claim = f"'{name}' is claimed by m2ray itself and by package greedy, {group}: {name} = greedy:thing; uninstall"
    assert claim in line


def test_a_name_that_two_packages_claim_is_refused_and_others_are_not(tmp_path):
    for package in ("one", "two"):
        install_package(tmp_path, package, "m2ray.encoders", "twice", f"{package}:Encoder")
    line = refused(tmp_path, tmp_path, "-m", "m2ray.train", config_file(tmp_path, {"codec": {"encoder": "twice"}}))
    assert "codec.encoder: 'twice' is claimed by package one, m2ray.encoders: twice = one:Encoder and by" in line
    fine = "from m2ray.config.trial import TrialConfig; TrialConfig()"
    assert run_python(tmp_path, tmp_path, "-c", fine).returncode == DONE


PARTS = """
from torch import nn

class Wide(nn.Module):
    def __init__(self, config, receiver):
        super().__init__()
        self.out = nn.Linear(receiver.width, 3)

    def forward(self, message, k):
        return self.out(message.states_BTD)

def rows(signals, term):
    return signals.nll_B

def none(signals, term):
    return signals.text_answer.logits_BAW
"""


@pytest.mark.parametrize(
    ("group", "name", "value", "sections", "fault"),
    [
        (
            "encoders",
            "wide",
            "Wide",
            {"codec": {"encoder": "wide", "k": 2}},
            r"gave shape \[16, \d+, 3\], expected ",
        ),
        ("losses", "rows", "rows", {"losses": {"rows": {}}}, r"gave shape \[16\], expected a tensor without"),
        (
            "losses",
            "teacher",
            "none",
            {"losses": {"teacher": {}}},
            "AttributeError: 'NoneType' object has no attribute",
        ),
    ],
    ids=["shape", "rows", "raises"],
)
def test_a_part_that_breaks_while_training_is_named(tmp_path, tiny_folder, group, name, value, sections, fault):
    install_package(tmp_path, "parts", f"m2ray.{group}", name, f"parts:{value}", PARTS)
    config = config_file(tmp_path, {**TRIAL, "task": {}, "codec": {"k": 4}, "losses": {"ce": {}}}, **sections)
    config.write_text(config.read_text() + f"receiver: {tiny_folder}\n")
    tree = yaml.safe_load(config.read_text())
    tree["evaluation"]["confirm_conditions"].remove("first_half")
    config.write_text(yaml.safe_dump(tree))
    line = refused(tmp_path, tmp_path, "-m", "m2ray.train", config)
    assert f"config.yaml: plugin of package parts, m2ray.{group}: {name} = parts:{value}: " in line
    assert re.search(fault, line), line


def test_a_configuration_knows_the_built_in_names():
    assert tuple(encoder_registry.ENCODERS) == trial.ENCODERS
    assert tuple(conditions.CONDITIONS) == condition_names.NAMES


def test_names_are_known_without_importing_the_plugin(tmp_path):
    install_package(tmp_path, "lazy", "m2ray.encoders", "lazy", "lazy:Encoder", "raise SystemExit('imported')")
    code = (
        "import sys; from m2ray.config.trial import CodecConfig; CodecConfig(encoder='lazy'); "
        "assert not {'lazy', 'torch'} & set(sys.modules)"
    )
    done = run_python(tmp_path, tmp_path, "-c", code)
    assert done.returncode == DONE, done.stderr


def test_the_error_for_an_unknown_name_lists_those_of_plugins_too(installed, tmp_path):
    for sections, message in (
        ({"codec": {"encoder": "mean_pol"}}, "'mean_pol' does not exist; use 'last_token', .* or 'mean_pool'"),
        ({"losses": {"wrst": {}}}, "losses.wrst: unknown key"),
        ({"task": {"level": "pass"}}, "level 'pass' does not exist; use one of easy, .*, password"),
        ({"task": {"level": "password-3"}}, "level 'password-3' does not exist"),
        ({"evaluation": {"conditions": ["half"]}}, "condition 'half' does not exist; use some of .*, first_half"),
    ):
        line = refused(installed, tmp_path, "-m", "m2ray.train", config_file(tmp_path, sections))
        assert re.search(message, line), line
