"""Scorers: SQuAD's and ROUGE's numbers equal those of independent packages; faults name key and fix."""

import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torchmetrics.functional.text import rouge_score as torchmetrics_rouge
from torchmetrics.functional.text import squad

from m2ray.tasks.scorers import SCORERS, Choice, normalize, scorer
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError

WORDS = [
    "the",
    "a",
    "an",
    "The",
    "Ghent",
    "ghent",
    "lives",
    "in",
    "U.S.",
    "it's",
    "42",
    "naïve",
    "“so”",
    "x-ray",
    "Ö",
    ".",
]


def pairs(count):
    """Return made-up answers, each with one to three targets; many share words."""
    rng = random.Random(5)

    def text():
        spaces = rng.choice([" ", "  ", "\n", "\t", " , "])
        words = [rng.choice(WORDS) + rng.choice(["", "", "", ".", ","]) for _ in range(rng.randint(1, 6))]
        return rng.choice(["", " "]) + spaces.join(words)

    made = []
    for _ in range(count):
        targets = [text() for _ in range(rng.randint(1, 3))]
        made.append((rng.choice([text(), text(), rng.choice(targets).upper(), rng.choice(targets)]), targets))
    return made


def test_exact_and_f1_equal_an_independent_package_on_1500_pairs():
    exact, f1 = scorer("exact"), scorer("f1")
    seen = set()
    for answer, targets in pairs(1_500):
        # It follows SQuAD 2 where one of the texts has no words; version 1.1 gives F1 0 then (tested below).
        if not all(normalize(text) for text in (answer, *targets)):
            continue
        expected = squad(
            [{"prediction_text": answer, "id": "1"}],
            [{"answers": {"answer_start": [0] * len(targets), "text": targets}, "id": "1"}],
        )
        assert 100 * exact.score(answer, targets) == expected["exact_match"].item()
        assert 100 * f1.score(answer, targets) == pytest.approx(expected["f1"].item(), abs=1e-4)
        seen.add((answer, *targets))
    assert len(seen) >= 1_000


def test_texts_without_words_score_as_in_squad_1_1():
    for answer, target in [("", "the"), ("the", "a."), (".", "!")]:
        assert scorer("exact").score(answer, [target]) == 1
        assert scorer("f1").score(answer, [target]) == 0


def test_rouge_l_equals_an_independent_implementation():
    rouge = scorer("rouge_l")
    for answer, targets in pairs(150):
        expected = max(
            torchmetrics_rouge(answer, target, rouge_keys="rougeL")["rougeL_fmeasure"].item() for target in targets
        )
        assert rouge.score(answer, targets) == pytest.approx(expected, abs=1e-5)
    assert rouge.score("the cats sat", ["the cat sits"]) == pytest.approx(1 / 3)
    assert scorer("rouge_l", stem=True).score("the cats sat", ["the cat sits"]) == pytest.approx(2 / 3)


@given(st.text(), st.text())
@example("İ", "i̇")
def test_scores_are_shares_and_a_right_answer_is_a_success(answer, target):
    for name in ("exact", "contains", "f1", "rouge_l"):
        judge = scorer(name)
        assert 0 <= judge.score(answer, [target]) <= 1
        assert judge.score(answer, [target, answer]) >= judge.score(answer, [target])
        try:
            judge.check_episode(TextEpisode("1", "m", "{message}", (target,)), "f: line 1")
        except UserError:
            continue
        assert judge.score(target, [target]) == 1
        assert judge.score("", [target]) == 0
        assert judge.score(string.punctuation, [target]) == 0


@pytest.mark.parametrize(
    ("name", "options", "answer", "targets", "score"),
    [
        ("exact", {}, " The Ghent.\n", ["Bonn", "ghent"], 1),
        ("exact", {}, "Ghent in Belgium", ["Ghent"], 0),
        ("exact", {"normalize": False}, " Ghent\n", ["Ghent"], 1),
        ("exact", {"normalize": False}, "ghent", ["Ghent"], 0),
        ("contains", {}, "Uma lives in the city of Ghent.", ["Ghent"], 1),
        ("contains", {}, "He is in Bernard", ["Bern"], 0),
        ("contains", {"normalize": False}, "He is in Bernard", ["Bern"], 1),
        ("contains", {"normalize": False}, "bern", ["Bern"], 0),
        ("regex", {}, "It is 42.", [r"\b4[0-9]\b"], 1),
        ("regex", {}, "ghent", ["Ghent"], 0),
        ("regex", {"ignore_case": True}, "ghent", ["Ghent"], 1),
        ("regex", {"full": True}, " Ghent\n", ["Ghent"], 1),
        ("regex", {"full": True}, "In Ghent", ["Ghent"], 0),
        ("regex", {}, "a\nb", ["a.b"], 1),
        ("f1", {}, "in Ghent city", ["Ghent"], 0.5),
        ("choice", {}, "B", ["A", "B"], 1),
        ("choice", {}, "b", ["A", "B"], 0),
    ],
)
def test_scores(name, options, answer, targets, score):
    assert scorer(name, **options).score(answer, targets) == pytest.approx(score)


