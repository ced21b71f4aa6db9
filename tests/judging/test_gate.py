"""The judge: the reference report to the decimal, each criterion, the joins, the command and its bad input."""

import subprocess
import sys

import pandas as pd
import pytest
from made_rows import GOOD, make_rows

from m2ray.cli.gate import main
from m2ray.cli.runner import run_command
from m2ray.config.gate_file import GateConfig, load_gate
from m2ray.evaluation.row_selection import judged_rows
from m2ray.evaluation.rows import write_rows
from m2ray.judging.criteria import compare_to_bar
from m2ray.judging.gate import judge, judge_counts
from m2ray.judging.holm import holm_corrected
from m2ray.judging.verdict import FAIL, NOT_APPLICABLE, PASS
from m2ray.judging.verdict_tables import primary_table, retention_line
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

REPORT = "normal=11/50,null=12/50,random=14/50,shuffle=16/50,P0=10/50"
GATE = load_gate("reference")


def judge_made(rows=None, config="a", seed=0, split="confirm", **shape):
    rows = make_rows(**shape) if rows is None else rows
    return judge(judged_rows(rows, config, seed, split), GATE)


def criterion_result(verdict, name):
    return next(r for r in verdict.results if r.name == name)


def command(*argv):
    return subprocess.run([sys.executable, "-m", "m2ray.gate", *map(str, argv)], capture_output=True, text=True)


def table_of(text, title):
    lines = text.split(title + "\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


# --- the reference report ------------------------------------------------------------------------------------


def test_counts_print_the_reference_report_and_exit_1():
    done = command("--counts", REPORT, "--p1", "34/50", "--k", 4, "--gate", "reference")
    assert done.returncode == 1
    assert done.stderr == ""
    assert table_of(done.stdout, "Primary Metrics") == [
        ["Condition", "Success Rate", "Expected", "Status"],
        ["Normal", "22.0% (11/50)", "> 30%", "FAIL"],
        ["Null", "24.0% (12/50)", "~20%", "OK"],
        ["Random", "28.0% (14/50)", "~20%", "Slightly high"],
        ["Shuffle", "32.0% (16/50)", "< 20%", "BACKWARDS"],
    ]
    assert table_of(done.stdout, "Statistical Summary")[:6] == [
        ["Condition", "Success Rate", "95% CI"],
        ["Normal", "22.0%", "[12.8%, 35.2%]"],
        ["Null", "24.0%", "[14.3%, 37.4%]"],
        ["Random", "28.0%", "[17.5%, 41.7%]"],
        ["Shuffle", "32.0%", "[20.8%, 45.8%]"],
        ["P0 baseline", "20.0%", "[11.2%, 33.0%]"],
    ]
    for line in (
        "Gate 1 Criterion: CI_low >= 30.0%",
        "Result: CI_low = 12.8% < 30.0% -> FAIL",
        "Needed at n = 50: 22 successes (44.0%)",
        "Verdict: FAIL - BACKWARDS: a wrong message does better than the right one; 'normal clears the bar' does "
        "not hold: CI_low(normal) = 12.8% < 30.0%",
        "Not judged, as it needs rows: text helps, identity is the text, right beats wrong, right beats nothing.",
    ):
        assert line in done.stdout.splitlines()


def test_the_reference_reports_counts_without_p1_at_the_default_k():
    done = command("--counts", REPORT, "--gate", "reference")
    assert done.returncode == 1
    assert "P1 full text" not in done.stdout
    assert "decides below" not in done.stdout


def test_good_counts_exit_0():
    counts = "normal=30/50,null=10/50,random=11/50,shuffle=5/50,P0=10/50"
    done = command("--counts", counts, "--gate", "reference")
    assert done.returncode == 0, done.stdout
    assert "Verdict: PASS - all criteria hold" in done.stdout


@pytest.mark.parametrize(
    ("normal", "n", "passed"),
    [(22, 50, True), (21, 50, False), (39, 100, True), (38, 100, False), (329, 1000, True), (328, 1000, False)],
)
def test_gate1_turns_at_the_known_number_of_successes(normal, n, passed):
    low = {name: (n // 10, n) for name in ("null", "random", "P0")}
    verdict = judge_counts({"normal": (normal, n), "shuffle": (0, n), **low}, 4, GATE)
    assert verdict.passed == passed


def test_a_near_miss_is_not_printed_as_a_tie():
    assert compare_to_bar(0.29961, 0.3) == "29.96% < 30.00%"
    assert compare_to_bar(0.3, 0.3) == "30.0% >= 30.0%"


def test_the_bar_rises_with_p0():
    counts = {"normal": (30, 50), "null": (25, 50), "random": (25, 50), "shuffle": (5, 50), "P0": (25, 50)}
    verdict = judge_counts(counts, 4, GATE)
    clears = criterion_result(verdict, "normal clears the bar")
    assert not clears.passed
    assert clears.threshold == 0.6
    assert clears.measured == pytest.approx(0.4618, abs=1e-4)
    assert "< 60.0%" in verdict.reason


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"null": (12, 50)}, "OK"),
        ({"null": (13, 50)}, "Slightly high"),
        ({"null": (2, 50)}, "Slightly low"),
        ({"null": (40, 50)}, "FAIL"),
        ({"shuffle": (4, 50)}, "OK"),
        ({"shuffle": (10, 50)}, "FAIL"),
        ({"shuffle": (31, 50)}, "BACKWARDS"),
        ({"normal": (21, 50)}, "FAIL"),
        ({"normal": (22, 50)}, "OK"),
    ],
)
def test_statuses(changed, status):
    counts = {"normal": (30, 50), "null": (10, 50), "random": (10, 50), "shuffle": (5, 50), "P0": (10, 50)}
    table = primary_table({**counts, **changed}, 4, GATE)
    assert {row[0].lower(): row[3] for row in table[1:]}[next(iter(changed))] == status


