"""Split arithmetic by brute force over operands and signs; what every episode promises; splits that stay apart."""

import itertools
import json
import math
import random
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.answers import verify, write_answer
from m2ray.tasks.arithmetic import Expression, Operand
from m2ray.tasks.ceilings import ceilings
from m2ray.tasks.episode_files import read_episodes
from m2ray.tasks.episodes import PARTS, draw_episode, episodes, part_of, read_facts, write_facts
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EIGHT = level("arithmetic")
SMALL = [level(f"arithmetic-{size}") for size in ("2x3", "2x5", "4x3", "4x4")]  # to be enumerated in a test
seeds = st.integers(0, 10**9)


def worked_out(operands, signs, modulo):
    """The running totals, by Python's own arithmetic on the written expression."""
    terms = [str(operands[0]), *(f"{sign} {value}" for sign, value in zip(signs, operands[1:], strict=True))]
    return tuple(eval(" ".join(terms[: i + 1])) % modulo for i in range(len(terms)))


def operands_of(episode, message=None):
    """All operands: those that B knows, and the others from A's message or another one, 0 where it lacks them."""
    sent = {fact.position: fact.value for fact in message or episode.sender}
    return [sent.get(i, 0) if value is None else value for i, value in enumerate(episode.receiver[0].values)]


def solutions(size, facts):
    """All answers that some operands and signs give with which the facts agree."""
    count, found = size.variables, set()
    for operands in itertools.product(range(size.span), repeat=count):
        if any(operands[f.position] != f.value for f in facts if isinstance(f, Operand)):
            continue
        sums = [f for f in facts if isinstance(f, Expression)]
        if any(known not in (None, value) for f in sums for known, value in zip(f.values, operands, strict=True)):
            continue
        for signs in itertools.product("+-", repeat=count - 1):
            if all(f.signs[1:] == "".join(signs) for f in sums):
                found.add(worked_out(operands, signs, size.domain))
    return found


@st.composite
def fact_sets(draw_):
    size = draw_(st.sampled_from(SMALL))
    digit, position = st.integers(0, size.span - 1), st.integers(0, size.variables - 1)
    operands = draw_(st.lists(st.builds(Operand, position, digit), max_size=size.variables))
    signs = st.text("+-", min_size=size.variables - 1, max_size=size.variables - 1).map(lambda rest: f"+{rest}")
    values = st.tuples(*[st.none() | digit] * size.variables)
    expressions = draw_(st.lists(st.builds(Expression, signs, values, st.just(size.domain)), max_size=2))
    return size, (*operands, *expressions)


# --- brute force ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(fact_sets())
def test_solutions_are_counted_as_brute_force_counts_them(case):
    size, facts = case
    assert size.count_solutions(facts) == len(solutions(size, facts))


@settings(deadline=None)
@given(fact_sets(), st.data())
def test_value_probabilities_are_shares_of_the_solutions_that_begin_alike(case, data):
    size, facts = case
    answer = data.draw(st.tuples(*[st.integers(0, size.domain - 1)] * size.variables))
    left = solutions(size, facts)
    if not any(values[:-1] == answer[:-1] for values in left):
        with pytest.raises(ValueError, match="no solution begins like this answer"):
            size.value_probabilities(facts, answer)
        return
    table = size.value_probabilities(facts, answer)
    for i in range(size.variables):
        alike = [values for values in left if values[:i] == answer[:i]]
        shares = [sum(values[i] == v for values in alike) / len(alike) for v in range(size.domain)]
        assert table[i] == pytest.approx(shares)


@pytest.mark.parametrize("size", SMALL[1:], ids=lambda size: size.name)
def test_the_verifier_checks_every_total_of_the_expression(size):
    for episode in episodes(size, range(10), "train"):
        totals = worked_out(operands_of(episode), episode.receiver[0].signs[1:], size.domain)
        assert totals == episode.solution
        for values in itertools.product(range(size.domain), repeat=size.variables):
            right = [one == other for one, other in zip(values, totals, strict=True)]
            for form in ("json", "values"):
                outcome = verify(episode, write_answer(size, values, form), form)
                assert outcome == (all(right), True, pytest.approx(sum(right) / len(right)))


def test_ceilings_are_those_of_guesses_at_the_operands_that_are_not_known():
    found = ceilings(episodes(EIGHT, range(2000), "search"))
    assert found.without_message == pytest.approx(5**-4)
    assert found.with_message == 1
    assert found.blind == pytest.approx(10**-8)
    assert found.wrong_message < 0.01
    assert found.news_bits == pytest.approx(math.log2(5**4))


def test_the_last_total_alone_could_not_tell_a_wrong_message_from_a_guess():
    """Why the answer is all totals: a wrong message gives the right result about as often as no message does."""
    drawn, misled, guessed = episodes(EIGHT, range(4000), "search"), [], []
    rng = random.Random(0)
    for one, other in zip(drawn, [*drawn[17:], *drawn[:17]], strict=True):
        signs = one.receiver[0].signs[1:]
        misled.append(worked_out(operands_of(one, other.sender), signs, 10)[-1] == one.solution[-1])
        guess = [Operand(fact.position, rng.randrange(5)) for fact in one.sender]
        guessed.append(worked_out(operands_of(one, guess), signs, 10)[-1] == one.solution[-1])
    assert abs(statistics.fmean(misled) - statistics.fmean(guessed)) < 0.03