def test_the_likeliest_choice_is_picked():
    choices, values, tokens = ["é", "bbbb", "c"], [-4.0, -6.0, -3.0], [1, 3, 1]
    assert Choice().pick(choices, values, tokens) == "c"
    assert Choice(length="tokens").pick(choices, values, tokens) == "bbbb"
    assert Choice(length="bytes").pick(["é", "bb"], [-4.0, -4.2], [1, 1]) == "é"
    assert Choice().pick(["a", "b"], [-1.0, -1.0], [1, 1]) == "a"
    assert Choice().pick(["a", "b"], [float("-inf"), -1e9], [1, 1]) == "b"


def test_thresholds():
    assert {name: scorer(name).threshold for name in SCORERS} == {
        **dict.fromkeys(SCORERS, 1.0),
        "f1": 0.5,
        "rouge_l": 0.5,
    }
    assert scorer("f1", threshold=0.9).threshold == 0.9


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("exakt", {}, "scorer: 'exakt' does not exist; did you mean `exact`?"),
        ("bleu", {}, "scorer: 'bleu' does not exist; use exact, contains, regex, f1, choice, rouge_l"),
        (3, {}, "scorer: 3 does not exist; use exact, contains, regex, f1, choice, rouge_l"),
        ("f1", {"treshold": 0.3}, "scorer f1: treshold: unknown key; did you mean `threshold`?"),
        ("f1", {"threshold": 0.0}, "scorer f1: threshold: 0.0 is not above 0; write a larger number"),
        ("f1", {"threshold": 30.0}, "scorer f1: threshold: 30.0 is above 1; write 1 or less"),
        (
            "choice",
            {"length": "words"},
            "scorer choice: length: 'words' does not exist; use 'none', 'tokens' or 'bytes'",
        ),
    ],
)
def test_unknown_scorers_and_options(name, options, fault):
    with pytest.raises(UserError) as caught:
        scorer(name, **options)
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("name", "targets", "choices", "fault"),
    [
        (
            "exact",
            ["B", "A"],
            [],
            "target: 'A' is empty without articles, punctuation and spaces; set normalize: false",
        ),
        (
            "contains",
            ["+"],
            [],
            "target: '+' is empty without articles, punctuation and spaces; set normalize: false",
        ),
        ("f1", ["The"], [], "target: 'The' is empty without articles, punctuation and spaces; use scorer exact"),
        (
            "rouge_l",
            ["根特"],
            [],
            "target: '根特' has no ASCII letter or digit, and rouge_l compares nothing else; use",
        ),
        ("regex", ["(a"], [], "target: '(a' is not a regular expression (missing ), unterminated subpattern at"),
        ("regex", ["a*"], [], "target: 'a*' matches an empty answer; write a narrower pattern"),
        ("choice", ["A"], [], "choices: missing, but scorer choice needs them; add them or use scorer exact"),
        ("choice", ["a"], ["A", "B"], "target: 'a' is not among the choices; write it as it is there"),
        ("choice", ["A", "B"], ["A", "B"], "target: all choices are right; remove those that are wrong"),
    ],
)
def test_episodes_that_cannot_be_scored(name, targets, choices, fault):
    episode = TextEpisode("1", "m", "{message}", tuple(targets), tuple(choices))
    with pytest.raises(UserError) as caught:
        scorer(name).check_episode(episode, "file: line 3")
    assert str(caught.value).startswith(f"file: line 3: {fault}")
    fine = TextEpisode("1", "m", "{message}", ("Ghent",), ("Ghent", "Bonn"))
    scorer(name).check_episode(fine, "file: line 3")
