"""The column `facts`: what B's answer shows it to have read, against brute force."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.evaluation.facts_read import FactReader, leaves_open
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes, solutions
from m2ray.tasks.registry import level

EASY = episodes(level("easy"), range(1000, 1012), "search")
SUMS = episodes(level("arithmetic-4x6"), range(1000, 1012), "train")


def wrong_by_hand(episode, fact):
    """Return '-' where a fact leaves nothing to read, by listing all answers that B's half allows; else ''."""
    try:
        together = solutions(episode.level, (*episode.receiver, fact))
    except ValueError:  # they contradict each other
        return "-"
    return "" if 0 < len(together) < len(solutions(episode.level, episode.receiver)) else "-"


@pytest.mark.parametrize("batch", [EASY, SUMS], ids=["easy", "arithmetic"])
def test_what_leaves_nothing_to_read_is_what_no_or_every_answer_of_bs_half_agrees_with(batch):
    for episode, other in itertools.pairwise(batch):
        for facts in (episode.sender, other.sender):
            closed = [wrong_by_hand(episode, fact) == "-" for fact in facts]
            assert [not is_open for is_open in leaves_open(episode, facts)] == closed


@settings(deadline=None)
@given(data=st.data())
def test_a_fact_is_read_where_the_answer_agrees_with_it(data):
    i, partner = (data.draw(st.integers(0, len(EASY) - 1)) for _ in range(2))
    episode, values = EASY[i], data.draw(st.tuples(*[st.integers(0, 3)] * 4))
    reader = FactReader([episode, EASY[partner]], "values")
    answers = [write_answer(episode.level, values, "values"), "0 0 0 0"]
    for column, facts in (
        (reader.column(answers), episode.sender),
        (reader.column(answers, [1, 0]), EASY[partner].sender),
        (reader.column(answers, changed=[EASY[partner].sender[::-1], ()]), EASY[partner].sender[::-1]),
    ):
        wanted = "".join(wrong_by_hand(episode, fact) or str(int(fact.holds(values))) for fact in facts)
        assert column[0] == wanted


def test_an_operand_is_read_where_the_totals_differ_by_it_also_after_a_wrong_total():
    for episode in SUMS:
        right = FactReader([episode], "values").column([write_answer(episode.level, episode.solution, "values")])
        assert right == ["11"]
        position = episode.sender[0].position
        shifted = [(t + (i >= position)) % 6 for i, t in enumerate(episode.solution)]
        assert FactReader([episode], "values").column([" ".join(map(str, shifted))]) == ["01"]


def test_an_unparsed_answer_has_read_nothing_and_free_words_have_no_order_of_facts():
    reader = FactReader(EASY, "values")
    column = reader.column(["I do not know"] * len(EASY))
    for episode, text in zip(EASY, column, strict=True):
        assert text == "".join("0" if is_open else "-" for is_open in leaves_open(episode, episode.sender))
    free = replace(EASY[0], message="whatever")
    right = write_answer(free.level, free.solution, "values")
    assert FactReader([free, EASY[1]], "values").column([right, right], [0, 0]) == ["", ""]
    assert FactReader([free, EASY[1]], "values").column([right, right], [1, 0])[0] != ""
