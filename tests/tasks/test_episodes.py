"""Episodes of the constraint family by brute force, what every drawn one promises, splits that stay apart."""

import hashlib
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.answers import verify, write_answer
from m2ray.tasks.ceilings import ceilings
from m2ray.tasks.constraints import Constraint
from m2ray.tasks.episodes import PARTS, Episode, draw_episode, episodes, part_of, read_facts, write_facts
from m2ray.tasks.episodes import solutions as all_solutions
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")
SIZES = [level(name) for name in ("easy", "medium", "hard", "lookup", "lookup-6x10")]
SMALL = [level(name) for name in ("easy", "medium", "lookup")]  # small enough to enumerate in a test
seeds = st.integers(0, 10**9)


def as_test(text):
    """A function that tests an assignment against a constraint, made by Python itself from its wording."""
    return eval("lambda v: " + re.sub(r"x(\d+)", lambda m: f"v[{int(m[1]) - 1}]", text).replace(" = ", " == "))


def solutions(size, texts):
    tests = [as_test(text) for text in texts]
    every = itertools.product(range(size.domain), repeat=size.variables)
    return [values for values in every if all(test(values) for test in tests)]


def halves(episode):
    return episode.message.split("; "), episode.context.split("; ")


@st.composite
def constraint_sets(draw_, size=None, least=0):
    size = size or draw_(st.sampled_from(SMALL))
    variable, drawn = st.integers(0, size.variables - 1), []
    for _ in range(draw_(st.integers(least, 8))):
        kind, named = draw_(st.sampled_from(size.kinds)), draw_(variable)
        if kind in ("=", "!="):
            other, value = -1, draw_(st.integers(0, size.domain - 1))
        else:
            other = draw_(variable.filter(lambda v, named=named: v != named))
            value = draw_(st.integers(1 - size.domain, 2 * size.domain - 2))
        drawn.append(Constraint(kind, named, other, value))
    return size, tuple(drawn)


# --- brute force ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(constraint_sets())
def test_solutions_are_counted_as_brute_force_counts_them(case):
    size, constraints = case
    assert size.count_solutions(constraints) == len(solutions(size, map(str, constraints)))


@settings(deadline=None)
@given(constraint_sets(), st.data())
def test_value_probabilities_are_shares_of_the_solutions_that_begin_alike(case, data):
    size, constraints = case
    answer = data.draw(st.tuples(*[st.integers(0, size.domain - 1)] * size.variables))
    left = solutions(size, map(str, constraints))
    if not any(values[:-1] == answer[:-1] for values in left):
        with pytest.raises(ValueError, match="no solution begins like this answer"):
            size.value_probabilities(constraints, answer)
        return
    table = size.value_probabilities(constraints, answer)
    for i in range(size.variables):
        alike = [values for values in left if values[:i] == answer[:i]]
        shares = [sum(values[i] == v for values in alike) / len(alike) for v in range(size.domain)]
        assert table[i] == pytest.approx(shares)


@pytest.mark.parametrize("size", SMALL, ids=lambda size: size.name)
def test_the_verifier_agrees_with_brute_force_on_every_assignment(size):
    several = 0
    for episode in episodes(size, range(15)):
        tests = [as_test(text) for half in halves(episode) for text in half]
        right = 0
        for values in itertools.product(range(size.domain), repeat=size.variables):
            held = [test(values) for test in tests]
            for form in ("json", "values"):
                outcome = verify(episode, write_answer(size, values, form), form)
                assert outcome == (all(held), True, pytest.approx(sum(held) / len(held)))
            right += all(held)
        several += right > 1
    assert several or size != EASY, "some tasks have several right answers"


def test_an_answer_outside_the_domain_fails_even_where_every_constraint_holds():
    sender, receiver = read_facts("x1 != 0; x2 = 1", EASY), read_facts("x3 = 0; x4 != 1", EASY)
    episode = Episode(EASY, 0, sender, receiver, (1, 1, 0, 0), write_facts(sender))
    assert verify(episode, '{"x1": 1, "x2": 1, "x3": 0, "x4": 0}', "json") == (True, True, 1.0)
    assert verify(episode, '{"x1": 7, "x2": 1, "x3": 0, "x4": 0}', "json") == (False, True, 1.0)
    assert verify(episode, "I do not know", "json") == (False, False, 0.0)


@pytest.mark.parametrize("size", SMALL, ids=lambda size: size.name)
def test_ceilings_are_those_of_perfect_reasoners_by_brute_force(size):
    drawn, shift = episodes(size, range(60), "train"), 17
    rows = []
    for i, episode in enumerate(drawn):
        message, context = halves(episode)
        wrong = halves(drawn[(i + shift) % len(drawn)])[0]
        every = size.domain**size.variables
        right, alone = solutions(size, message + context), solutions(size, context)
        believed = solutions(size, wrong + context)
        misled = sum(values in right for values in believed) / len(believed) if believed else 0.0
        bits = math.log2(every / len(solutions(size, message)))
        rows.append(
            (len(right) / len(alone), 1, misled, len(right) / every, bits, math.log2(len(alone) / len(right)))
        )
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    assert ceilings(drawn, shift) == pytest.approx(means)


