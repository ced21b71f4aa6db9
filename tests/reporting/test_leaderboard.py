"""The leaderboard by the gate `content`: one verdict per configuration over its training seeds, and amounts."""

import json
import time
from argparse import Namespace

import pandas as pd
import pytest
from made_reports import CARRIES, PRIMES, content_rows, results_folder, run_rows

from m2ray.cli import report
from m2ray.cli.runner import DONE, NOT_PASSED, SOME_FAILED
from m2ray.cli.sweep import report_results
from m2ray.config.gate_file import load_gate
from m2ray.evaluation.rows import KEY, failure_row
from m2ray.reporting import build as build_module
from m2ray.reporting.build import build
from m2ray.reporting.html import headline
from m2ray.reporting.leaderboard import anything_passes, configuration_lines, judge_runs, make_leaderboard
from m2ray.reporting.leaderboard_text import display_cells, leaderboard_text, legend, reasons

CONTENT, REFERENCE = load_gate("content"), load_gate("reference")
ONE_OF_THREE = [CARRIES, PRIMES, PRIMES]


def leaderboard_of(*parts, gate=CONTENT, withdrawn=None):
    """Return the leaderboard without writing a file."""
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(KEY)
    return make_leaderboard(rows, judge_runs(rows, gate), gate, withdrawn)


@pytest.fixture(scope="module")
def leaderboard():
    """Return the leaderboard of configurations with every verdict, each of three training seeds."""
    return leaderboard_of(
        content_rows("carries", gain=0.1),
        content_rows("half", {**CARRIES, "normal": 0.55}, gain=0.3),
        content_rows("everything", {**CARRIES, "normal": 0.9}, gain=0.2),
        content_rows("primes", PRIMES, gain=0.4),
        content_rows("luck", ONE_OF_THREE, gain=0.5),
        failure_row("broken", 4, "easy", "died"),
    )


def line_of(leaderboard, config):
    return configuration_lines(leaderboard).set_index("config").loc[config]


def test_a_configuration_has_one_verdict_over_its_seeds_and_each_seed_one_below(leaderboard):
    assert leaderboard.config.tolist() == [
        *(config for config in ("everything", "carries", "half", "luck", "primes") for _ in range(4)),
        "broken",
    ]
    assert leaderboard.seed.isna().tolist() == [True, False, False, False] * 5 + [True]
    assert leaderboard.seeds.tolist() == ["0 1 2", "0", "1", "2"] * 5 + [leaderboard.seeds.iloc[-1]]
    assert pd.isna(leaderboard.seeds.iloc[-1])
    assert leaderboard.seed.dropna().tolist() == [0, 1, 2] * 5
    verdicts = dict(zip(*configuration_lines(leaderboard)[["config", "verdict"]].to_numpy().T, strict=True))
    assert verdicts == {
        "everything": "WHOLE",
        "carries": "PASS",
        "half": "PART",
        "luck": "FAIL",
        "primes": "FAIL",
        "broken": "failed",
    }
    seeds = leaderboard[leaderboard.seed.notna()]
    assert seeds.verdict[seeds.config == "luck"].tolist() == ["PASS", "FAIL", "FAIL"]
    assert seeds.verdict[seeds.config == "half"].tolist() == ["PART"] * 3


def test_the_line_of_a_configuration_has_the_means_over_its_seeds(leaderboard):
    own, seeds = (
        leaderboard[leaderboard.config == "luck"].iloc[0],
        leaderboard[leaderboard.config == "luck"].iloc[1:],
    )
    assert own.normal == pytest.approx((0.75 + 0.32 + 0.32) / 3, abs=1e-4)
    assert (own.n, own.k, own.score) == (400, 4, 0.5)
    assert own.P0 == 0.3
    assert own.tokens == 0.5
    # Training seeds are a sample, too: where they differ, the interval is wider than that of any seed.
    widths = seeds.normal_ci_high - seeds.normal_ci_low
    assert own.normal_ci_high - own.normal_ci_low > 3 * widths.max()
    assert own.checkpoint == ""
    assert seeds.checkpoint.tolist() == [f"luck-{seed}-10" for seed in range(3)]


