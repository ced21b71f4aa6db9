"""The diagnoses of a sweep: in the configurations' reports, in one table, repeated only if missing."""

import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from made_diagnoses import estimate, healthy_diagnosis, without_gain
from made_reports import results_folder, run_rows
from sweeps import sweep, write_space

from m2ray.diagnosis.findings import Gap, Success
from m2ray.diagnosis.report import root_cause
from m2ray.diagnosis.store import diagnosis_folder, read_diagnosis, record_failure
from m2ray.reporting.build import build
from m2ray.reporting.diagnosis_table import seed_table
from m2ray.util.errors import UserError
from m2ray.util.files import write_json


def write_diagnosis(root, config, seed, d, n=1000):
    """Write a diagnosis where a sweep would write it."""
    d = replace(d, about=d.about | {"config": config, "seed": seed, "n": n, "seeds": "0:1000"})
    write_json(diagnosis_folder(root, config, seed) / "diagnosis.json", {**d.json(), "root_cause": root_cause(d)})


def solving(d, successes):
    return replace(d, success=d.success | {"normal": Success(successes, 1000, 0.2)})


@pytest.fixture
def folder(tmp_path):
    """A sweep of three arms: the control on two seeds, a fix on three, one that failed on one of its two."""
    root = results_folder(tmp_path / "r", run_rows("fix"), run_rows("control", seed=1))
    (root / "sweep.yaml").write_text(yaml.safe_dump({"points": {"control": {}, "fix": {}}}))
    for seed in (0, 1):
        write_diagnosis(root, "control", seed, without_gain(healthy_diagnosis()))
    for seed, successes in enumerate((600, 700, 800)):
        write_diagnosis(root, "fix", seed, solving(healthy_diagnosis(), successes))
    write_diagnosis(root, "also", 0, healthy_diagnosis())
    record_failure(diagnosis_folder(root, "also", 1), "also", 1, "evaluator died, 3 times")
    return root


def test_the_table_has_one_row_an_arm_with_means_ranges_and_findings(folder):
    build(folder)
    table = pd.read_csv(folder / "diagnoses" / "table.csv").set_index("arm")
    assert list(table.index) == ["control", "fix", "also"]  # the points in the space's order, then by name
    fix = table.loc["fix"]
    assert (fix.normal, fix.normal_min, fix.normal_max) == (0.7, 0.6, 0.8)
    assert (fix.seeds, fix.n, fix.shuffle, fix.shuffle_gap_digits, fix.shuffle_gap_format) == (
        "0 1 2",
        1000,
        0.1,
        0.5,
        0,
    )
    assert (fix.probe_tokens, fix.probe_prefix, fix.prefix_cosine) == (0.95, 0.95, 0.4)
    assert (fix.effective_rank, fix.prefix_norm) == (20, 1.5)
    assert fix.findings == "healthy 3/3, kept 3/3"
    assert math.isnan(fix.constant)  # without ceilings
    assert table.loc["also", "seeds"] == "0" or table.loc["also", "seeds"] == 0
    text = (folder / "diagnoses" / "table.md").read_text()
    assert re.search(r"\| fix +\| 0 1 2 +\| 1000 +\| 70.0 \[60.0, 80.0\] ", text)
    assert "- also, seed 1: failed: evaluator died, 3 times" in text
    assert (folder / "diagnoses" / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "diagnoses" / "table.svg").read_text()


def test_a_configurations_report_holds_sentences_root_cause_and_figures_of_its_seed(folder):
    build(folder)
    text = (folder / "attempts" / "control.md").read_text()
    sentence = without_gain(healthy_diagnosis()).findings[0].sentence
    assert f"- wrong_hurts: {sentence}" in text
    assert "| Does B read it? " in text
    for name in ("stages.png", "maps.png", "diagnosis.md"):
        assert f"(../diagnoses/control-seed-1/{name})" in text
    assert "### Diagnosis" in (folder / "attempts" / "fix.md").read_text()


