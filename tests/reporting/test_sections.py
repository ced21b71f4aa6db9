"""A configuration's report: every section of the reference report, for Markdown and page alike."""

import hashlib
import json
import re

import pytest
from made_diagnoses import healthy_diagnosis, without_gain
from made_reports import BAD, CARRIES, content_rows, results_folder, run_rows

from m2ray.config.gate_file import load_gate
from m2ray.diagnosis.report import root_cause
from m2ray.diagnosis.store import diagnosis_folder
from m2ray.evaluation.rows import RowStore
from m2ray.judging.verdict import FAIL, PASS
from m2ray.reporting.build import config_sections
from m2ray.reporting.document import Bullets, Commands, Grid, section_markdown
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard
from m2ray.util.files import write_json
from m2ray.util.tables import markdown

REFERENCE, CONTENT = load_gate("reference"), load_gate("content")
RECORD = {
    "receiver": {"name": "mini", "digest": "r"},
    "space": {"trial": {"losses": {"ce": {"weight": 1.0}, "contrast": None, "states": {"weight": 50.0}}}},
    "points": {"winner": {"losses": {"ce": {"weight": 1.0}, "help": {"weight": 0.5}, "states": None}}},
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a codec that passes on two seeds, and one that does better with a wrong message."""
    parts = [run_rows("winner", seed=0), run_rows("winner", seed=1), run_rows("loser", BAD)]
    return results_folder(tmp_path, *parts)


def section_of(folder, config, record=RECORD, gate=REFERENCE):
    rows = RowStore(folder).read()
    runs = judge_runs(rows, gate)
    sections = config_sections(folder, runs, make_leaderboard(rows, runs, gate), gate, record)
    return next(section for section in sections if section.title == config)


def find(section, title):
    """Return the first section with a title, at any depth."""
    return next((s for s in all_sections(section) if s.title == title), None)


def all_sections(section):
    yield section
    for part in section.parts:
        yield from all_sections(part)


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def test_a_failed_configuration_has_the_reference_reports_sections(folder):
    section = section_of(folder, "loser")
    assert [s.title for s in all_sections(section)] == [
        "loser",
        "Summary",
        "Configuration",
        "Training seed 0, split confirm, k = 4",
        "Primary metrics",
        "Statistical summary",
        "Gate sweep results",
        "Communication-matters subset",
        "Retention",
        "Answers that cannot be read",
        "Nats per answer value",
        "Critical finding: shuffle > normal",
        "Decision log",
        "Artifacts",
        "Commands",
    ]


def test_markdown_has_each_section_as_a_heading_and_each_table(folder):
    section = section_of(folder, "loser")
    text = section_markdown(section)
    levels = [("#", section), *(("##", part) for part in section.parts)]
    levels += [("###", part) for parent in section.parts for part in parent.parts]
    for mark, part in levels:
        assert f"{mark} {part.title}" in text.splitlines()
    assert len(levels) == len(list(all_sections(section)))
    assert re.search(r"\| training.lr +\| 0.001 +\|", text)
    assert "```\npython -m m2ray.gate results/" in text


def test_the_critical_finding_gives_the_results_that_contradict_the_codec(folder):
    (found,) = blocks(find(section_of(folder, "loser"), "Critical finding: shuffle > normal"), Bullets)
    assert found.lines[0].startswith(
        "A wrong message does better, 34.0% (68/200), than the right one, 32.0% (64/200)"
    )
    runs = judge_runs(RowStore(folder).read(), REFERENCE)
    verdict = next(run.verdict for run in runs if run.config == "loser")
    failed = [result.sentence for result in verdict.results if not result.passed]
    assert [line.partition(": ")[2] for line in found.lines[2:]] == failed
    assert not [s for s in all_sections(section_of(folder, "winner")) if s.title.startswith("Critical")]


def test_a_codec_that_is_ignored_has_another_finding_than_one_that_is_backwards(tmp_path):
    ignored = {**BAD, "normal": 0.32, "shuffle": 0.31}
    section = section_of(results_folder(tmp_path, run_rows("ignored", ignored)), "ignored")
    (title,) = [s.title for s in all_sections(section) if s.title.startswith("Critical")]
    assert title == "Critical finding: the message's content makes no difference"
    assert "does not depend on the message's content" in blocks(find(section, title), Bullets)[0].lines[0]


# --- by the gate content -------------------------------------------------------------------------------------


def test_the_amount_is_given_over_the_seeds_and_for_each(tmp_path):
    section = section_of(results_folder(tmp_path, content_rows("a")), "a", gate=CONTENT)
    titles = [s.title for s in all_sections(section)]
    assert titles[:5] == ["a", "Summary", "Over 3 training seeds", "Amount over 3 training seeds", "Configuration"]
    assert titles.count("Amount") == 3
    (together,) = blocks(find(section, "Amount over 3 training seeds"), Bullets)
    assert [line.partition(" ")[0] for line in together.lines] == ["keeps", "is", "+40.0", "+25.0", "B"]
    rates, criteria = blocks(find(section, "Over 3 training seeds"), Grid)
    assert ["normal", "75.0%"] in [row[:2] for row in rates.table]
    judged = [c.name for c in CONTENT.criteria if c.against not in ("matched", "rotate")]
    assert [row[1] for row in criteria.table[1:]] == judged
    assert blocks(find(section, "Summary"), Bullets)[0].lines[0].startswith("Over 3 training seeds: PASS: keeps ")


def test_one_seed_has_its_amount_and_nothing_over_seeds(tmp_path):
    section = section_of(results_folder(tmp_path, content_rows("a", seeds=(5,))), "a", gate=CONTENT)
    titles = [s.title for s in all_sections(section)]
    assert titles.count("Amount") == 1
    assert not [title for title in titles if title.startswith(("Over", "Amount over"))]
    assert not [title for title in titles if title.startswith("Critical")]


def test_an_invalid_setting_is_not_a_finding_about_the_codec(tmp_path):
    shares = {**CARRIES, "P1": 0.35, "normal": 0.2, "shuffle": 0.4}
    section = section_of(results_folder(tmp_path, content_rows("a", shares, seeds=(0,))), "a", gate=CONTENT)
    (found,) = blocks(find(section, "Critical finding: the setting is not valid"), Bullets)
    assert found.lines[0].startswith("This is not a finding about the codec")
    assert found.lines[1].startswith("validity, text leaves room: P1 - P0 = +5.0 points")


def test_a_codec_that_reads_a_changed_message_as_well_has_a_finding_about_that_alone(tmp_path):
    folder = results_folder(tmp_path, content_rows("a", {**CARRIES, "near": 0.75}, seeds=(0,)))
    (found,) = blocks(
        find(
            section_of(folder, "a", gate=CONTENT), "Critical finding: a message with one fact changed does as well"
        ),
        Bullets,
    )
    assert "may carry only a part of the message" in found.lines[0]
    assert found.lines[1].startswith("content, right beats nearly right: normal - near = +0.0 points")


# --- by the reference gate -----------------------------------------------------------------------------------


def test_the_decision_log_has_a_line_for_each_criterion_that_applies(folder):
    grid = blocks(find(section_of(folder, "loser"), "Decision log"), Grid)[0].table
    applies = [c for c in REFERENCE.criteria if c.applies(4)]
    assert [(row[0], row[1]) for row in grid[1:]] == [(c.gate, c.name) for c in applies]
    assert {row[3] for row in grid[1:]} == {PASS, FAIL}


def test_the_configuration_names_receiver_task_objective_and_episodes(folder):
    table = dict(blocks(find(section_of(folder, "winner"), "Configuration"), Grid)[0].table[1:])
    assert table["receiver (frozen)"] == "mini (digest r)"
    assert table["training objective"] == "1 ce + 0.5 help"
    assert (table["task"], table["evaluation"]) == ("easy", "greedy, n = 200 per condition")
    assert table["episodes"] == "2000 to 2199, split confirm"
    sampled = dict(blocks(find(section_of(folder, "loser"), "Configuration"), Grid)[0].table[1:])
    assert sampled["training objective"] == "1 ce + 50 states"
    bare = dict(blocks(find(section_of(folder, "loser", {}), "Configuration"), Grid)[0].table[1:])
    assert "training objective" not in bare


def test_a_searched_weight_of_a_loss_replaces_the_spaces(tmp_path):
    params = {"losses.states.weight": 7.0, "losses.contrast.weight": None}
    folder = results_folder(tmp_path, run_rows("sampled", params=params))
    table = dict(blocks(find(section_of(folder, "sampled"), "Configuration"), Grid)[0].table[1:])
    assert table["training objective"] == "1 ce + 7 states"


def test_artifacts_have_their_digests_and_published_codecs_are_found_by_theirs(folder):
    for name, digest in (("best", "winner-1-10"), ("other", "somebody-else"), ("strange", None)):
        write_json(folder / name / "config.json", {"digest": digest} if digest else [])
    section = section_of(folder, "winner")
    seeds = [find(part, "Artifacts") for part in section.parts if part.parts]
    first, second = ("\n".join(blocks(seed, Bullets)[0].lines) for seed in seeds)
    sha = hashlib.sha256((folder / "rows.parquet").read_bytes()).hexdigest()
    assert "checkpoint digest `winner-0-10`, step 10" in first
    assert f"`rows.parquet`, SHA-256 `{sha}`" in first
    assert "`best/`" in second
    assert "`best/`" not in first
    assert "other" not in first + second
    (commands,) = blocks(find(section, "Commands"), Commands)
    assert [line.split()[2] for line in commands.lines] == ["m2ray.gate", "m2ray.report", "m2ray.evaluate"]
    assert commands.lines[2].startswith(f"python -m m2ray.evaluate results/{folder.name}/best --episodes ")


def test_a_diagnosis_gives_its_sentences_root_cause_and_figures(folder):
    found = without_gain(healthy_diagnosis())
    about = {"config": "loser", "seed": 0, "n": 1000, "seeds": "0:1000"}
    data = {**found.json(), "root_cause": root_cause(found)}
    write_json(diagnosis_folder(folder, "loser", 0) / "diagnosis.json", {**data, "about": about})
    section = section_of(folder, "loser")
    lines = blocks(find(section, "Diagnosis"), Bullets)[0].lines
    assert lines == [f"{finding.name}: {finding.sentence}" for finding in found.findings]
    cause = find(section, "Root cause")
    assert blocks(cause, Grid)[0].table == json.loads(json.dumps(root_cause(found)))
    text = section_markdown(section)
    assert "![Where the message is lost](../diagnoses/loser-seed-0/stages.png)" in text
    assert "[all figures](../diagnoses/loser-seed-0/diagnosis.md)" in text


def test_a_pipe_in_a_cell_does_not_split_it():
    text = markdown([["a", "b"], ["one|two", "three"]])
    assert text.splitlines()[2] == "| one\\|two | three |"
