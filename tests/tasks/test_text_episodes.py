"""Text episodes: strangers' files are read as they are, and each fault names file, line, key and fix."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.text_episodes import MESSAGE, TextEpisode, read_text_episodes, write_text_episodes
from m2ray.util.errors import UserError
from m2ray.util.text import is_text

GOOD = {"id": "a", "message": "Uma is at Mill House.", "prompt": f"{MESSAGE} Where is Uma?", "target": "Ghent"}
# The form of a file made for another program, with columns that nothing here reads.
STRANGE = [
    {
        "id": f"c_{i}",
        "who": who,
        "prompt_A": f"{who} is at Mill House.",
        "prompt_B": f"Where is {who}?",
        "y": "Belgium",
    }
    for i, who in enumerate(("Uma", "Carol", "Xavier"))
]
FIELDS = {"message": "prompt_A", "prompt": "prompt_B", "target": "y"}
words = st.text(max_size=20).filter(is_text)


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file of lines, given as objects, text or bytes."""

    def write(*lines, end=b"\n", start=b""):
        raw = [
            line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        path = tmp_path / "episodes.jsonl"
        path.write_bytes(start + end.join(raw) + end)
        return path

    return write


def test_a_strangers_file_is_read_by_naming_its_columns(file):
    episodes = read_text_episodes(file(*STRANGE), FIELDS)
    assert episodes[1] == TextEpisode(
        "c_1", "Carol is at Mill House.", "{message}\nWhere is Carol?", ("Belgium",), (), "c_1"
    )
    assert episodes[1].prompt_with(episodes[1].message) == "Carol is at Mill House.\nWhere is Carol?"
    assert episodes[1].prompt_with("") == "\nWhere is Carol?"
    grouped = read_text_episodes(file(*STRANGE), {**FIELDS, "group": "y"} | {"target": "who"})
    assert {episode.group for episode in grouped} == {"Belgium"}


def test_the_usual_keys(file):
    line = {
        **GOOD,
        "id": 7,
        "target": ["Ghent", "Gent", "Ghent"],
        "choices": ["Ghent", "Bonn"],
        "group": 3,
        "x": None,
    }
    (episode,) = read_text_episodes(file(line))
    assert episode == TextEpisode("7", GOOD["message"], GOOD["prompt"], ("Ghent", "Gent"), ("Ghent", "Bonn"), "3")
    assert episode.prompt_parts() == ("", " Where is Uma?")
    assert read_text_episodes(file({**GOOD, "choices": None, "group": None}))[0].group == "a"


def test_a_place_in_the_message_or_other_braces_are_plain_text(file):
    line = {**GOOD, "message": "{message} {x}", "prompt": f'{{"q": {MESSAGE}}} {{0}}'}
    (episode,) = read_text_episodes(file(line))
    assert episode.prompt_with(episode.message) == '{"q": {message} {x}} {0}'


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("rest", [[], [""], ["", "  ", "\t"]])
def test_byte_order_mark_crlf_and_blank_lines(file, start, end, rest):
    lines = [{**GOOD, "id": name, "message": "é\u2028\x0b."} for name in "abc"]
    first, *others = (json.dumps(line, ensure_ascii=False) for line in lines)
    read = read_text_episodes(file(*rest, first, *rest, *others, *rest, start=start, end=end))
    assert [(episode.id, episode.seed) for episode in read] == [("a", 0), ("b", 1), ("c", 2)]
    assert [episode.line for episode in read] == [place + 1 + len(rest) * (1 + (place > 0)) for place in range(3)]
    assert read[0].message == "é\u2028\x0b."


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


FAULTS = [
    ("{", "not JSON (Expecting property name enclosed in double quotes at column 2); write one object per line"),
    ("{} {}", "not JSON (Extra data at column 4); write one object per line"),
    ("[" * 100_000, "not JSON"),
    ("9" * 5_000, "not JSON that can be read"),
    (b'{"id": "\xff"}', "not UTF-8 (byte 9: invalid start byte); save the file as UTF-8"),
    ([GOOD], "expected an object, found list; write one object per line"),
    ('{"id": "b", "id": "c"}', "id: given twice; keep one"),
    (without("target"), "target: missing; add it, or name its column: fields.target"),
    (without("target") | {"targets": "x"}, "target: missing; did you mean `targets`?"),
    ({**GOOD, "id": "first"}, "id: 'first' is also in line 1; use another id"),
    ({**GOOD, "id": True}, "id: true is not text; write it in quotes"),
    ({**GOOD, "id": 1.5}, "id: 1.5 is not text; write it in quotes"),
    ({**GOOD, "message": "  "}, "message: empty; write it"),
    ({**GOOD, "message": "\ud800"}, "message: holds a lone surrogate, which is not a character; remove it"),
    ({**GOOD, "message": ["a"]}, 'message: ["a"] is not text; write it in quotes'),
    ({**GOOD, "prompt": MESSAGE * 2}, "prompt: holds {message} 2 times; keep one"),
    (
        {**GOOD, "prompt": "{ Message } Who?"},
        "prompt: holds { Message }; write {message}, the place of the message",
    ),
    ({**GOOD, "target": 3}, "target: 3 is not text; write it in quotes"),
    ({**GOOD, "target": []}, "target: an empty list; write a right answer"),
    ({**GOOD, "target": ["a", None]}, "target: null is not text; write it in quotes"),
    ({**GOOD, "choices": ["a"]}, 'choices: ["a"] is not a list of two or more answers; write one, or remove it'),
    ({**GOOD, "choices": "ab"}, 'choices: "ab" is not a list of two or more answers; write one, or remove it'),
    ({**GOOD, "choices": ["a", "a"]}, "choices: holds an answer twice; keep one"),
    ({**GOOD, "group": ""}, "group: empty; write it"),
]


@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=[fault[:40] for _, fault in FAULTS])
def test_each_fault_names_file_line_key_and_fix(file, line, fault):
    path = file({**GOOD, "id": "first"}, line, {**GOOD, "id": "last"})
    with pytest.raises(UserError) as caught:
        read_text_episodes(path)
    assert str(caught.value).startswith(f"{path}: line 2: {fault}")
    assert "\n" not in str(caught.value)