# --- every drawn episode -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([EIGHT, *SMALL[1:], level("arithmetic-26x100")]), seeds, st.sampled_from(["train", "confirm"])
)
def test_every_episode_holds_what_it_promises(size, seed, part):
    episode = draw_episode(size, seed, part)
    assert draw_episode(size, seed, part) == episode
    (expression,) = episode.receiver
    assert len(episode.sender) == size.variables // 2
    unknown = [i for i, value in enumerate(expression.values) if value is None]
    assert unknown == [fact.position for fact in episode.sender], "each operand is known to one of the two"
    assert expression.modulo == size.domain
    assert part_of(episode.content) == part
    for form in ("json", "values"):
        assert verify(episode, write_answer(size, episode.solution, form), form) == (True, True, 1.0)
    assert read_facts(episode.message, size) == episode.sender
    assert read_facts(episode.context, size) == episode.receiver
    assert set(f"{episode.message} {episode.context}".replace(";", "").split()) <= set(size.words)
    assert set(write_answer(size, episode.solution, "values").split()) <= set(size.words)


def test_operands_signs_and_halves_are_drawn_evenly():
    drawn = episodes(EIGHT, range(4000), "train")
    sent = [fact for episode in drawn for fact in episode.sender]
    for position in range(8):
        assert abs(sum(fact.position == position for fact in sent) / len(drawn) - 0.5) < 0.04
    for value in range(5):
        assert abs(sum(fact.value == value for fact in sent) / len(sent) - 0.2) < 0.02
    signs = "".join(episode.receiver[0].signs[1:] for episode in drawn)
    assert abs(signs.count("+") / len(signs) - 0.5) < 0.02


PINNED = {
    ("arithmetic", 0, "train"): (
        "x1 = 4; x2 = 3; x4 = 1; x8 = 1",
        "t1 to t8 are the running totals of x1 + x2 - 2 - x4 - 2 + 2 - 3 - x8 modulo 10",
        (4, 7, 5, 4, 2, 4, 1, 0),
    ),
    ("arithmetic", 2, "train"): (
        "x1 = 4; x2 = 4; x5 = 4; x6 = 3",
        "t1 to t8 are the running totals of x1 - x2 - 0 - 0 + x5 + x6 + 3 - 1 modulo 10",
        (4, 0, 0, 0, 4, 7, 0, 9),
    ),
}


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_a_seed_always_gives_the_same_episode(key):
    episode = draw_episode(level(key[0]), *key[1:])
    assert (episode.message, episode.context, episode.solution) == PINNED[key]


def test_no_message_of_an_evaluation_part_is_ever_drawn_in_training():
    trained = {e.content for e in episodes(EIGHT, range(5000), "train")}
    for part in ("search", "select", "confirm"):
        assert not trained & {e.content for e in episodes(EIGHT, range(1500), part)}
    messages = [
        [Operand(position, value) for position, value in zip(positions, values, strict=True)]
        for positions in itertools.combinations(range(8), 4)
        for values in itertools.product(range(5), repeat=4)
    ]
    parts = [part_of(message) for message in messages]
    for part, share in PARTS.items():
        assert abs(parts.count(part) / len(parts) - len(share) / 20) < 0.01


# --- names and text ------------------------------------------------------------------------------------------


def test_the_short_name_is_the_level_of_eight_operands_modulo_ten():
    assert level("arithmetic") == level("arithmetic-8x10")
    assert (EIGHT.name, EIGHT.variables, EIGHT.domain, EIGHT.names[-1]) == ("arithmetic-8x10", 8, 10, "t8")


@pytest.mark.parametrize(
    "name", ["arithmetic-", "arithmetic-3x10", "arithmetic-28x3", "arithmetic-4x2", "arithmetics"]
)
def test_a_level_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match=f"level '{name}' does not exist; use one of easy, .*arithmetic-6x10"):
        level(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x9 = 1",
        "x0 = 1",
        "x1 = 5",
        "x1 != 1",
        "x1 = -1",
        "t1 to t8 are the running totals of x1 + x2 modulo 10",
        "t1 to t8 are the running totals of x1 + x2 + x3 + x4 + x6 + x5 + x7 + x8 modulo 10",
        "t1 to t8 are the running totals of x1 + x2 + 5 + x4 + x5 + x6 + x7 + x8 modulo 10",
        "t1 to t8 are the running totals of x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 modulo 9",
        "x1 + x2 + x3 + x4 + x5 + x6",
        "+ - + - +",
    ],
)
def test_text_that_is_not_a_fact_of_the_level_is_refused(text):
    with pytest.raises(
        ValueError, match=f"^{re.escape(repr(text))[:50]}.* is not a fact of level arithmetic-8x10; write"
    ):
        read_facts(text, EIGHT)


@settings(deadline=None)
@given(st.text() | st.text(alphabet="x0123456789 =+-;"))
def test_any_text_is_read_as_facts_or_refused(text):
    try:
        facts = read_facts(text, EIGHT)
    except ValueError:
        return
    assert write_facts(facts) == "; ".join(part.strip() for part in text.split(";"))


def test_a_file_of_drawn_episodes_is_read_back_and_a_wrong_total_refused(tmp_path):
    file, drawn = tmp_path / "sums.jsonl", episodes(EIGHT, range(5), "train")

    def line(episode, answer):
        fields = {"receiver_context": episode.context, "sender_message": episode.message}
        return json.dumps({**fields, "receiver_output": write_answer(EIGHT, answer, "json")}) + "\n"

    file.write_text("".join(line(episode, episode.solution) for episode in drawn))
    assert [(e.sender, e.receiver, e.solution) for e in read_episodes(file, EIGHT)] == [
        (e.sender, e.receiver, e.solution) for e in drawn
    ]
    wrong = [*drawn[0].solution[:-1], (drawn[0].solution[-1] + 1) % 10]
    for text in (
        line(drawn[0], wrong),
        line(drawn[0], drawn[0].solution).replace(drawn[0].message, drawn[0].message.split("; ")[0]),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match="line 1: receiver_output: wrong answer to the facts"):
            read_episodes(file, EIGHT)