def test_a_wrong_message_cannot_fall_below_nothing():
    counts = {"normal": (95, 100), "shuffle": (5, 100), "P0": (0, 100)}
    for wrong, status in ((5, "untestable"), (6, "FAIL")):
        assert primary_table({**counts, "shuffle": (wrong, 100)}, 4, GATE)[-1][2:] == ["<= 5%", status]


# --- which gate judges which k -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "gate1", "gate2"), [(1, 1, 0), (4, 1, 0), (8, 1, 0), (12, 1, 0), (16, 0, 1), (64, 0, 1)]
)
def test_every_k_has_exactly_one_gate(k, gate1, gate2):
    verdict = judge_made(k=k)
    assert verdict.passed
    assert verdict.gate("gate1") == (PASS if gate1 else NOT_APPLICABLE)
    assert verdict.gate("gate2") == (PASS if gate2 else NOT_APPLICABLE)
    assert verdict.gate("validity") == verdict.gate("semantic") == PASS


def test_gate2_needs_half_of_the_text():
    counts = {"P0": (10, 50), "P1": (34, 50), "shuffle": (5, 50)}
    for normal, passed in ((23, False), (24, True)):
        verdict = judge_counts({"normal": (normal, 50), **counts}, 16, GATE)
        assert criterion_result(verdict, "half of the text").threshold == 0.34
        assert verdict.gate("gate2") == (PASS if passed else FAIL)


# --- what must never pass ------------------------------------------------------------------------------------


def test_backwards_never_passes_even_from_counts_beyond_gate1():
    counts = {"normal": (40, 50), "shuffle": (45, 50), "P0": (10, 50), "P1": (34, 50)}
    verdict = judge_counts(counts, 16, GATE)
    assert verdict.backwards
    assert verdict.verdict == FAIL
    assert verdict.reason.startswith("BACKWARDS")


def test_half_of_a_useless_text_is_not_a_bar():
    counts = {"normal": (1, 50), "shuffle": (0, 50), "P0": (10, 50), "P1": (0, 50)}
    assert not judge_counts(counts, 16, GATE).passed


