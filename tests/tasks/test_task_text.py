"""Answers, constraints and episode files as text: read back as written, or refused line by line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.receiver.episode_source import with_messages
from m2ray.tasks.answers import read_answer, verify, write_answer
from m2ray.tasks.episode_files import read_episodes
from m2ray.tasks.episodes import draw_episode, episodes, read_facts
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")
SIZES = [level(name) for name in ("easy", "medium", "hard", "lookup", "lookup-6x10")]

# --- answers -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(["json", "values"]), st.data())
def test_answers_are_read_back_as_they_were_written(size, form, data):
    values = data.draw(st.tuples(*[st.integers(-99, 99)] * size.variables))
    assert read_answer(size, write_answer(size, values, form), form) == values


def test_the_first_object_of_a_talkative_answer_counts():
    text = 'Let me think {of it}. {"x1": 0, "x2": 2, "x3": 1, "x4": 1}'
    assert read_answer(EASY, text, "json") is None
    text = 'Sure!\n```json\n{"x4": 1, "x1": 0,\n "x2": 2, "x3": 1}\n```\n{"x1": 9}'
    assert read_answer(EASY, text, "json") == (0, 2, 1, 1)
    assert read_answer(EASY, " 0 2\n1 1 ", "values") == (0, 2, 1, 1)


json_likes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(EASY.names) | st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.sampled_from(["json", "values"]),
    st.text() | st.text(alphabet='{}[]":,x1234- \n') | json_likes.map(json.dumps),
)
def test_any_text_is_read_as_an_answer_or_as_none(size, form, text):
    values = read_answer(size, text, form)
    assert values is None or (len(values) == size.variables and all(type(v) is int for v in values))
    assert verify(draw_episode(size, 0, "train"), text, form).parsed == (values is not None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"x1": 0, "x2": 2, "x3": 1}',
        '{"x1": 0, "x2": 2, "x3": 1, "x4": 1, "x5": 0}',
        '{"x1": 0, "x2": 2, "x3": 1, "x4": true}',
        '{"x1": 0, "x2": 2, "x3": 1, "x4": 1.0}',
        '{"x1": 0, "x2": 2, "x3": 1, "x4": "1"}',
        '{"x1": 0, "x2": 2, "x3": 1, "x4": null}',
        pytest.param('{"x1": 0, "x2": 2, "x3": 1, "x4": ' + "1" * 5000 + "}", id="5000 digits"),
        '{"x1": 0, "x2": 2, "x3": 1, "x4": 1',
        pytest.param('{"x1": ' + "[" * 100_000 + "}", id="deeply nested"),
    ],
)
def test_an_unreadable_json_answer_is_none(text):
    assert read_answer(EASY, text, "json") is None


@pytest.mark.parametrize(
    "text", ["", "0 2 1", "0 2 1 1 0", "0 2 1 one", "0 2 1 1.0", "0,2,1,1", "0 2 1 +1", "0 2 1 " + "1" * 5000]
)
def test_an_unreadable_values_answer_is_none(text):
    assert read_answer(EASY, text, "values") is None


# --- constraints ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text() | st.text(alphabet="x0123456789 =!+-;"))
def test_any_text_is_read_as_constraints_or_refused(text):
    try:
        constraints = read_facts(text, EASY)
    except ValueError:
        return
    for c in constraints:
        assert 0 <= c.variable < 4
        assert (0 <= c.other < 4) == (c.kind in ("+", "-"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not a constraint"),
        ("x1 = 2;", "is not a constraint"),
        ("x1 == 2", "is not a constraint"),
        ("x1 = two", "is not a constraint"),
        ("x1 + x2 + x3 = 3", "is not a constraint"),
        pytest.param("x1 = " + "9" * 5000, "is not a constraint", id="5000 digits"),
        ("x5 = 1", "names a variable that level easy does not have"),
        ("x0 = 1", "names a variable"),
        ("x1 + x0 = 3", "names a variable"),
        ("x1 - x5 = 0", "names a variable"),
        ("x1 - x1 = 0", "names one variable twice"),
    ],
)
def test_text_that_is_not_a_constraint_of_the_level_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault) as raised:
        read_facts(text, EASY)
    assert len(str(raised.value)) < 200


def test_a_kind_that_the_level_does_not_have_is_refused():
    # Counting the solutions of a pair would enumerate all assignments: 100^26 of them at the largest lookup level.
    with pytest.raises(ValueError, match="of a kind that level lookup-26x100 does not have"):
        read_facts("x1 + x2 = 3", level("lookup-26x100"))


def test_messages_in_other_words_change_nothing_else():
    drawn = episodes(EASY, range(3))
    reworded = with_messages(drawn, ["a", "b", "c"])
    assert [e.message for e in reworded] == ["a", "b", "c"]
    assert [e.content for e in reworded] == [e.content for e in drawn]
    assert [e.context for e in reworded] == [e.context for e in drawn]


# --- episodes from a file ------------------------------------------------------------------------------------

GOOD = {
    "receiver_context": "x1 + x2 = 1; x3 = 2",
    "sender_message": "x4 = 2; x1 - x4 = -1",
    "receiver_output": '{"x1": 1, "x2": 0, "x3": 2, "x4": 2}',
}


def line(**changes):
    return json.dumps({**GOOD, **changes})


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "episodes.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_a_file_of_drawn_episodes_is_read_back(tmp_path_factory, seeds):
    drawn = [draw_episode(EASY, seed, "train") for seed in seeds]
    path = written(
        tmp_path_factory.mktemp("file"),
        *(
            line(
                receiver_context=e.context,
                sender_message=e.message,
                receiver_output=write_answer(EASY, e.solution, "json"),
            )
            for e in drawn
        ),
    )
    read = read_episodes(path, EASY)
    assert [e.seed for e in read] == list(range(len(seeds))), "a line's number is its seed"
    for one, other in zip(read, drawn, strict=True):
        assert (one.sender, one.receiver, one.solution, one.message, one.content) == (
            other.sender,
            other.receiver,
            other.solution,
            other.message,
            other.content,
        )


def test_a_message_in_free_words_keeps_the_content_of_the_constraints_beside_it(tmp_path):
    words = "Hi! x4 is two\u2028and x1 is one less."
    raw = json.dumps(
        {**GOOD, "sender_context": GOOD["sender_message"], "sender_message": words}, ensure_ascii=False
    )
    (read,) = read_episodes(written(tmp_path, raw), EASY)
    assert read.message == words
    assert read.content == read_episodes(written(tmp_path, line()), EASY)[0].content


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    path = written(tmp_path, "\ufeff" + line() + "\r", "\r", "  \t", line() + "\r", "")
    assert [episode.seed for episode in read_episodes(path, EASY)] == [0, 1]
    path = written(tmp_path, "\ufeff", line(), "", "{")
    with pytest.raises(UserError, match="line 4: not JSON"):
        read_episodes(path, EASY)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object, found list"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "line 2: not JSON"),
        (json.dumps({"receiver_context": "x1 = 1"}), "line 2: sender_message: missing, empty or not text; add it"),
        (line(sender_message=""), "line 2: sender_message: missing, empty or not text; add it"),
        (line(receiver_output=5), "line 2: receiver_output: missing, empty or not text; add it"),
        (line(sender_context=5), "line 2: sender_context: missing, empty or not text; add it"),
        (line(sender_context="x1 = 1", sender_message="\ud800"), "line 2: sender_message: missing, empty or not"),
        (line(extra=1), "line 2: extra: unknown key; remove it"),
        (line()[:-1] + ', "sender_message": "x1 = 1"}', "line 2: sender_message: given twice; keep one"),
        (line(sender_message="x4 is two"), "line 2: sender_message: 'x4 is two' is not a constraint such as"),
        (line(sender_context="x9 = 1"), "line 2: sender_context: 'x9 = 1' names a variable"),
        (line(receiver_context="x1 + x0 = 1"), "line 2: receiver_context: 'x1 \\+ x0 = 1' names a variable"),
        (line(receiver_output="1 0 2 2"), "line 2: receiver_output: not a JSON answer of level easy; fix it"),
        (
            line(receiver_output='{"x1": 1, "x2": 0, "x3": 2, "x4": 1}'),
            "line 2: receiver_output: wrong answer to the facts",
        ),
    ],
)
def test_a_faulty_line_is_named_with_its_key_and_fix(tmp_path, bad, fault):
    path = written(tmp_path, line(), bad, "{")
    with pytest.raises(UserError, match=fault) as raised:
        read_episodes(path, EASY)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value).replace(str(path), "")) < 300


def test_bytes_that_are_not_utf_8_are_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(line().encode() + b'\n{"sender_message": "\xff"}\n')
    with pytest.raises(UserError, match=r"line 2: not UTF-8 .*; save the file as UTF-8"):
        read_episodes(path, EASY)


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"no such file|a folder; give a JSON Lines file in it"):
            read_episodes(path, EASY)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no episodes; write one JSON object per line"):
        read_episodes(tmp_path / "empty.jsonl", EASY)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | json_likes.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_are_episodes_or_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_episodes(path, EASY)