def test_the_amounts_have_columns_and_the_reason_of_a_pass_states_them(leaderboard):
    line = line_of(leaderboard, "carries")
    assert (line.facts, line.learned, line.over_tokens) == pytest.approx((3, 0.4, 0.25))
    assert line.follows_wrong == pytest.approx(2 / 3, abs=1e-4)
    assert line.retention == pytest.approx(0.75)
    bounds = f"[{line.retention_ci_low:.2f}, {line.retention_ci_high:.2f}]"
    assert line.reason.startswith(f"keeps 0.75 {bounds} of the text's gain; ")
    for part in (
        "is worth the text of 3 of 4 facts",
        "points beyond itself untrained",
        "points over 4 tokens of text",
        "B follows 66.7% of wrong messages' facts (of right ones 100.0%, by chance 33.3%)",
    ):
        assert part in line.reason
    assert pd.isna(line_of(leaderboard, "broken").facts)


def test_the_reason_of_a_fail_is_the_bound_that_misses_the_margin(leaderboard):
    reason = line_of(leaderboard, "primes").reason
    assert reason.startswith("'beats no message' does not hold: normal - P0 = +2.0 points, lower bound ")
    assert reason.endswith(", needs +10.0")
    assert line_of(leaderboard, "luck").reason.startswith("'beats no message' does not hold: normal - P0 = +16.3")


def test_gate_columns_are_those_of_the_reference_gate(leaderboard):
    assert line_of(leaderboard, "carries")[["gate1", "gate2"]].tolist() == ["PASS", "n/a"]
    luck = leaderboard[leaderboard.config == "luck"]
    assert luck.gate1.tolist() == ["FAIL", "PASS", "FAIL", "FAIL"]
    assert luck.gate2.tolist() == ["n/a"] * 4
    wide = leaderboard_of(content_rows("wide", k=16))
    assert wide[["gate1", "gate2"]].to_numpy().tolist() == [["n/a", "PASS"]] * 4
    rows = content_rows("short", splits=("confirm",))
    unknown = leaderboard_of(rows[~rows.condition.isin(["random", "identity"])])
    assert unknown.verdict.tolist() == ["PASS"] * 4
    assert unknown[["gate1", "gate2"]].to_numpy().tolist() == [["n/a", "n/a"]] * 4
    judged = leaderboard_of(content_rows("carries"), gate=REFERENCE)
    assert judged.gate1.tolist() == ["PASS"] * 4


def test_a_setting_that_can_show_nothing_is_invalid_and_not_a_fail_of_the_codec():
    useless_text = leaderboard_of(content_rows("a", {**CARRIES, "P1": 0.35, "normal": 0.35}))
    assert useless_text.verdict.tolist() == ["INVALID SETTING"] * 4
    assert useless_text.reason[0].startswith("'text leaves room' does not hold: P1 - P0 = +5.0 points")
    assert not anything_passes(useless_text)
    assert headline(useless_text)[0] == "0 of 1 configuration passed on confirm: 1 INVALID SETTING."


# --- what passes ---------------------------------------------------------------------------------------------


def test_one_of_three_seeds_passing_does_not_pass_the_configuration():
    for gate in (CONTENT, REFERENCE):
        luck = leaderboard_of(content_rows("luck", ONE_OF_THREE), gate=gate)
        assert luck.verdict.tolist() == ["FAIL", "PASS", "FAIL", "FAIL"]
        assert not anything_passes(luck)
        assert headline(luck)[0] == "0 of 1 configuration passed on confirm: 1 FAIL."
    assert luck.reason[0].startswith("seed 1: 'normal clears the bar' does not hold: ")