def test_a_gate_with_nothing_to_judge_is_refused():
    paired = {"gate": "semantic", "name": "s", "kind": "mcnemar", "condition": "normal", "against": "shuffle"}
    gate = validate(GateConfig, {"name": "only rows", "criteria": [paired]}, "test")
    with pytest.raises(UserError, match="no criterion can be judged"):
        judge_counts({"normal": (50, 50), "shuffle": (0, 50)}, 4, gate)


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ({"P1": 0.3}, "text helps"),
        ({"identity": 0.8}, "identity is the text"),
        ({"normal": 0.4}, "normal clears the bar"),
        ({"null": 0.6}, "null is no information"),
        ({"random": 0.05}, "random is no information"),
        ({"shuffle": 0.3}, "a wrong message misleads"),
        ({"shuffle": 0.8}, "not backwards"),
        ({"shuffle": 0.73}, "right beats wrong"),
        ({"null": 0.73}, "right beats nothing"),
    ],
)
def test_each_criterion_fails_on_its_own_fault(shares, name):
    verdict = judge_made(shares={**GOOD, **shares})
    assert not criterion_result(verdict, name).passed
    assert verdict.verdict == FAIL
    first = verdict.failed[0]
    assert f"'{first.name}' does not hold: {first.sentence}" in verdict.reason


@pytest.mark.parametrize(
    ("p0", "shuffle", "holds"),
    [(0, 0, True), (0, 2, True), (0, 3, False), (2, 2, True), (3, 2, True), (3, 3, False), (20, 19, True)],
)
def test_where_b_alone_solves_nearly_nothing_a_wrong_message_need_not_make_it_worse(p0, shuffle, holds):
    """The floor is 5 %: of 50, 2."""
    counts = {"normal": (45, 50), "null": (p0, 50), "random": (p0, 50), "P1": (48, 50)}
    verdict = judge_counts({**counts, "shuffle": (shuffle, 50), "P0": (p0, 50)}, 4, GATE)
    assert criterion_result(verdict, "a wrong message misleads").passed == holds


def test_identity_compares_answers_not_scores():
    rows = make_rows()
    one = rows.index[rows.condition == "identity"][7]
    rows.loc[one, "answer"] = "something else"
    verdict = judge_made(rows)
    assert (
        criterion_result(verdict, "identity is the text").sentence
        == "identity gives P1's answer in 199 of 200 episodes"
    )
    assert not verdict.passed


# --- pairing and joins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["normal", "null", "random", "shuffle", "P0", "P1", "identity"])
def test_a_missing_condition_is_named(condition):
    rows = make_rows()
    with pytest.raises(UserError, match=f"condition {condition}: missing"):
        judge_made(rows[rows.condition != condition])


@pytest.mark.parametrize("condition", ["null", "random", "P0", "identity"])
def test_conditions_on_other_episodes_are_refused(condition):
    rows = make_rows()
    for spoiled in (
        rows[(rows.condition != condition) | (rows.episode < 2050)],
        rows.assign(episode=rows.episode.where(rows.condition != condition, rows.episode + 1)),
    ):
        with pytest.raises(UserError, match=f"condition {condition}: not on the episodes"):
            judge_made(spoiled)


def test_order_of_rows_does_not_matter():
    rows = make_rows()
    assert judge_made(rows.sample(frac=1, random_state=0)) == judge_made(rows)


def test_episodes_given_twice_are_refused():
    rows = make_rows()
    with pytest.raises(UserError, match="condition normal, episode 2000: given twice"):
        judge_made(pd.concat([rows, rows[rows.condition == "normal"].assign(decoding="greedy")]))


