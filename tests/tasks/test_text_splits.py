"""Splits and partners of text episodes: groups and near-duplicates stay together, shuffled messages are wrong."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.episodes import PARTS
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.tasks.text_splits import (
    assign_parts,
    clusters,
    episodes_of_part,
    part_of_group,
    partners,
    simplify,
)
from m2ray.util.errors import UserError


def episode(name, message, group=None, *targets):
    return TextEpisode(name, message, "{message}", targets or (name,), (), group or name)


def sentence(rng, words=30):
    return " ".join("".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(words))


def test_a_part_is_the_documented_hash_of_the_group():
    assert [part_of_group(f"g{i}") for i in range(8)] == [
        next(
            name for name, share in PARTS.items() if int(hashlib.sha256(b"g%d" % i).hexdigest(), 16) % 20 in share
        )
        for i in range(8)
    ]
    assert part_of_group("é") == "train"  # a fixed case: parts must never change
    counts = {name: sum(part_of_group(str(i)) == name for i in range(20_000)) / 20_000 for name in PARTS}
    assert counts == pytest.approx({"train": 0.7, "search": 0.1, "select": 0.1, "confirm": 0.1}, abs=0.01)


def test_texts_equal_but_for_case_spaces_and_punctuation_stay_together():
    same = ["Uma lives in Ghent.", "uma  LIVES in\nGhent!", "“Uma” lives, in Ghent", "uma_lives-in-ghent"]
    rows = [episode(f"e{i}", text) for i, text in enumerate([*same, "Uma lives in Bonn.", "+", "-", "+ "])]
    for similarity in (None, 0.8):
        assert clusters(rows, similarity) == ["e0"] * 4 + ["e4", "e5", "e6", "e5"]
    assert simplify("Straße 5") == "strasse5"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-1", "1"),
        ("t = -2", "t = 2"),
        ("\u22121", "1"),
        ("3.5", "35"),
        ("x1 + x3 = 1", "x1 - x3 = 1"),
        ("x1 != 0", "x1 = 0"),
        ("5 > 3", "5 < 3"),
        ("\u0926\u093f\u0928", "\u0926\u093e\u0928"),  # Devanagari vowel signs
        ("\u0e01\u0e35", "\u0e01\u0e32"),  # Thai
        ("It was \U0001f44d", "It was \U0001f44e"),  # emoji
    ],
)
def test_signs_that_change_the_meaning_make_another_text(one, other):
    assert simplify(one) != simplify(other)
    rows = [episode(str(i), f"Row {i} says {(one, other)[i % 2]}", None, (one, other)[i % 2]) for i in range(8)]
    assert all((i - j) % 2 for i, j in enumerate(partners(rows)))  # the messages with the other answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("U.S.A.", "usa"),
        ("covid-19", "Covid 19"),
        ("3. Next: 4", "3 next 4"),
        ("well\u2014known\u00a0\u201cso\u201d", "wellknown so"),
        ("cafe\u0301", "CAF\u00c9"),
        ("\u6771\u4eac\u3001\u3067\u3059\u3002", "\u6771\u4eac\u3067\u3059"),
    ],
)
def test_spelling_that_changes_no_meaning_makes_the_same_text(one, other):
    assert simplify(one) == simplify(other)


def test_similar_texts_stay_together_and_others_do_not():
    rng, rows, expected = random.Random(1), [], []
    for i in range(150):
        text = sentence(rng)
        words = text.split()
        words[rng.randrange(30)] = "changed"
        half = " ".join(words[:15] + sentence(rng, 15).split())
        rows += [
            episode(f"{i:03}a", text),
            episode(f"{i:03}b", " ".join(words).upper()),
            episode(f"{i:03}c", half),
        ]
        expected += [f"{i:03}a", f"{i:03}a", f"{i:03}c"]
    found = clusters(rows)
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 3  # MinHash misses few
    assert clusters(rows, None) == [row.id for row in rows]
    assert clusters(rows) == found
    parts = assign_parts(rows)
    assert parts == [part_of_group(name) for name in found]


def test_near_duplicates_join_groups_through_chains_whatever_the_order():
    rows = [episode("1", "One text.", "z"), episode("2", "Another text!", "z"), episode("3", "another text", "b")]
    rows += [episode("4", "a third", "b"), episode("5", "A THIRD", "y"), episode("6", "alone", "a")]
    assert clusters(rows) == ["b"] * 5 + ["a"]
    assert clusters(rows[::-1]) == ["a"] + ["b"] * 5


@pytest.mark.parametrize("similarity", [0.01, 0.5, 0.9, 0.999])
def test_bounds_of_similarity(similarity):
    rows = [episode("1", "Uma lives in the town of Ghent."), episode("2", "uma lives in the town of Ghent")]
    assert clusters([*rows, episode("3", "xyz")], similarity) == ["1", "1", "3"]
    assert clusters([], similarity) == []
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(
            UserError, match=r"^similarity: .* is not between 0 and 1; write a number such as 0.8$"
        ):
            clusters(rows, wrong)


def test_many_near_duplicates_are_one_cluster():
    rng = random.Random(2)
    text = sentence(rng, 60)
    rows = [episode(f"{i:04}", f"{text} {i}") for i in range(1_500)]
    assert set(clusters(rows)) == {"0000"}


def test_episodes_of_a_part():
    rng = random.Random(3)
    rows = [episode(f"e{i}", sentence(rng), f"g{i // 2}") for i in range(400)]
    chosen = {part: episodes_of_part(rows, part) for part in PARTS}
    assert sorted((row.id for part in chosen.values() for row in part), key=lambda name: int(name[1:])) == [
        row.id for row in rows
    ]
    groups = [{row.group for row in part} for part in chosen.values()]
    assert not set.intersection(*groups)
    with pytest.raises(UserError) as caught:
        episodes_of_part(rows[:2], "confirm")
    assert str(caught.value) == (
        "split confirm: none of the episodes, which form 1 group, belongs to it (groups with near-duplicate "
        "messages count as one); use more episodes, or a file for each split"
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sets(st.sampled_from("uvwx"), min_size=1, max_size=2))),
    st.integers(0, 5),
)
def test_a_partner_has_another_group_message_and_answer(made, seed):
    rows = [episode(str(i), f"m{i}", group, *answers) for i, (group, answers) in enumerate(made)]

    def allowed(i, j):
        return rows[i].group != rows[j].group and not set(rows[i].targets) & set(rows[j].targets)

    possible = all(any(allowed(i, j) for j in range(len(rows))) for i in range(len(rows)))
    if not possible:
        with pytest.raises(UserError, match="condition shuffle: no message has another group and another answer"):
            partners(rows, seed)
        return
    found = partners(rows, seed)
    assert found == partners(rows, seed)
    assert all(allowed(i, j) for i, j in enumerate(found))


@given(st.integers(2, 60), st.integers(0, 100))
def test_partners_are_a_permutation_where_all_differ(count, seed):
    rows = [episode(str(i), f"m{i}") for i in range(count)]
    assert sorted(partners(rows, seed)) == list(range(count))


def test_partners_depend_on_the_seed_and_are_a_permutation_with_two_equal_halves():
    rows = [episode(str(i), f"m{i}", None, "yes" if i % 2 else "No.") for i in range(200)]
    assert sorted(partners(rows, 1)) == list(range(200))
    assert partners(rows, 1) != partners(rows, 2)


def test_messages_are_used_again_where_most_answers_are_equal():
    rows = [episode(str(i), f"m{i}", None, "No" if i < 70 else "yes") for i in range(100)]
    found = partners(rows)
    assert all((i < 70) != (j < 70) for i, j in enumerate(found))
    assert len(set(found)) > 45


def test_equal_messages_are_no_partners():
    rows = [episode("1", "Same."), episode("2", "same"), episode("3", "other")]
    with pytest.raises(UserError) as caught:
        partners(rows[:2])
    fault = "condition shuffle: no message has another group and another answer than episode '1'"
    assert str(caught.value) == f"{fault}; use episodes of more groups, or leave shuffle out"
    assert partners(rows)[:2] == [2, 2]
    assert partners([]) == []