@pytest.mark.parametrize("part", PARTS)
def test_ceilings_of_easy_are_the_published_ones_within_sampling_error(part):
    # Published: means over 3,000 other tasks, so that both sides have the sampling error of 3,000.
    drawn = episodes(EASY, range(3000), part)
    blocks = [ceilings(drawn[i : i + 100]) for i in range(0, 3000, 100)]
    published = {"without_message": 0.408, "with_message": 1.0, "wrong_message": 0.046, "blind": 0.016}
    published |= {"message_bits": 4.6, "news_bits": 1.5}
    for name, value in published.items():
        column = [getattr(block, name) for block in blocks]
        rounding = 0.05 if name.endswith("bits") else 0.0005
        error = statistics.stdev(column) / math.sqrt(len(column)) * math.sqrt(2)
        assert abs(statistics.fmean(column) - value) <= 3 * error + rounding, name


# --- every drawn episode -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variables", "constraints", "domain"),
    [("easy", 4, 8, 3), ("medium", 5, 12, 3), ("hard", 6, 16, 4), ("lookup", 4, 4, 3), ("lookup-6x10", 6, 6, 10)],
)
def test_levels_have_the_sizes_of_the_task(name, variables, constraints, domain):
    size = level(name)
    assert (size.variables, size.constraints, size.domain) == (variables, constraints, domain)
    for episode in episodes(size, range(40)):
        both = episode.sender + episode.receiver
        assert len(episode.sender) == len(episode.receiver) == constraints // 2
        assert len(set(both)) == constraints
        assert {v for c in both for v in (c.variable, c.other) if v >= 0} <= set(range(variables))
        kinds = {"="} if name.startswith("lookup") else {"=", "!=", "+", "-"}
        assert {c.kind for c in both} <= kinds
    if name.startswith("lookup"):
        assert {c.variable for c in both} == set(range(variables)), "each variable is named once"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIZES), seeds, st.sampled_from(list(PARTS)))
def test_every_episode_holds_what_it_promises(size, seed, part):
    episode = draw_episode(size, seed, part)
    assert draw_episode(size, seed, part) == episode
    assert all(constraint.holds(episode.solution) for constraint in episode.sender + episode.receiver)
    for form in ("json", "values"):
        assert verify(episode, write_answer(size, episode.solution, form), form) == (True, True, 1.0)
    assert size.count_solutions(episode.sender) >= 2
    assert size.count_solutions(episode.receiver) >= 2
    assert part_of(episode.content) == part
    assert read_facts(episode.message, size) == episode.sender
    assert read_facts(episode.context, size) == episode.receiver


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SMALL), seeds)
def test_neither_half_alone_determines_the_answer(size, seed):
    for half in halves(draw_episode(size, seed, "train")):
        assert len(solutions(size, half)) >= 2


def test_the_four_kinds_are_equally_likely():
    drawn = episodes(EASY, range(2000), "train")
    kinds = [c.kind for episode in drawn for c in episode.sender + episode.receiver]
    for kind in EASY.kinds:
        # Duplicates are drawn again, which favors the kinds with more wordings a little.
        assert 0.19 < kinds.count(kind) / len(kinds) < 0.31, kind


PINNED = {
    ("easy", 0, "confirm"): (
        "x4 + x1 = 3; x4 = 2; x3 != 0; x1 - x4 = -1",
        "x4 != 1; x1 != 2; x1 + x2 = 1; x3 = 2",
        [1, 0, 2, 2],
    ),
    ("easy", 100000, "train"): (
        "x2 - x4 = 1; x4 + x2 = 1; x3 - x4 = 0; x4 != 1",
        "x3 = 0; x3 != 1; x4 - x1 = 0; x4 = 0",
        [0, 1, 0, 0],
    ),
    ("medium", 7, "select"): (
        "x4 != 0; x5 + x3 = 2; x3 != 2; x4 - x5 = 0; x5 - x1 = 1; x3 = 0",
        "x2 != 1; x2 = 0; x5 != 0; x4 - x3 = 2; x2 + x4 = 2; x1 = 1",
        [1, 0, 0, 2, 2],
    ),
    ("hard", 42, "search"): (
        "x6 + x3 = 4; x1 - x5 = -1; x3 = 2; x3 + x1 = 3; x3 + x5 = 4; x5 + x2 = 2; x3 - x5 = 0; x2 != 1",
        "x6 + x1 = 3; x4 != 3; x3 - x2 = 2; x6 + x5 = 4; x4 + x2 = 1; x1 != 3; x5 + x6 = 4; x1 = 1",
        [1, 0, 2, 1, 2, 2],
    ),
    ("lookup", 1, "train"): ("x1 = 0; x3 = 2", "x4 = 0; x2 = 2", [0, 2, 2, 0]),
    ("lookup-6x10", 2000, "confirm"): ("x1 = 6; x4 = 9; x3 = 4", "x2 = 5; x6 = 9; x5 = 7", [6, 5, 4, 9, 7, 9]),
}