@pytest.mark.parametrize(
    ("normal", "code"),
    [
        ([0.75, 0.75, 0.75], DONE),
        ([0.9, 0.9, 0.9], DONE),
        ([0.55] * 3, NOT_PASSED),
        ([0.75, 0.3, 0.3], NOT_PASSED),
    ],
)
def test_require_pass_asks_for_a_configuration_over_all_its_seeds(tmp_path, capsys, normal, code):
    rows = content_rows("a", [{**CARRIES, "normal": share} for share in normal])
    folder = results_folder(tmp_path / "r", rows)
    args = Namespace(json=False, quiet=True, require_pass=True)
    assert report_results(folder, {}, time.monotonic(), args) == code
    assert "a, seed 2: " in capsys.readouterr().out
    leaderboard = pd.read_csv(folder / "leaderboard.csv")
    assert leaderboard.seeds.tolist() == ["0 1 2", "0", "1", "2"]


@pytest.mark.parametrize("form", ["json", "people"])
def test_an_error_while_reports_are_drawn_loses_nothing_that_is_judged(tmp_path, capsys, monkeypatch, form):
    def broken(*args):
        raise RuntimeError("no such font\nanywhere")

    monkeypatch.setattr(build_module, "draw_all", broken)
    folder = results_folder(tmp_path / "r", content_rows("a"))
    args = Namespace(json=form == "json", quiet=True, require_pass=False)
    assert report_results(folder, {}, time.monotonic(), args) == SOME_FAILED
    printed = capsys.readouterr()
    assert "PASS" in printed.out
    assert printed.err == (
        f"failed: reports: RuntimeError: no such font anywhere; to repeat: python -m m2ray.report {folder}\n"
    )
    assert (folder / "leaderboard.csv").is_file()
    with pytest.raises(RuntimeError, match="no such font"):
        report.main([str(folder)])
    assert "a: PASS" in capsys.readouterr().out


def test_holm_counts_configurations_and_not_their_seeds():
    alone = leaderboard_of(content_rows("a", PRIMES))
    assert ["(95%, one-sided)" in reason for reason in alone.reason] == [True] * 4
    four = leaderboard_of(*(content_rows(f"a{i}", PRIMES) for i in range(4)))
    assert ["(98.8%, one-sided)" in reason for reason in four.reason] == [True] * 16


# --- seeds on different splits, and incomplete ones ----------------------------------------------------------


def test_seeds_that_got_further_decide():
    ahead, behind = run_rows("a", seed=1), run_rows("a", seed=0, splits=("search",))
    leaderboard = leaderboard_of(ahead, behind, gate=REFERENCE)
    assert leaderboard.split.tolist() == ["confirm", "search", "confirm"]
    assert leaderboard.seeds.tolist() == ["1", "0", "1"]
    assert leaderboard.verdict.tolist() == ["PASS", "not confirmed", "PASS"]
    assert anything_passes(leaderboard)


def test_a_configuration_with_a_seed_that_was_cut_short_is_incomplete_and_others_are_judged():
    rows = content_rows("cut", splits=("confirm",))
    cut = rows[~((rows.seed == 2) & (rows.condition == "shuffle"))]
    leaderboard = leaderboard_of(cut, content_rows("whole"))
    assert leaderboard.verdict.tolist() == ["PASS"] * 4 + ["incomplete"] * 4
    assert "condition shuffle, seed 2: missing" in line_of(leaderboard, "cut").reason


@pytest.mark.parametrize(
    ("gate", "first"),
    [
        (CONTENT, "'beats no message' does not hold: normal - P0 = "),
        (REFERENCE, "'normal clears the bar' does not hold: CI_low(normal) = "),
    ],
)
def test_conditions_that_are_run_on_confirm_only_are_not_missing_elsewhere(gate, first):
    on_confirm = ("identity", "constant", "mean", "init", "near", "tokens-4")
    rows = content_rows("early", PRIMES, splits=("search",), seeds=(0,))
    (line,) = leaderboard_of(rows[~rows.condition.isin(on_confirm)], gate=gate).itertuples()
    assert line.verdict == "not confirmed"
    assert line.reason.startswith(f"not selected (score +0.200 nats, 1 of 1 on search); {first}")


