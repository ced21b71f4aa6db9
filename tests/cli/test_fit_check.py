"""`m2ray.evaluate --receiver R --task T.yaml`: a stranger's files on the smallest receiver."""

import json

import pytest

from m2ray.cli.evaluate import main
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes, solutions
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")
N = 48
LINES = [
    {
        "id": str(e.seed),
        "message": e.message,
        "prompt": f"A {{message}} B {e.context} ?",
        "target": [write_answer(EASY, values, "values") for values in solutions(EASY, e.sender + e.receiver)],
    }
    for e in episodes(EASY, range(N), "search")
]


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return a function that writes a task and its lines, and returns what the command prints."""
    monkeypatch.chdir(tmp_path)

    def run(lines=LINES, seeds=f"0:{N}", conditions="P0,P1", **task):
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tree = {"file": "t.jsonl", "scorer": "exact", **task}
        (tmp_path / "t.yaml").write_text(json.dumps({key: v for key, v in tree.items() if v is not None}))
        main(["--receiver", "mini", "--task", "t.yaml", "--seeds", seeds, "--conditions", conditions])
        return capsys.readouterr().out

    return run


def rates(printed):
    """Return success in percent by condition."""
    cells = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if line.startswith("| P")]
    return {line[1]: float(line[3]) for line in cells}


def test_a_fit_receiver(check):
    printed = check()
    assert rates(printed)["P1"] > 85 > 60 > rates(printed)["P0"]
    assert "PASS: text leaves room: P1 - P0 = +" in printed
    assert "a codec at P0 + 20 points is found with a chance of 80% from n = " in printed


def test_a_condition_that_is_named_twice_runs_once(check):
    assert check(conditions="P0,P1,P0") == check(conditions="P0,P1")


def test_groups_are_counted(check):
    printed = check([{**line, "group": f"g{i // 2}"} for i, line in enumerate(LINES)])
    assert f"| {N} of 24 groups |" in printed
    assert f"n = {N}, but of 24 groups only; take 35 at least" in printed
    first = [{**line, "group": LINES[i - i % 2]["id"]} for i, line in enumerate(LINES)]
    assert check(first) == printed  # groups that are named after their first episode
    one = check([{**line, "group": "g"} for line in LINES])
    assert "[0.0, 100.0]" in one
    assert "FAIL: enough episodes: intervals need two episodes or groups at least" in one
    printed = check([{**line, "group": f"g{i % 2}"} for i, line in enumerate(LINES)])
    assert f"FAIL: enough episodes: n = {N}, but of 2 groups only; take 35 at least" in printed


def test_episodes_of_one_message_are_not_independent(check):
    printed = check([{**line, "message": LINES[i // 2]["message"]} for i, line in enumerate(LINES)])
    assert f"| {N} of 24 messages |" in printed


def test_solved_examples_are_not_asked(check):
    printed = check(examples=2)
    assert "left out, since task.examples shows them solved before every prompt: t.jsonl: line " in printed
    assert f"| {N - 2} " in printed
    shown = printed.splitlines()[0].partition("line ")[2].split(", ")
    first = int(shown[0])
    with pytest.raises(UserError, match=r"--episodes .*: all of these lines are shown solved before every prompt"):
        check(examples=2, seeds=f"{first - 1}:{first}")


def test_answers_that_b_has_no_space_for_are_counted(check):
    long = [{**line, "target": " ".join(["1"] * 140)} if i == 3 else line for i, line in enumerate(LINES)]
    printed = check(long)
    assert (
        f"FAIL: answers have space: 1 right answer of {N} with more than 128 tokens, the longest of episode "
        "'3' (line 4) with 141"
    ) in printed
    assert "answers have space" not in check()


def test_no_number_of_episodes_is_named_where_the_text_does_not_help(check):
    printed = check([{**line, "target": "2 2 2 2 2"} for line in LINES])
    assert "FAIL: enough episodes: no number is enough as long as the text helps so little" in printed
    assert "FAIL: enough episodes: intervals need two episodes" in check(seeds="0:1")


def test_a_task_may_stand_below_its_key_as_in_a_space(check, tmp_path):
    (tmp_path / "w.yaml").write_text("task:\n  file: t.jsonl\n  scorer: exact\n")
    check(seeds="0:4")
    main(["--receiver", "mini", "--task", "w.yaml", "--seeds", "0:4"])
    (tmp_path / "w.yaml").write_text("task:\n  file: t.jsonl\n  scorrer: exact\n")
    with pytest.raises(UserError, match=r"w.yaml: task: scorrer: unknown key; did you mean `scorer`\?"):
        main(["--receiver", "mini", "--task", "w.yaml", "--seeds", "0:4"])


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (
            {"scorer": {"name": "f1", "threshold": 0.3}, "threshold": 0.9},
            "threshold: scorer.threshold is 0.3",
        ),
        ({"scorer": None}, "t.jsonl: line 1: receiver_context: missing.* free text set task.scorer, such as"),
        (
            {"file": None, "scorer": None, "level": "sentences-40x4"},
            "level 'sentences-40x4' .* N from 2 to 32",
        ),
        ({"examples": 60}, "t.jsonl: has .* episodes of part train, but task.examples is 60; lower it"),
        ({"scorer": "exakt"}, "t.yaml: scorer: 'exakt' does not exist; did you mean `exact`"),
    ],
)
def test_faults_of_a_task_are_one_line(check, task, fault):
    load_receiver("mini")
    with pytest.raises(UserError, match=fault) as caught:
        check(**task)
    assert "\n" not in str(caught.value)
