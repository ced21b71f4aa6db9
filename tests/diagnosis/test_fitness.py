"""Receivers on which every codec would be an INVALID SETTING, found before anything is trained."""

import pytest
from made_rows import make_rows
from sweeps import SPACE, write_space

from m2ray.cli.sweep import main
from m2ray.config.gate_file import load_gate
from m2ray.config.plan import load_plan
from m2ray.diagnosis.fitness import fitness_line, why_unfit
from m2ray.engine.preflight import check_answers
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError

CONTENT = load_gate("content")


def rows(p0, p1, n=40, **columns):
    made = make_rows({"P0": p0, "P1": p1}, n=n, split="search")
    return made[made.condition.isin(["P0", "P1"])].assign(**columns)


@pytest.mark.parametrize(
    ("p0", "p1", "n", "says"),
    [
        (0.35, 0.95, 40, ""),
        (0.0, 0.1, 40, ""),  # may be 10 points or more
        (0.0, 0.0, 40, "'text leaves room' cannot hold: P0 0.0%, P1 0.0% of 40 episodes, a difference of +0.0"),
        (0.9, 0.9, 400, "'text leaves room' cannot hold: P0 90.0%, P1 90.0% of 400 episodes"),
        (0.0, 0.0, 12, ""),  # too few to know
    ],
)
def test_a_receiver_is_unfit_where_even_the_upper_bound_leaves_no_room(p0, p1, n, says):
    found = why_unfit(rows(p0, p1, n), CONTENT)
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_a_receiver_is_unfit_where_its_answers_are_cut_off_or_not_read():
    assert why_unfit(rows(0.3, 0.9, truncated=True), CONTENT) == (
        "'answers have space' cannot hold: 100.0% of the answers with the full text are truncated, of 5.0% allowed"
    )
    assert "'answers are read' cannot hold: 100.0%" in why_unfit(rows(0.3, 0.9, parsed=False), CONTENT)
    assert why_unfit(rows(0.3, 0.9), CONTENT) == ""
    assert why_unfit(rows(0.0, 0.0), load_gate("reference")) == "", "a gate without such criteria stops nothing"
    assert fitness_line(rows(0.25, 0.75)) == "P0 25.0%, P1 75.0% of 40 episodes"


def test_an_unfit_receiver_ends_a_dry_run(tmp_path, tiny_folder, capsys):
    trial = {**SPACE["trial"], "receiver": str(tiny_folder), "task": {"level": "easy"}}
    trial["splits"] = {**trial["splits"], "search": "1000:1040"}
    evaluation = {"conditions": ["normal", "null", "shuffle", "P0", "P1"], "text_bytes": [], "max_new_tokens": 64}
    file = write_space(tmp_path, trial={**trial, "evaluation": evaluation}, axes={}, search={}, points={"a": {}})
    with pytest.raises(UserError, match=r"receiver .*: unfit for this task, so every verdict would be"):
        main([str(file), "--dry-run", "--results", str(tmp_path)])
    assert "fitness          P0 0.0%, P1 0.0% of 40 episodes of the search split" in capsys.readouterr().out


def test_a_limit_that_cuts_off_the_right_answer_is_refused(tmp_path):
    mini = load_receiver("mini")
    for limit, fits in ((5, True), (4, False)):
        trial = {**SPACE["trial"], "evaluation": {"max_new_tokens": limit}}
        plan = load_plan(write_space(tmp_path, trial=trial))
        if fits:
            check_answers(plan, mini)
            continue
        with pytest.raises(UserError, match=r"evaluation.max_new_tokens: 4 cuts off the right answer"):
            check_answers(plan, mini)