def test_only_the_last_checkpoint_and_its_own_free_rows_count():
    early = make_rows({"normal": 0.0, "random": 0.3, "shuffle": 0.15}, step=5)
    early = early[early.config != ""]
    other_k = make_rows({"null": 0.0}, k=8)
    strangers = [
        other_k[other_k.condition == "null"],
        make_rows({"P0": 1.0, "P1": 0.0}, receiver="other"),
        make_rows({"P0": 1.0, "P1": 0.0}, split="select"),
        make_rows({"P0": 1.0, "P1": 0.0}).assign(decoding="t=0.3"),
    ]
    mixed = pd.concat([early, make_rows(), *strangers])
    assert judge_made(mixed) == judge_made()


def test_holm_corrects_over_the_family():
    verdicts = [judge_made(shares={**GOOD, "shuffle": share}) for share in (0.15, 0.67, 0.67, 0.67)]
    alone = criterion_result(verdicts[1], "right beats wrong")
    assert alone.passed
    assert 0.01 < alone.p_value <= 0.05
    corrected = holm_corrected(verdicts)
    assert corrected[0].passed
    for verdict in corrected[1:]:
        right = criterion_result(verdict, "right beats wrong")
        assert not right.passed
        assert right.p_value > alone.p_value
        assert right.measured == right.p_value
        assert "Holm" in right.sentence
        assert verdict.gate("semantic") == FAIL
    assert holm_corrected([]) == []


# --- the command on rows -------------------------------------------------------------------------------------


@pytest.fixture
def rows_file(tmp_path):
    curve = {"scale_gate=0": 0.3, "scale_gate=0.25": 0.5, "scale_gate=1.5": 0.75, "text-16": 0.4}
    good = make_rows({**GOOD, **curve}, config="good")
    poor = make_rows({**GOOD, "normal": 0.35}, config="poor")
    worst = make_rows({**GOOD, "normal": 0.16}, config="worst")
    search = make_rows(config="poor", split="search")
    path = tmp_path / "rows.parquet"
    write_rows(
        path, pd.concat([good, poor[poor.config != ""], worst[worst.config != ""], search], ignore_index=True)
    )
    return path


def test_rows_add_what_counts_cannot_give(rows_file):
    done = command(rows_file, "--config", "good", "--seed", 0, "--split", "confirm")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = make_rows()
    normal, null = (rows[rows.condition == c].success.to_numpy() for c in ("normal", "null"))
    assert f"- Episodes where Null fails: {(~null).sum()}/200" in done.stdout
    assert f"({(normal & ~null).sum()}/{(~null).sum()})" in done.stdout
    assert "Retention (normal - P0) / (P1 - P0): 0.75 [0." in done.stdout
    assert table_of(done.stdout, "Gate Sweep Results")[1:] == [
        ["0.00", "30.0% (60/200)", ""],
        ["0.25", "50.0% (100/200)", ""],
        ["1.50", "75.0% (150/200)", "Peak"],
    ]
    assert "McNemar p" in done.stdout
    line = "These statuses and results are those of gate reference; gate content decides below."
    assert line in done.stdout.splitlines()


def test_a_fail_among_those_judged_exits_1(rows_file):
    done = command(rows_file)
    assert done.returncode == 1
    assert done.stdout.count("Verdict: ") == 3
    assert "split search" not in done.stdout


def test_requesting_one_configuration_does_not_shrink_its_family(rows_file, capsys):
    def tests_of_poor(*argv):
        main([str(rows_file), "--gate", "reference", *argv])
        printed = capsys.readouterr().out.split("# poor, ")[1].split("\n# ")[0]
        return [" ".join(line.split()) for line in printed.splitlines() if "Holm" in line]

    assert len(tests_of_poor()) == 2
    assert tests_of_poor("--config", "poor") == tests_of_poor()


