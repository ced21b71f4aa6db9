"""The gate `content`: what it must not pass, what it must, and what it says where nothing can be judged."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from m2ray.cli.gate import main, parse_counts
from m2ray.config.gate_file import load_gate
from m2ray.judging.gate import judge, judge_counts, judge_together
from m2ray.judging.outcome_files import read_outcomes
from m2ray.judging.row_arms import RowArms
from m2ray.judging.verdict import FAIL, INVALID, PART, PASS, UNTESTABLE, WHOLE
from m2ray.util.errors import UserError

GATE, REFERENCE = load_gate(), load_gate("reference")
# Rates of the embedded receiver on its own task, roughly.
SETTING = {"P0": 0.37, "P1": 0.98, "null": 0.37, "shuffle": 0.16}
GOOD = {**SETTING, "normal": 0.80, "constant": 0.37, "mean": 0.36, "init": 0.44, "near": 0.2, "identity": 0.98}


def outcomes(shares, n=500, seeds=(0,), codec="codec", rng=0, k=None):
    """Return rows of outcomes in which each condition solves its share of episodes, drawn independently."""
    generator = np.random.default_rng(rng)
    own = {"normal", "shuffle", "near", "init", "mean"}
    frames = []
    for condition, share in shares.items():
        for seed in seeds if condition in own else (-1,):
            success = generator.permutation(np.arange(n) < round(share * n)).astype(float)
            frames.append(
                pd.DataFrame({"condition": condition, "seed": seed, "episode": range(n), "success": success})
            )
    rows = pd.concat(frames, ignore_index=True).assign(config=codec, k=k or 0, split="")
    if "identity" in shares:
        rows.loc[rows.condition == "identity", "success"] = rows[rows.condition == "P1"].success.to_numpy()
    return rows


def counts_verdict(counts, p1, k):
    return judge_counts(parse_counts(f"{counts},P1={p1}"), k, GATE)


def result(verdict, name):
    return next(r for r in verdict.results if r.name == name)


# --- what the reference gate lets through --------------------------------------------------------------------


def test_an_untrained_codec_fails():
    """The reference gate passes it at k = 16: 65 % against 16 % with a wrong message."""
    untrained = {**GOOD, "normal": 0.65, "init": 0.65, "random": 0.33}
    verdict = judge(outcomes(untrained, k=16), GATE)
    assert verdict.verdict == FAIL
    assert "'beats itself untrained' does not hold" in verdict.reason
    assert judge(outcomes(untrained, k=16), REFERENCE).verdict == PASS


def test_one_fact_of_four_is_a_part_and_not_a_pass():
    told = {**SETTING, "normal": 0.574, "shuffle": 0.287, "facts-1": 0.574, "facts-2": 0.72, "facts-3": 0.86}
    rows = outcomes(told, k=16)
    rows.loc[rows.condition == "facts-1", "success"] = rows[rows.condition == "normal"].success.to_numpy()
    verdict = judge(rows, GATE)
    assert verdict.verdict == PART
    assert verdict.amount("facts").value == 1
    assert verdict.amount("retention").value == pytest.approx(0.33, abs=0.01)


@pytest.mark.parametrize("k", [4, 15, 16, 64])
def test_a_codec_below_no_message_does_not_pass(k):
    verdict = counts_verdict("normal=275/500,null=225/500,random=225/500,shuffle=150/500,P0=300/500", "475/500", k)
    assert verdict.verdict == INVALID
    assert result(verdict, "beats no message").status == FAIL
    fair = counts_verdict("normal=275/500,null=300/500,random=225/500,shuffle=150/500,P0=300/500", "475/500", k)
    assert fair.verdict == FAIL
    assert "'beats no message' does not hold: normal - P0 = -5.0 points" in fair.reason


@pytest.mark.parametrize("k", [8, 16])
def test_a_codec_below_a_constant_prefix_does_not_pass(k):
    counts = "normal=290/500,null=185/500,random=185/500,shuffle=150/500,P0=185/500,constant=350/500"
    verdict = counts_verdict(counts, "475/500", k)
    assert verdict.verdict == FAIL
    assert "'beats a trained constant' does not hold: normal - constant = -12.0 points" in verdict.reason


def test_there_is_no_cliff_in_k():
    rows = outcomes({**GOOD, "random": 0.3})
    verdicts = [judge(rows.assign(k=k), GATE) for k in (1, 15, 16, 64)]
    assert len({(v.verdict, v.reason, v.results) for v in verdicts}) == 1


def test_few_episodes_show_nothing_about_the_setting():
    verdict = counts_verdict("normal=9/10,null=5/10,random=6/10,shuffle=0/10,P0=2/10", "10/10", 4)
    assert verdict.verdict == INVALID
    assert "n = 10" in verdict.reason
    assert result(verdict, "null is no information").status == FAIL


def test_a_wrong_message_that_helps_is_not_said_to_mislead():
    """P0 0.1 %, shuffle 5 %: it helps fifty-fold."""
    verdict = counts_verdict("normal=600/1000,null=1/1000,random=1/1000,shuffle=50/1000,P0=1/1000", "950/1000", 8)
    reading = result(verdict, "a wrong message misleads")
    assert reading.status == UNTESTABLE
    assert "even a wrong message helps" in reading.sentence
    assert verdict.verdict == PASS  # it is for information


def test_one_seed_of_three_does_not_carry_the_configuration():
    good, poor = outcomes(GOOD, seeds=(0,)), outcomes({**GOOD, "normal": 0.40}, seeds=(1, 2), rng=1)
    own = poor[poor.seed >= 0]
    (judged,) = judge_together([pd.concat([good, own])], GATE)
    assert judged.seeds[0].verdict == PASS
    assert judged.verdict.verdict == FAIL
    assert judged.verdict.seeds == 3


# --- grades --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normal", "expected"), [(0.98, WHOLE), (0.80, PASS), (0.60, PART), (0.50, FAIL), (0.37, FAIL), (0.2, FAIL)]
)
def test_the_verdict_follows_the_rate(normal, expected):
    shares = {**GOOD, "normal": normal, "init": 0.37}
    assert judge(outcomes(shares, n=1000), GATE).verdict == expected


def test_every_control_counts():
    for control in ("P0", "null", "constant", "mean", "init", "random", "matched", "rotate"):
        verdict = judge(outcomes({**GOOD, control: 0.75}, n=1000), GATE)
        assert not verdict.passed, control
    for wrong in ("shuffle", "near"):
        verdict = judge(outcomes({**GOOD, wrong: 0.80}, n=1000), GATE)
        assert verdict.verdict == FAIL, wrong


def test_the_verdict_names_what_was_not_shown():
    verdict = judge(outcomes({**SETTING, "normal": 0.8}), GATE)
    assert verdict.verdict == PASS
    assert verdict.caveats == (
        "1 training seed; not shown: identity, constant, mean, init, near, truncated answers, unparsed answers"
    )
    (judged,) = judge_together([outcomes(GOOD, seeds=(0, 1, 2))], GATE)
    assert judged.verdict.caveats == "not shown: truncated answers, unparsed answers"


@pytest.mark.parametrize(
    ("shares", "cause"),
    [
        ({"P1": 0.40}, "text leaves room"),
        ({"P0": 0.93, "null": 0.93}, "text leaves room"),
        ({"null": 0.60}, "null is no information"),
        ({"null": 0.15}, "null is no information"),
    ],
)
def test_a_setting_that_shows_nothing_is_not_a_failure_of_the_codec(shares, cause):
    verdict = judge(outcomes({**GOOD, **shares}), GATE)
    assert verdict.verdict == INVALID
    assert f"'{cause}' does not hold" in verdict.reason


@pytest.mark.parametrize(("column", "value"), [("truncated", 1.0), ("parsed", 0.0)])
def test_answers_that_cannot_be_read_make_the_setting_invalid(column, value):
    rows = outcomes(GOOD, n=1000)
    share = 0.06 if column == "truncated" else 0.21
    rows[column] = 1.0 - value
    text = rows.index[rows.condition == "P1"]
    rows.loc[text[: round(share * len(text))], column] = value
    assert judge(rows, GATE).verdict == INVALID
    rows.loc[text, column] = 1.0 - value
    assert judge(rows, GATE).verdict == PASS


def test_identity_must_give_the_texts_answers():
    rows = outcomes(GOOD)
    rows.loc[rows.index[rows.condition == "identity"][0], "success"] = 0.5
    assert "'identity is the text'" in judge(rows, GATE).reason


@pytest.mark.parametrize(
    ("noise", "swapped", "lost", "valid"),
    [
        (0.04, 8, 0, True),  # SmolLM2 in bfloat16: free-text answers differ here and there, success does not
        (0.04, 0, 0, True),
        (0.2, 8, 0, False),  # over 2 % of the five nats that the text is worth
        (0.04, 8, 40, False),  # 8 points of success
        (0.0, 8, 0, False),  # the same likelihoods but other answers: not rounding
    ],
)
def test_identity_may_differ_from_the_text_by_rounding_in_16_bits_only(noise, swapped, lost, valid):
    rows = outcomes(GOOD).assign(nll=7.0)
    text, own = (rows.index[rows.condition == name] for name in ("P1", "identity"))
    rows.loc[text, "nll"] = 2.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=len(own))
    rows.loc[own, "nll"] = 2.0 + noise * signs
    solved = rows.success[own].to_numpy() > 0
    rows.loc[own[solved][: swapped + lost], "success"] = 0.0
    rows.loc[own[~solved][:swapped], "success"] = 1.0
    verdict = judge(rows, GATE)
    assert verdict.verdict == (PASS if valid else INVALID)
    assert ("rounding in 16 bits" in result(verdict, "identity is the text").sentence) == (noise > 0)


def test_identity_is_judged_to_the_answer_where_the_text_is_worth_little():
    """Two hundredths of a nat are much where the text is worth half of one, as in puzzles."""
    rows = outcomes(GOOD).assign(nll=0.6)
    rows.loc[rows.condition.isin(["P1", "identity"]), "nll"] = 0.1
    assert judge(rows, GATE).verdict == PASS
    rows.loc[rows.condition == "identity", "nll"] += 0.03
    assert judge(rows, GATE).verdict == INVALID


# --- together ------------------------------------------------------------------------------------------------


def test_holm_makes_the_bar_higher_for_configurations_judged_together():
    borderline = {
        **GOOD,
        "normal": 0.525,
        "init": 0.1,
        "mean": 0.1,
        "constant": 0.1,
        "near": 0.05,
        "shuffle": 0.05,
    }
    rows = outcomes(borderline, n=1000, rng=3)
    (alone,) = judge_together([rows], GATE)
    assert result(alone.verdict, "beats no message").status == PASS
    others = [
        outcomes({**GOOD, "normal": 0.37, "init": 0.37}, n=1000, rng=i).assign(config=f"c{i}") for i in range(20)
    ]
    together = judge_together([rows, *others], GATE)[0]
    assert result(together.verdict, "beats no message").status == FAIL
    assert "99.8%" in result(together.verdict, "beats no message").sentence


def test_holm_covers_the_share_that_is_kept():
    """Retention is 0.54 [0.51, ...]: a PASS alone, and a PART among many that were tried."""
    rows = outcomes({**GOOD, "normal": 0.70, "init": 0.4}, n=3000)
    (alone,) = judge_together([rows], GATE)
    assert alone.verdict.verdict == PASS
    others = [
        outcomes({**GOOD, "normal": 0.37, "init": 0.37}, n=300, rng=i).assign(config=f"c{i}") for i in range(40)
    ]
    together = judge_together([rows, *others], GATE)[0].verdict
    assert together.verdict == PART
    assert together.retention == alone.verdict.retention
    assert together.reason.endswith("for all that are judged together, it is shown to keep 0.49")


# --- outcomes of any system ----------------------------------------------------------------------------------


def write_jsonl(path, rows, **columns):
    with path.open("w") as out:
        for row in rows.itertuples():
            record = {"id": f"e{row.episode}", "condition": row.condition, "success": int(row.success)}
            if row.seed >= 0:
                record["seed"] = row.seed
            out.write(json.dumps({**record, **columns}) + "\n")
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_outcomes_of_any_system_are_judged(tmp_path, form, capsys):
    file = write_jsonl(tmp_path / "outcomes.jsonl", outcomes(GOOD, seeds=(0, 1, 2)))
    frame = pd.read_json(file, lines=True)
    if form == "csv":
        file = tmp_path / "outcomes.csv"
        file.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False).replace("\n", "\r\n").encode())
    elif form == "parquet":
        file = tmp_path / "outcomes.parquet"
        frame.to_parquet(file)
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Verdict: PASS - keeps 0.7" in printed
    assert printed.count("- seed ") == 3


def test_conditions_that_nothing_reads_are_named(tmp_path, capsys):
    shares = {**GOOD, "Constant": 0.9, "facts-1": 0.5, "tokens-4": 0.6, "noise-1": 0.3}
    main([str(write_jsonl(tmp_path / "outcomes.jsonl", outcomes(shares), k=4))])
    assert (
        "Not judged: the conditions Constant (write constant), noise-1; gate content has no criterion for them."
        in capsys.readouterr().out
    )
    main([str(write_jsonl(tmp_path / "outcomes.jsonl", outcomes({**GOOD, "tokens-4": 0.6})))])
    assert "Not judged: the conditions tokens-4 (needs the column k);" in capsys.readouterr().out
    main([str(write_jsonl(tmp_path / "outcomes.jsonl", outcomes(GOOD)))])
    assert "Not judged" not in capsys.readouterr().out


def test_scores_and_groups(tmp_path):
    rng = np.random.default_rng(0)
    means = {"P0": 0.2, "P1": 0.9, "null": 0.2, "normal": 0.8, "shuffle": 0.1}
    lines = [
        {"id": e, "condition": c, "score": float(np.clip(m + rng.normal(0, 0.1), 0, 1)), "group": e // 5}
        for c, m in means.items()
        for e in range(400)
    ]
    file = tmp_path / "scores.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    verdict = judge(read_outcomes(file).rows, GATE)
    assert verdict.verdict == PASS
    assert "t-test" in result(verdict, "right beats wrong").sentence


def test_codecs_in_one_file_share_the_rows_without_a_codec(tmp_path, capsys):
    own, shared = outcomes(GOOD), outcomes(GOOD)
    own = own[own.seed >= 0]
    shared = shared[shared.seed < 0]
    records = [
        {"id": r.episode, "condition": r.condition, "success": r.success, "codec": codec}
        for codec, rows in (("a", own), ("b", own), ("", shared))
        for r in rows.itertuples()
    ]
    file = tmp_path / "two.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    assert main([str(file)]) == 0
    assert capsys.readouterr().out.count("Verdict: PASS") == 2


def edit(records, index, **change):
    return [record | change if i == index else record for i, record in enumerate(records)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [x for x in r if x["condition"] != "shuffle"], "condition shuffle: missing"),
        (lambda r: [x for x in r if x["condition"] != "P1"], "condition P1: missing"),
        (lambda r: r[1:], "not on the episodes of normal (299 and 300; it lacks 0)"),
        (lambda r: edit(r, -1 % len(r), id="other"), "not on the episodes of normal"),
        (lambda r: [*r, r[0]], "given twice"),
        (lambda r: edit(r, 3, success=1.5), "line 4: success: 1.5 is outside 0 to 1; fix it"),
        (lambda r: edit(r, 3, success=-1), "line 4: success: -1 is outside 0 to 1"),
        (lambda r: edit(r, 3, success=0.5), "line 4: success: 0.5 is neither 0 nor 1; name the column score"),
        (lambda r: edit(r, 3, success="yes"), "line 4: success: 'yes' is not a number"),
        (lambda r: edit(r, 3, success=None), "line 4: success"),
        (lambda r: edit(r, 3, condition=None), 'line 4: condition: empty; write it, in quotes if it is "null"'),
        (lambda r: edit(r, 3, id=""), "line 4: id: empty"),
        (lambda r: edit(r, 3, seed=-2), "line 4: seed: -2 is not a whole number"),
        (lambda r: [{"id": 1, "condition": "normal"}], "column success or score: missing"),
        (lambda r: [{**x, "score": 1} for x in r], "both given, keep one"),
        (lambda r: [{"condition": "normal", "success": 1}], "column id: missing"),
        (lambda r: [], "no outcomes"),
        (lambda r: [{**x, "condition": x["condition"].upper()} for x in r], "missing, there are "),
        (lambda r: [{"ID": 1, "condition": "normal", "success": 1}], "the file has 'ID', 'condition', 'success'"),
        (lambda r: edit(r, 3, id="a\ud800"), "line 4: id: 'a\\ud800' has half of a character"),
        (lambda r: edit(r, 3, truncated=1), "column truncated: given on 1 of 300 outcomes of P0; give it on all"),
        (lambda r: edit(r, 3, id=[1]), "line 4: id: [1] is neither text nor a number"),
        (lambda r: [*r[:3], [1, 2], *r[3:]], "line 4: expected an object"),
    ],
)
def test_a_fault_in_outcomes_is_one_line(tmp_path, change, message):
    records = [
        {"id": r.episode, "condition": r.condition, "success": r.success}
        for r in outcomes({**SETTING, "normal": 0.8}, n=300).itertuples()
    ]
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(map(json.dumps, change(records))))
    with pytest.raises(UserError) as error:
        main([str(file)])
    assert message in str(error.value)
    assert "bad.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,condition,success,success\n1,normal,1,0\n", "column success: given twice; keep one"),
        ("a.jsonl", '{"id": 1, "condition": "P0", "success": 1, "success": 0}\n', "line 1: success: given twice"),
        ("a.csv", "id;condition;success\n1;normal;1\n", "column id: missing, the file has 'id;condition;success'"),
    ],
)
def test_columns_that_cannot_be_told_apart_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_outcomes(tmp_path / name)
    assert message in str(error.value)


def test_a_column_counts_where_the_first_line_lacks_it(tmp_path):
    """A group that only later lines name is a cluster all the same."""
    lines = [{"id": e, "condition": c, "success": 1, "group": "one"} for c in ("normal", "P0") for e in range(6)]
    del lines[0]["group"]
    file = tmp_path / "late.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_outcomes(file).rows.group.tolist() == ["", *["one"] * 11]


def test_outcomes_need_no_torch(tmp_path):
    file = write_jsonl(tmp_path / "outcomes.jsonl", outcomes(GOOD))
    code = (
        "import sys; from m2ray.cli.gate import main; code = main([sys.argv[1]]); "
        "sys.exit(9 if {'torch', 'ray', 'transformers'} & set(sys.modules) else code)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True).returncode == 0


def test_the_reference_gate_says_what_it_lets_through(capsys):
    counts = "normal=30/50,null=10/50,random=11/50,shuffle=5/50,P0=10/50"
    assert main(["--counts", counts, "--gate", "reference"]) == 0
    assert "Gate reference is known to pass an untrained codec at k = 16" in capsys.readouterr().out


def test_counts_without_the_text_cannot_pass(capsys):
    assert main(["--counts", "normal=300/500,null=50/500,random=50/500,shuffle=5/500,P0=50/500"]) == 1
    assert "Verdict: INVALID SETTING - P1 is missing" in capsys.readouterr().out


# --- repeated messages ---------------------------------------------------------------------------------------


def of_messages(rows, count):
    """Return rows with the messages of their episodes: `count` different ones, each as often as the others."""
    return rows.assign(message=(rows.episode % count).map("m{}".format))


def repeated(shares, messages, times, rng):
    """Return outcomes in which all episodes of a message fare alike, as the codec reads it or does not."""
    rows = outcomes(shares, n=messages, rng=rng)
    copies = [rows.assign(episode=rows.episode + messages * copy) for copy in range(times)]
    return of_messages(pd.concat(copies, ignore_index=True), messages)


def test_a_few_messages_judged_many_times_are_an_invalid_setting():
    """Two messages, 16 times each, of which the codec reads both, are not 32 independent episodes."""
    rows = outcomes({**GOOD, "normal": 1.0, "P0": 0.0, "null": 0.0, "shuffle": 0.0}, n=32)
    verdict = judge(of_messages(rows, 2), GATE)
    assert verdict.verdict == INVALID
    assert verdict.reason == ("'enough episodes' does not hold: n = 32, but of 2 messages only; take 35 at least")
    assert "the tests count 2 messages, not 32 episodes" in verdict.caveats
    with pytest.raises(UserError, match="a variance needs two episodes or groups at least, not 1; evaluate more"):
        judge(of_messages(rows, 1), GATE)


def test_a_few_episodes_that_are_all_alike_are_not_certain():
    """Several training seeds on ten episodes are ten episodes, and an interval next to 0 % has a width."""
    alike = {name: float(name in ("normal", "P1", "identity")) for name in GOOD}
    verdict = judge(outcomes(alike, n=10, seeds=(0, 1, 2)), GATE)
    assert (verdict.verdict, "n = 10; take 35 at least" in verdict.reason) == (INVALID, True)
    arms = RowArms(outcomes(alike, n=300, seeds=(0, 1, 2)))
    assert arms.interval("shuffle", 0.05).high == pytest.approx(1 - 0.025 ** (1 / 300), rel=1e-4)
    assert arms.contrast("normal", "shuffle").low(0.05) < 0.99
    assert arms.retention(0.05).low < 0.99


def test_messages_that_repeat_are_clusters():
    rows = repeated(GOOD, messages=100, times=10, rng=0)
    verdict, alone = judge(rows, GATE), judge(rows.drop(columns="message"), GATE)
    assert "t-test" in result(verdict, "right beats wrong").sentence
    assert "McNemar" in result(alone, "right beats wrong").sentence
    wide, narrow = (v.retention.high - v.retention.low for v in (verdict, alone))
    assert wide > 2.5 * narrow, "ten copies of a message are not ten times the evidence"
    assert "n = 1000 of 100 messages" in result(verdict, "enough episodes").sentence
    needed = [result(v, "enough episodes").threshold for v in (verdict, alone)]
    assert needed[0] == pytest.approx(10 * needed[1], rel=0.2)


def test_messages_that_repeat_by_chance_leave_the_exact_tests():
    rows = of_messages(outcomes(GOOD), 490)
    assert judge(rows, GATE) == judge(rows.drop(columns="message"), GATE)
    assert "McNemar" in result(judge(rows, GATE), "right beats wrong").sentence


def test_rows_of_an_earlier_version_beside_newer_ones_lack_no_message():
    rows = repeated(GOOD, messages=100, times=10, rng=0)
    older = rows.assign(message=rows.message.where(rows.condition != "normal", ""))
    assert judge(older, GATE) == judge(rows, GATE)


def test_a_codec_that_carries_nothing_passes_seldom_where_messages_repeat():
    """By chance some messages are easier; over 30 messages, each 20 times, that is no evidence."""
    nothing = {"P0": 0.3, "P1": 0.95, "null": 0.3, "shuffle": 0.3, "normal": 0.4}  # the margin exactly
    found = {"clustered": 0, "alone": 0}
    for draw in range(60):
        generator = np.random.default_rng(draw)
        rows = repeated(nothing, messages=30, times=20, rng=draw)
        rows.loc[rows.condition == "normal", "success"] = np.tile(generator.random(30) < 0.4, 20).astype(float)
        for name, judged in (("clustered", rows), ("alone", rows.drop(columns="message"))):
            found[name] += result(judge(judged, GATE), "beats no message").passed
    assert found["clustered"] <= 7, found  # 5 % of 60, and the noise of the draws
    assert found["alone"] >= 10, found


# --- words that the rows must bear out -----------------------------------------------------------------------


@pytest.mark.parametrize(("shuffle", "backwards"), [(0.382, False), (0.60, True)])
def test_backwards_is_said_of_a_difference_beyond_chance_only(shuffle, backwards):
    """One answer more with wrong messages than with right ones is noise, of seeds together and of each."""
    rows = outcomes({**GOOD, "normal": 0.38, "shuffle": shuffle}, seeds=(0, 1, 2))
    for verdict in (judge(rows, GATE), judge(rows[rows.seed < 1], GATE)):
        assert verdict.verdict == FAIL
        assert ("BACKWARDS" in verdict.reason) == backwards


def test_the_reference_report_says_backwards_of_any_difference():
    rows = outcomes({**GOOD, "normal": 0.38, "shuffle": 0.382, "random": 0.37}, k=8)
    assert judge(rows, REFERENCE).backwards


@pytest.mark.parametrize(("n", "valid"), [(34, False), (35, True)])
def test_a_perfect_codec_passes_from_the_fewest_episodes_on(n, valid):
    """Below 35, outcomes that are all alike may have missed a share of losses that hides the margin."""
    alike = {name: float(name in ("normal", "P1", "identity")) for name in GOOD}
    for seeds in ((0,), (0, 1, 2)):
        assert judge(outcomes(alike, n=n, seeds=seeds), GATE).verdict == (PASS if valid else INVALID)


def test_seeds_that_are_copies_are_named():
    first = outcomes(GOOD)
    copies = [first[first.seed == 0].assign(seed=seed) for seed in (1, 2)]
    verdict = judge(pd.concat([first, *copies]), GATE)
    assert "seeds 0, 1, 2 solve the same episodes, as copies would" in verdict.caveats
    assert "copies" not in judge(outcomes(GOOD, seeds=(0, 1, 2)), GATE).caveats
    perfect = {name: float(name in ("normal", "P1", "identity")) for name in GOOD}
    assert "copies" not in judge(outcomes(perfect, seeds=(0, 1, 2)), GATE).caveats, "two may be perfect"


def test_seeds_with_the_same_scores_are_named_as_well():
    first = outcomes(GOOD)
    scores = first.assign(
        success=np.clip(first.success * 0.8 + 0.2 * np.random.default_rng(0).random(len(first)), 0, 1)
    )
    scores.loc[scores.condition == "identity", "success"] = scores[scores.condition == "P1"].success.to_numpy()
    copy = scores[scores.seed == 0].assign(seed=1)
    assert "seeds 0, 1 solve the same episodes" in judge(pd.concat([scores, copy]), GATE).caveats


def test_a_gate_of_ones_own_may_leave_out_wrong_messages():
    kept = [criterion for criterion in GATE.criteria if "shuffle" not in criterion.conditions]
    own = GATE.model_copy(update={"criteria": kept})
    rows = outcomes(GOOD)
    assert judge(rows[rows.condition != "shuffle"], own).verdict == PASS


def test_identity_is_the_text_in_every_seed_and_empty_answers_prove_nothing():
    rows = outcomes(GOOD, seeds=(0, 1, 2))
    identity = rows[rows.condition == "identity"]
    broken = [identity.assign(seed=seed, success=identity.success * (seed == 0)) for seed in (0, 1, 2)]
    several = pd.concat([rows[rows.condition != "identity"], *broken])
    assert "'identity is the text' does not hold" in judge(several, GATE).reason
    answers = rows.assign(answer=np.where(rows.condition == "normal", "an answer", ""))
    assert judge(answers, GATE).verdict == PASS
    answers.loc[answers.condition == "identity", "success"] = 0.0
    assert "'identity is the text' does not hold" in judge(answers, GATE).reason


def test_a_normal_without_seeds_has_no_training_seeds():
    rows = outcomes({**GOOD, "normal": 0.8}, seeds=(0, 1, 2))
    one = rows[(rows.condition != "normal") | (rows.seed == 0)]
    shared = one.assign(seed=one.seed.where(one.condition != "normal", -1))
    with pytest.raises(UserError, match="condition normal: without a seed, and others are of seed 0"):
        judge(shared, GATE)


def test_a_wrong_message_that_helps_is_named_beside_the_verdict():
    """B may read what all messages have in common: normal is above shuffle, but both far above no message."""
    any_message = {**GOOD, "normal": 0.80, "shuffle": 0.70, "near": 0.70}
    verdict = judge(outcomes(any_message, n=1000), GATE)
    assert verdict.verdict == PASS
    assert "a wrong message helps as well, by +33.0 points over none" in verdict.caveats
    assert "helps as well" not in judge(outcomes(GOOD), GATE).caveats


def test_one_training_seed_that_somebody_chose_does_not_pass_for_the_system(tmp_path, capsys):
    good, bad = outcomes(GOOD, seeds=(0,)), outcomes({**GOOD, "normal": 0.39}, seeds=(1, 2))
    rows = pd.concat([good, bad[bad.seed >= 0]])
    file = write_jsonl(tmp_path / "outcomes.jsonl", rows)
    assert main([str(file), "--seed", "0"]) == 1
    printed = capsys.readouterr().out
    assert "Verdict: PASS" in printed
    assert "One of 3 training seeds; over all of them: FAIL." in printed


def test_groups_of_unequal_size_count_as_fewer_equal_ones():
    rows = outcomes(GOOD, n=500)
    sizes = [100, *[4] * 100]
    names = np.repeat(np.arange(len(sizes)), sizes).astype(str)
    verdict = judge(rows.assign(group=names[rows.episode]), GATE)
    assert verdict.verdict == INVALID
    assert (
        "n = 500 of 101 groups, which by their sizes count as 21.6 equal ones; take 35 at least" in verdict.reason
    )


def test_an_episode_without_a_group_is_in_none_of_the_same_name():
    rows = outcomes(GOOD, n=100)
    names = [str(50 + (episode // 5)) if episode < 50 else "" for episode in rows.episode]
    assert RowArms(rows.assign(group=names)).clusters == 60


def test_a_condition_has_all_training_seeds_or_rows_that_they_share():
    rows = outcomes({**GOOD, "init": 0.37}, seeds=(0, 1, 2))
    one = rows[(rows.condition != "init") | (rows.seed == 0)]
    with pytest.raises(UserError, match="condition init, seed 1: missing"):
        judge(one, GATE)
    for name in ("normal", "init"):
        part = rows[(rows.condition == name) & (rows.seed == 0)].assign(seed=-1)
        with pytest.raises(UserError, match=f"condition {name}: some outcomes are of seed 2, some of no seed"):
            judge(pd.concat([rows, part]), GATE)
    half = outcomes(GOOD, n=100)
    half["seed"] = half.seed.where((half.condition == "normal") & (half.episode < 50), -1)
    with pytest.raises(UserError, match="condition normal: some outcomes are of seed 0, some of no seed"):
        judge(half, GATE)


def test_one_codec_has_one_k():
    rows = outcomes(GOOD, k=4)
    rows.loc[rows.condition == "shuffle", "k"] = 16
    with pytest.raises(UserError, match="column k: 4, 16 in one codec"):
        judge(rows, GATE)


def test_one_episode_is_a_setting_too_small_or_a_line(tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    shares = {"normal": 1, "P0": 0, "P1": 1, "null": 0, "shuffle": 0}
    lines = [f'{{"id": 1, "condition": "{name}", "k": 4, "success": {share}}}' for name, share in shares.items()]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="two episodes"):
        main([str(path)])


# --- a third attack ------------------------------------------------------------------------------------------


def test_a_score_under_one_condition_leaves_the_others_exact():
    """One half in `facts-1` made 23 of 150 above none a FAIL, by the wider bound of scores."""
    rows = outcomes(
        {"normal": 23 / 150, "null": 0, "random": 0, "shuffle": 0, "P0": 0, "P1": 1, "facts-1": 0}, n=150
    )
    scored = rows.assign(success=rows.success.where((rows.condition != "facts-1") | (rows.episode > 0), 0.5))
    exact, beside = (result(judge(one, GATE), "beats no message") for one in (rows, scored))
    assert exact.status == PASS
    assert beside.sentence == exact.sentence


def test_retention_has_two_bounds_or_none():
    level = {"normal": 0.6, "P1": 0.105, "P0": 0.0, "null": 0.0, "random": 0.0, "shuffle": 0.0}
    rows = pd.concat(
        pd.DataFrame({"condition": name, "seed": -1, "episode": range(40), "success": score})
        for name, score in level.items()
    )
    found = RowArms(rows).retention(0.05)
    assert found.value == pytest.approx(0.6 / 0.105)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_bound_just_below_the_margin_is_not_printed_as_the_margin():
    wins, losses = 52, 10
    rows = outcomes({"normal": 0.0, "null": 0, "random": 0, "shuffle": 0, "P0": 0.0, "P1": 1}, n=300)
    at = rows.episode
    rows["success"] = rows.success.where(rows.condition != "normal", (at < wins).astype(float))
    rows["success"] = rows.success.where(rows.condition != "P0", (at >= 300 - losses).astype(float))
    found = result(judge(rows, GATE), "beats no message")
    assert found.status == FAIL
    assert "lower bound +9.99 " in found.sentence