@pytest.mark.parametrize("hash_seed", ["0", "1", "12345"])
def test_a_seed_always_gives_the_same_episode_also_in_another_process(hash_seed):
    # Pinned: published rows name episodes by seed, so that a changed draw would change their episodes.
    script = """
import json, sys
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
found = [draw_episode(level(name), seed, part) for name, seed, part in json.load(sys.stdin)]
print(json.dumps([[e.message, e.context, list(e.solution)] for e in found]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(list(PINNED)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == [list(facts) for facts in PINNED.values()]


@pytest.mark.parametrize(
    ("name", "digest"),
    [("easy", "f6939b0afe6d22f2"), ("lookup-6x10", "88c13ac8fec87ffa"), ("arithmetic", "4c7f55a31223a4dd")],
)
def test_episodes_of_all_parts_are_the_published_ones(name, digest):
    texts = [
        f"{part} {episode.seed}: {episode.message} | {episode.context} | {episode.solution}"
        for part in PARTS
        for episode in episodes(level(name), range(50), part)
    ]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == digest


# --- splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["easy", "lookup-6x10"])
def test_no_message_of_an_evaluation_part_is_ever_drawn_in_training(name):
    size = level(name)
    trained = episodes(size, range(5000), "train")
    contents, texts = {e.content for e in trained}, {e.message for e in trained}
    for part in ("search", "select", "confirm"):
        drawn = episodes(size, range(1500), part)
        assert not contents & {e.content for e in drawn}
        assert not texts & {e.message for e in drawn}


def test_parts_are_disjoint_and_each_gets_its_share_of_the_messages():
    twentieths = [t for share in PARTS.values() for t in share]
    assert sorted(twentieths) == list(range(20)), "each twentieth in exactly one part"
    size = level("lookup-6x10")
    picks = itertools.combinations(range(6), 3)
    messages = [
        [Constraint("=", variable, -1, value) for variable, value in zip(pick, values, strict=True)]
        for pick in picks
        for values in itertools.product(range(size.domain), repeat=3)
    ]
    parts = [part_of(message) for message in messages]
    assert len(parts) == 20_000
    for part, share in PARTS.items():
        assert abs(parts.count(part) / len(parts) - len(share) / 20) < 0.01


@settings(deadline=None)
@given(constraint_sets(EASY, least=1), st.randoms(use_true_random=False))
def test_a_message_in_another_order_or_wording_is_the_same_content(case, rng):
    size, constraints = case
    reworded = []
    for c in constraints:
        if c.other >= 0 and rng.random() < 0.5:
            c = Constraint(c.kind, c.other, c.variable, c.value if c.kind == "+" else -c.value)
        reworded.append(c)
    rng.shuffle(reworded)
    assert {c.fact() for c in reworded} == {c.fact() for c in constraints}
    assert part_of(reworded) == part_of(constraints)
    assert solutions(size, map(str, reworded)) == solutions(size, map(str, constraints))


def test_a_level_too_small_for_a_part_says_so():
    with pytest.raises(UserError, match="level lookup-2x2 has no message in part 'select'; use a larger level"):
        draw_episode(level("lookup-2x2"), 0, "select")


@pytest.mark.parametrize(
    "name",
    [
        "eazy",
        "",
        "lookup-",
        "lookup-3x10",
        "lookup-0x3",
        "lookup-28x3",
        "lookup-4x1",
        "lookup-4x101",
        "lookup-4x3x2",
    ],
)
def test_a_level_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(
        UserError, match=r"does not exist; use one of easy, medium, hard, lookup, arithmetic, lookup-6x10"
    ):
        level(name)


def test_the_name_of_a_level_is_refused_instead_of_the_level():
    with pytest.raises(UserError, match=r"'easy' is not a level; give m2ray.level\('easy'\)"):
        episodes("easy", [1])


def test_the_smallest_and_largest_lookup_levels_have_episodes():
    for name in ("lookup-2x100", "lookup-26x2", "lookup-26x100"):
        episode = draw_episode(level(name), 0, "train")
        assert verify(episode, write_answer(level(name), episode.solution, "values"), "values").success


@given(seeds, st.sampled_from([*SMALL, level("arithmetic-4x3")]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_solutions_are_all_answers_that_are_right_by_the_facts(seed, size, both):
    episode = draw_episode(size, seed % 10_000, "train")
    facts = episode.sender + episode.receiver if both else episode.receiver
    found = all_solutions(size, facts)
    assert len(found) == len(set(found)) == size.count_solutions(facts)
    if both:
        assert episode.solution in found
        assert all(all(size.checks(facts, values)) for values in found)