def test_retention_without_interval_gives_the_reason():
    from m2ray.judging.statistics import Estimate

    nan = float("nan")
    assert retention_line(Estimate(nan, nan, nan)) == "not defined: P1 does not beat P0"
    assert retention_line(Estimate(0.5, nan, nan)).startswith("0.50, no bounded interval")
    assert retention_line(Estimate(0.5, 0.4, 0.6)) == "0.50 [0.40, 0.60]"


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--counts", "normal=60/50"], "more successes than episodes"),
        (["--counts", "normal=-1/50"], "is not a count"),
        (["--counts", "normal=a/b"], "is not a count"),
        (["--counts", "normal=11/0"], "is not a count"),
        (["--counts", "normal=11"], "is not a count"),
        (["--counts", f"normal={'1' * 5000}/50"], "is not a count"),
        (["--counts", "normal=٣/50"], "is not a count"),
        (["--counts", "normal=11/50,normal=12/50"], "given twice"),
        (["--counts", "noraml=11/50"], "'noraml' does not exist"),
        (["--counts", ""], "does not exist"),
        (["--counts", "normal=11/50", "--p1", "34/50"], "condition P0: missing"),
        (["--counts", REPORT, "--k", "0"], "--k: 0"),
        (["--counts", REPORT, "--k", "-4"], "--k: -4"),
        (["--counts", REPORT, "--k", "four"], "--k"),
        (["--counts", REPORT, "--k", "16", "--gate", "reference"], "condition P1: missing"),
        (["--counts", REPORT, "--p1", "60/50"], "--p1: 60/50"),
        (["--counts", REPORT + ",P1=34/50", "--p1", "34/50"], "--p1: P1 is in --counts already"),
        (["--counts", REPORT, "--split", "confirm"], "--split: goes with a file"),
        (["--counts", REPORT, "--gate", "missing.yaml"], "missing.yaml: no such file"),
        (["--counts", REPORT, "--gate", "contents"], "neither a file nor one of the gates content, reference"),
        (["missing.parquet"], "missing.parquet: no such file"),
        (["missing.parquet", "--k", "4"], "--k: goes with --counts"),
        ([], "give a file or --counts"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gate", *argv])
    with pytest.raises(SystemExit) as done:
        run_command(main)
    assert done.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_bad_rows_files_are_named(rows_file, tmp_path):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(rows_file.read_bytes()[:-50])
    short = tmp_path / "short.parquet"
    pd.read_parquet(rows_file).drop(columns="success").to_parquet(short)
    unpaired = tmp_path / "unpaired.parquet"
    rows = make_rows()
    write_rows(tmp_path / "text.parquet", rows[rows.config == ""])
    write_rows(unpaired, rows[(rows.condition != "null") | (rows.episode < 2010)])
    for argv, message in (
        ([damaged], "damaged.parquet: not an intact Parquet file"),
        ([short], "column success: missing"),
        ([rows_file, "--config", "nobody"], "good/0/confirm"),
        ([rows_file, "--split", "select"], "no rows"),
        ([tmp_path / "text.parquet"], "text.parquet: no rows of a codec; give those of m2ray.evaluate"),
        ([unpaired], "a, split confirm: rows: condition"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(a) for a in argv])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bound"}, "criteria.0.kind"),
        ({"at_last": 0.3}, "did you mean `criteria.0.at_least`"),
        ({"at_least": 0.0}, "needs at_least above 0"),
        ({"at_least": 30.0}, "criteria.0.at_least"),
        ({"against": "P0"}, "against: every kind but lower_bound and at_most needs it"),
        ({"kind": "overlap", "against": "P0"}, "no other kind"),
        ({"min_k": 8, "max_k": 4}, "would never apply"),
    ],
)
def test_gate_files_are_strict(change, message):
    criterion = {"gate": "gate1", "name": "x", "kind": "lower_bound", "condition": "normal", "at_least": 0.3}
    with pytest.raises(UserError, match=message):
        validate(GateConfig, {"name": "g", "criteria": [{**criterion, **change}]}, "g.yaml")


def test_the_command_loads_neither_ray_nor_torch():
    for module in ("m2ray.gate", "m2ray.judging.statistics"):
        code = f"import sys, {module}; sys.exit(bool({{'ray', 'torch'}} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