def test_a_sweep_without_diagnoses_has_no_table(tmp_path):
    root = results_folder(tmp_path / "r", run_rows("a"))
    build(root)
    assert not (root / "diagnoses").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"about": {"config": "a", "seed": 0}}', '{"about": 3}'])
def test_a_damaged_diagnosis_is_one_line(folder, content):
    file = diagnosis_folder(folder, "fix", 0) / "diagnosis.json"
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file}: not a diagnosis; remove it and run the sweep with --resume"):
        build(folder)


def test_gaps_of_digits_and_format_are_separate(tmp_path):
    d = healthy_diagnosis()
    write_diagnosis(tmp_path, "a", 0, replace(d, gaps=d.gaps | {"shuffle": Gap(estimate(0.2), estimate(0.03))}))
    seeds, failed = seed_table(tmp_path)
    assert (seeds.shuffle_gap_digits[0], seeds.shuffle_gap_format[0], failed) == (0.2, 0.03, [])


@pytest.mark.slow
def test_a_sweep_diagnoses_what_it_judged_and_resumes_only_what_is_missing(tmp_path):
    short = {"training.epochs": 1, "codec.encoder": "last_token"}
    points = {"one": {"set": short}, "two": {"set": {**short, "codec.k": 4}}}
    judge = {"select": 0, "confirm": 0, "diagnose": 100, "diagnose_seeds": "all"}
    space = write_space(tmp_path, points=points, search={"trials": 0}, axes={}, judge=judge)
    options = [space, "--results", tmp_path, "--seeds", "0,1"]
    done = sweep(*options)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "small"
    names = ["one-seed-0", "one-seed-1", "two-seed-0", "two-seed-1"]
    assert sorted(p.name for p in (root / "diagnoses").iterdir() if p.is_dir()) == names
    assert "diagnose: 4 codecs on 100 messages" in done.stdout
    leaderboard = pd.read_csv(root / "leaderboard.csv")
    of_one_seed = leaderboard[leaderboard.seed.notna()].astype({"seed": int})
    assert len(of_one_seed) == 4
    for name, seed, digest in of_one_seed[["config", "seed", "checkpoint"]].itertuples(index=False):
        found = read_diagnosis(diagnosis_folder(root, name, seed))
        assert (found["about"]["checkpoint"], found["about"]["n"]) == (digest, 100)
        assert set(found["success"]) == {"normal", "shuffle", "null", "P0", "P1", "constant", "free"}
        text = (root / "attempts" / f"{name}.md").read_text()
        assert f"(../diagnoses/{name}-seed-{seed}/maps.png)" in text
    assert pd.read_csv(root / "diagnoses" / "table.csv").seeds.tolist() == ["0 1", "0 1"]

    before = {name: (root / "diagnoses" / name / "diagnosis.json").stat().st_mtime_ns for name in names}
    (root / "diagnoses" / "one-seed-1" / "diagnosis.json").unlink()
    (root / "diagnoses" / "two-seed-0" / "diagnosis.json").unlink()
    (root / "checkpoints" / "two" / "seed-0" / "epoch-01" / "codec.safetensors").unlink()
    again = sweep(*options, "--resume")
    assert again.returncode == 3
    assert re.fullmatch(r"failed: two, seed 0: diagnosis: .*codec.safetensors.*\n", again.stderr)
    assert again.stdout.count("diagnosis on 100 messages") == 2
    for name in ("one-seed-0", "two-seed-1"):
        assert (root / "diagnoses" / name / "diagnosis.json").stat().st_mtime_ns == before[name]
    assert read_diagnosis(root / "diagnoses" / "one-seed-1")["findings"]
    assert "codec.safetensors" in json.loads((root / "diagnoses/two-seed-0/diagnosis.json").read_text())["failed"]
    pd.testing.assert_frame_equal(pd.read_csv(root / "leaderboard.csv"), leaderboard)  # no verdict is taken away
    assert "Failed: " in (root / "attempts" / "two.md").read_text()