# --- ties and later looks ------------------------------------------------------------------------------------


def test_ties_are_said_to_be_ties():
    leaderboard = leaderboard_of(
        content_rows("best", seeds=(0,), gain=0.3, splits=("search", "select", "confirm")),
        content_rows("tied", seeds=(0,), gain=0.3, splits=("search", "select")),
        content_rows("early", seeds=(0,), gain=0.3, splits=("search",)),
        content_rows("worse", seeds=(0,), gain=0.1, splits=("search", "select")),
        content_rows("worst", seeds=(0,), gain=-0.1, splits=("search",)),
    )
    reason = {config: line_of(leaderboard, config).reason for config in leaderboard.config}
    others = "(score +0.300 nats, 1 of 5 on search, tied with 2 others); "
    assert reason["tied"].startswith(f"tied on select with best, whose name comes first {others}")
    assert reason["early"].startswith(f"tied on search with best, whose name comes first {others}")
    assert reason["worse"].startswith("others did better on select (score +0.100 nats, 4 of 5 on search); ")
    assert reason["worst"].startswith("not selected (score -0.100 nats, 5 of 5 on search); ")


def test_verdicts_of_all_looks_are_one_family_and_the_latest_of_a_configuration_counts():
    first = content_rows("first", ONE_OF_THREE, splits=("confirm",))
    later = content_rows("later", splits=("confirm-2",))
    again = content_rows("first", splits=("confirm-2",))
    leaderboard = leaderboard_of(first, later, again)
    assert set(leaderboard.split) == {"confirm-2"}
    assert line_of(leaderboard, "first").verdict == "PASS"
    assert line_of(leaderboard, "first").reason.endswith("FAIL on confirm)")
    rows = pd.concat([first, later, again]).drop_duplicates(KEY)
    looked = {run.config: run for run in judge_runs(rows, REFERENCE)}
    alone = {run.config: run for run in judge_runs(later, REFERENCE)}
    p_values = [
        [result.p_value for result in runs["later"].verdict.results if result.p_value is not None]
        for runs in (looked, alone)
    ]
    assert sum(p_values[0]) > sum(p_values[1]) > 0, "corrected for more verdicts"


# --- withdrawn points ----------------------------------------------------------------------------------------


def test_points_that_were_taken_out_stay_as_withdrawn_with_what_was_known(tmp_path):
    folder = results_folder(tmp_path, content_rows("kept", PRIMES), content_rows("taken"))
    withdrawn = {"taken": "2026-11-27 10:00:00", "never-begun": "2026-11-27 11:00:00"}
    (folder / "sweep.yaml").write_text(json.dumps({"withdrawn": withdrawn}))
    leaderboard = build(folder)
    assert leaderboard.verdict.tolist() == ["FAIL"] * 4 + ["withdrawn"] * 5
    taken = line_of(leaderboard, "taken")
    assert taken.normal == 0.75
    assert taken.reason.startswith("taken out of the space on 2026-11-27 10:00:00; before that: PASS: keeps 0.75 ")
    assert line_of(leaderboard, "never-begun").reason == (
        "taken out of the space on 2026-11-27 11:00:00; nothing is known of it"
    )
    assert not anything_passes(leaderboard)
    assert headline(leaderboard)[0] == "0 of 1 configuration passed on confirm: 1 FAIL."
    assert "taken" in (folder / "attempts" / "taken.md").read_text()
    assert "withdrawn" in (folder / "report.html").read_text()


