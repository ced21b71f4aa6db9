"""What levels may define beyond the task itself: changed facts, and answers that agree with single facts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.arithmetic import Expression, Operand
from m2ray.tasks.constraints import Constraint
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

NAMES = ("easy", "medium", "hard", "lookup", "lookup-6x10", "arithmetic", "arithmetic-4x4")


def below(seed):
    rng = random.Random(seed)
    return lambda n: int(rng.random() * n)


def episode_halves(episode):
    return episode.sender, episode.receiver, episode.solution


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NAMES), st.integers(0, 10**9))
def test_exactly_one_fact_is_changed_and_the_right_answer_becomes_wrong(name, seed):
    size = level(name)
    episode = draw_episode(size, seed)
    changed = size.change_fact(*episode_halves(episode), below(seed))
    assert changed == size.change_fact(*episode_halves(episode), below(seed))
    assert len(changed) == len(episode.sender) == size.sent_facts
    assert sum(a != b for a, b in zip(changed, episode.sender, strict=True)) == 1
    known = {fact.fact() for fact in episode.sender}
    assert len({fact.fact() for fact in changed} - known) == 1, "it is a fact that A does not state already"
    assert not all(size.checks((*changed, *episode.receiver), episode.solution))
    assert all(size.read(str(fact)) == fact for fact in changed), "it can be written and read"
    if name.startswith(("lookup", "arithmetic")):
        assert size.count_solutions((*changed, *episode.receiver)) > 0


def test_b_can_follow_and_is_then_wrong_wherever_some_change_allows_it():
    def rank(episode, changed):
        follows = size.count_solutions((*changed, *episode.receiver)) > 0
        return 2 * follows + (follows and not size.count_solutions((*episode.sender, *changed, *episode.receiver)))

    size, ranks = level("easy"), []
    for seed in range(150):
        episode = draw_episode(size, seed)
        ranks.append(rank(episode, size.change_fact(*episode_halves(episode), below(seed))))
        known, best = {fact.fact() for fact in episode.sender}, 0
        for i, fact in enumerate(episode.sender):
            for value in range(-2, 5) if fact.other >= 0 else range(3):
                other = fact._replace(value=value)
                if not other.holds(episode.solution) and other.fact() not in known:
                    best = max(best, rank(episode, (*episode.sender[:i], other, *episode.sender[i + 1 :])))
        assert ranks[-1] == best
    assert set(ranks) == {0, 2, 3}


def test_every_fact_and_every_value_is_changed_about_as_often_as_another():
    size = level("lookup-6x10")
    episode = draw_episode(size, 5)
    found = [size.change_fact(*episode_halves(episode), below(s)) for s in range(600)]
    places = [next(i for i in range(3) if changed[i] != episode.sender[i]) for changed in found]
    assert all(150 < places.count(place) < 250 for place in range(3))
    assert len({changed[0].value for changed in found}) == 10


def test_a_message_in_which_nothing_can_be_changed_is_refused():
    with pytest.raises(
        UserError, match=r"condition near: no fact of this message .* can be changed; leave near out"
    ):
        level("lookup-2x2").change_fact((), (Constraint("=", 0, -1, 1),), (1, 0), below(0))


@given(
    values=st.tuples(*[st.integers(-5, 15)] * 4),
    position=st.integers(0, 3),
    value=st.integers(0, 1),
    signs=st.text("+-", min_size=3, max_size=3),
)
def test_an_operand_agrees_with_the_difference_of_two_totals(values, position, value, signs):
    size = level("arithmetic-4x4")
    sign = -1 if position and signs[position - 1] == "-" else 1
    expression = Expression("+" + signs, (None,) * 4, 4)
    difference = values[position] - (values[position - 1] if position else 0)
    assert size.agrees(Operand(position, value), [expression], values) == ((difference - sign * value) % 4 == 0)


def test_a_constraint_agrees_with_the_answers_that_satisfy_it():
    size = level("easy")
    assert size.agrees(Constraint("+", 0, 1, 3), (), (1, 2, 0, 0))
    assert not size.agrees(Constraint("+", 0, 1, 3), (), (1, 1, 0, 0))