def test_faults_of_the_file_itself(file, tmp_path):
    for path, fault in [
        (tmp_path / "none.jsonl", "no such file; check the path"),
        (tmp_path, "a folder; give a JSON Lines file in it"),
        (file("", start=b"\xef\xbb\xbf"), "no episodes; write one JSON object per line"),
    ]:
        with pytest.raises(UserError) as caught:
            read_text_episodes(path)
        assert str(caught.value) == f"{path}: {fault}"


def test_faults_of_renamed_columns(file):
    path = file(*STRANGE)
    for fields, fault in [
        ({**FIELDS, "targt": "y"}, "fields.targt: unknown key; did you mean `target`?"),
        ({**FIELDS, "xyz": "y"}, "fields.xyz: unknown key; use id, message, prompt, target, choices, group, near"),
        (
            {**FIELDS, "prompt": "prompt_A"},
            "fields.prompt: column 'prompt_A' is message already; name another column",
        ),
        ({**FIELDS, "prompt": ""}, "fields.prompt: '' is not the name of a column; write text"),
        (
            {**FIELDS, "target": "Y1"},
            f"{path}: line 1: Y1 (fields.target): missing; add it, or name another column",
        ),
        ({**FIELDS, "group": "whos"}, f"{path}: line 1: whos (fields.group): missing; did you mean `who`?"),
    ]:
        with pytest.raises(UserError) as caught:
            read_text_episodes(path, fields)
        assert str(caught.value) == fault
    assert read_text_episodes(path, {**FIELDS, "group": "id"})[0].group == "c_0"


episodes = st.builds(
    TextEpisode,
    id=words,
    message=words,
    prompt=words.filter(lambda text: MESSAGE not in text).map(lambda text: f"{text}{MESSAGE}{text}"),
    targets=st.lists(words, min_size=1, max_size=3, unique=True).map(tuple),
    choices=st.just(()) | st.lists(words, min_size=2, max_size=4, unique=True).map(tuple),
    group=words,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(episodes, min_size=1, max_size=5, unique_by=lambda episode: episode.id))
def test_what_is_written_is_read_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "episodes.jsonl"
    write_text_episodes(path, rows)
    assert read_text_episodes(path) == rows


def test_many_lines_are_read_in_seconds(file):
    path = file(*({**GOOD, "id": i, "message": f"Sentence {i}. " * 10} for i in range(20_000)))
    start = time.process_time()
    assert len(read_text_episodes(path)) == 20_000
    assert time.process_time() - start < 5  # a tenth of 200,000 lines takes about 0.4 s