def test_a_board_of_withdrawn_points_alone_is_written(tmp_path):
    folder = results_folder(tmp_path, content_rows("taken"))
    (folder / "sweep.yaml").write_text(json.dumps({"withdrawn": {"taken": "2026-11-27"}}))
    assert build(folder).verdict.tolist() == ["withdrawn"] * 4


# --- for people ----------------------------------------------------------------------------------------------


def test_the_display_has_all_seeds_of_a_configuration_and_columns_that_have_values(leaderboard):
    cells = display_cells(leaderboard)
    assert [line["seed"] for line in cells[:4]] == ["0 1 2", "0", "1", "2"]
    assert list(cells[0])[7:15] == ["null", "shuffle", "near", "P0", "constant", "init", "tokens", "P1"]
    assert [cells[4][name] for name in ("near", "constant", "init", "tokens")] == ["20.0", "30.0", "35.0", "50.0"]
    assert cells[-1]["seed"] == cells[-1]["near"] == ""
    few = display_cells(leaderboard_of(run_rows("a"), gate=REFERENCE))
    assert list(few[0])[7:11] == ["null", "shuffle", "P0", "P1"]
    assert "nan" not in leaderboard_text(leaderboard, "simple").lower()


def test_the_number_of_different_messages_has_a_column_and_is_displayed_where_some_repeat():
    rows = content_rows("carries", seeds=(0,))
    for messages, shown in ((400, False), (390, True), (50, True)):
        board = leaderboard_of(rows.assign(message=(rows.episode % messages).map("m{}".format)))
        assert (board.n[0], board.messages[0]) == (400, messages)
        assert ("messages" in display_cells(board)[0]) == shown
        assert ("`messages` is how many" in legend(board, CONTENT)[0]) == shown
        assert ("the tests count 50 messages, not 400 episodes" in board.reason[0]) == (messages == 50)
    wide, narrow = (
        leaderboard_of(part) for part in (rows.assign(message=(rows.episode % 50).map("m{}".format)), rows)
    )
    assert "messages" not in narrow, "rows of an earlier version do not name them"
    assert wide.normal_ci_high[0] != narrow.normal_ci_high[0]


def test_caveats_are_given_once_for_a_configuration(leaderboard):
    lines = [line for line in reasons(leaderboard) if line.startswith("carries")]
    assert [line.partition(":")[0] for line in lines] == ["carries", *(f"carries, seed {i}" for i in range(3))]
    assert not [line for line in lines if "training seed" in line]  # three seeds and all conditions: no caveat
    rows = content_rows("two", seeds=(0, 1))
    two = reasons(leaderboard_of(rows[rows.condition != "init"]))
    assert two[0].endswith("(2 training seeds; not shown: init)")
    assert not [line for line in two[1:] if "not shown" in line]
    assert reasons(leaderboard_of(content_rows("one", seeds=(0,))))[0].endswith("(1 training seed)")


def test_the_legend_explains_the_columns_and_verdicts_that_there_are(leaderboard):
    text = " ".join(legend(leaderboard, CONTENT))
    for word in (
        "PASS",
        "PART",
        "WHOLE",
        "INVALID SETTING",
        "`near`",
        "`init`",
        "`tokens`",
        "`constant`",
        "gate `content`",
    ):
        assert word in text
    assert "known to pass" not in text
    few = " ".join(legend(leaderboard_of(run_rows("a"), gate=REFERENCE), REFERENCE))
    assert "known to pass an untrained codec at k = 16; one of four facts" in few
    assert "each of its training seeds" in few
    for word in ("PART", "`near`", "`init`"):
        assert word not in few


def test_a_record_of_an_earlier_version_has_what_the_reference_gate_lets_through(tmp_path):
    folder = results_folder(tmp_path, run_rows("a"))
    registered = REFERENCE.model_dump(exclude={"lets_through", "grades"})
    (folder / "sweep.yaml").write_text(json.dumps({"gate": registered}))
    build(folder)
    assert "Gate `reference` is known to pass an untrained codec" in (folder / "leaderboard.md").read_text()
