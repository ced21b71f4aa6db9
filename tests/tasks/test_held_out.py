"""Held-out facts, pairs and lengths: in every message of confirm and in no other, and never quietly impossible."""

import json
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.config.task import TaskConfig
from m2ray.config.trial import TrialConfig
from m2ray.tasks.constraints import Constraint
from m2ray.tasks.episodes import PARTS, draw_episode, episodes, part_of, read_facts
from m2ray.tasks.held_out import HeldOut
from m2ray.tasks.level import Level
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

LEVELS = [level(name) for name in ("lookup-6x10", "easy", "arithmetic")]
CHOICES = [
    HeldOut(facts=0.15),
    HeldOut(pairs=0.1),
    HeldOut(lengths=(2,)),
    HeldOut(lengths=(2, 5), trained_lengths=(3, 4)),
    HeldOut(facts=0.1, pairs=0.05, lengths=(2,)),
]


def facts_of(episode):
    """Return the canonical facts of a message, from its text."""
    return sorted(fact.fact() for fact in read_facts(episode.message, episode.level))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LEVELS), st.sampled_from(CHOICES), st.sampled_from(list(PARTS)), st.integers(0, 10**9))
def test_all_messages_of_confirm_hold_a_held_out_item_and_no_other_does(size, held_out, part, seed):
    episode = draw_episode(size, seed, part, held_out)
    assert draw_episode(size, seed, part, held_out) == episode
    assert held_out.holds(episode.sender) == held_out.holds(episode.content) == (part == "confirm")
    assert part_of(episode.content) == part
    assert all(size.checks(episode.sender + episode.receiver, episode.solution))
    assert size.count_solutions(episode.sender) >= 2
    assert size.count_solutions(episode.receiver) >= 2
    assert episode.task == f"{size.name}+held_out-{held_out.digest}"


@pytest.mark.parametrize("size", LEVELS, ids=lambda size: size.name)
@pytest.mark.parametrize("held_out", CHOICES[:4], ids=str)
def test_what_confirm_adds_occurs_in_no_training_search_or_select_message(size, held_out):
    def items(part, count):
        messages = [facts_of(episode) for episode in episodes(size, range(count), part, held_out)]
        facts = {fact for message in messages for fact in message}
        pairs = {pair for message in messages for pair in combinations(message, 2)}
        return messages, facts, pairs, {len(message) for message in messages}

    known = [items(part, 600) for part in ("train", "search", "select")]
    messages = items("confirm", 60)[0]
    for message in messages:
        if held_out.facts:
            assert any(all(fact not in facts for _, facts, _, _ in known) for fact in message)
        if held_out.pairs:
            assert any(all(pair not in pairs for _, _, pairs, _ in known) for pair in combinations(message, 2))
        if held_out.lengths:
            assert all(len(message) not in lengths for _, _, _, lengths in known)


@pytest.mark.parametrize("size", LEVELS, ids=lambda size: size.name)
def test_lengths_are_drawn_as_named_and_training_keeps_the_levels_own(size):
    def lengths(held_out, part):
        return {len(episode.sender) for episode in episodes(size, range(80), part, held_out)}

    assert lengths(HeldOut(lengths=(2,)), "train") == {size.sent_facts}
    assert lengths(HeldOut(lengths=(2,)), "confirm") == {2}
    assert lengths(HeldOut(lengths=(1, 2), trained_lengths=(3, 4)), "train") == {3, 4}
    assert lengths(HeldOut(lengths=(1, 2), trained_lengths=(3, 4)), "confirm") == {1, 2}


def test_the_share_of_facts_and_pairs_is_about_that_which_is_named():
    facts = [Constraint("=", i, -1, value) for i in range(20) for value in range(100)]
    for share in (0.05, 0.3):
        held = [HeldOut(facts=share).holds([fact]) for fact in facts]
        assert sum(held) / len(held) == pytest.approx(share, abs=0.03)
        pairs = [HeldOut(pairs=share).holds(pair) for pair in pairwise(facts)]
        assert sum(pairs) / len(pairs) == pytest.approx(share, abs=0.03)


@given(st.permutations(range(4)))
def test_wording_and_order_of_facts_do_not_matter(order):
    message = read_facts("x1 = 2; x3 + x1 = 2; x2 - x1 = 1; x4 != 0", level("easy"))
    reworded = read_facts("x1 = 2; x1 + x3 = 2; x1 - x2 = -1; x4 != 0", level("easy"))
    for held_out in (HeldOut(facts=0.2), HeldOut(pairs=0.15), HeldOut(lengths=(4,), trained_lengths=(3,))):
        assert held_out.holds(message) == held_out.holds([reworded[i] for i in order])


def test_seeds_name_other_episodes_only_where_something_is_held_out():
    size = level("easy")
    assert draw_episode(size, 5, "train").task == "easy"
    assert {HeldOut(facts=0.1).digest, HeldOut(facts=0.2).digest, HeldOut(pairs=0.1).digest} == {
        TaskConfig(held_out=held_out).name.rpartition("-")[2]
        for held_out in (HeldOut(facts=0.1), HeldOut(facts=0.2), HeldOut(pairs=0.1))
    }


# --- configuration -------------------------------------------------------------------------------------------


def test_records_of_tasks_without_held_out_items_are_as_before():
    assert TaskConfig().model_dump() == {"level": "easy", "messages": "template", "file": None}
    tree = {"level": "easy", "held_out": {"facts": 0.1, "lengths": [2]}}
    config = validate(TaskConfig, tree, "test")
    dumped = json.loads(config.model_dump_json())
    assert dumped["held_out"] == {"facts": 0.1, "pairs": 0.0, "lengths": [2], "trained_lengths": []}
    assert dumped == config.model_dump(mode="json")
    assert validate(TaskConfig, dumped, "test") == config


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ({"held_out": {}}, "task.held_out: holds out nothing; set facts, pairs or lengths, or remove it"),
        ({"held_out": {"facts": 1.0}}, "task.held_out.facts: 1.0 is not below 1; write a smaller number"),
        ({"held_out": {"lengths": [0]}}, "task.held_out.lengths.0: 0 is below 1; write 1 or more"),
        ({"held_out": {"lengths": [2.5]}}, "task.held_out.lengths.0: 2.5 is not a whole number; write one"),
        ({"held_out": {"fact": 0.1}}, "task.held_out.fact: unknown key; did you mean `task.held_out.facts`?"),
        (
            {"held_out": {"facts": 0.1}, "file": "episodes.jsonl"},
            "task: held_out: needs drawn episodes, not those of a file; remove held_out or file",
        ),
        (
            {"held_out": {"facts": 0.95}},
            "task: held_out: only 0 of 20,000 drawn messages of level easy suit part 'train'; lower the "
            "shares, or use other lengths or another level",
        ),
        (
            {"held_out": {"facts": 1e-9}},
            "task: held_out: only 0 of 20,000 drawn messages of level easy suit part 'confirm'; raise the "
            "shares, or use other lengths or another level",
        ),
        (
            {"held_out": {"lengths": [4]}},
            "task: held_out.lengths: 4 is the only length that level easy draws by itself; add lengths to train "
            "on as held_out.trained_lengths",
        ),
        (
            {"held_out": {"lengths": [8]}},
            "task: held_out.lengths: level easy has no messages of 8 facts; use 1 to 7",
        ),
        (
            {"held_out": {"lengths": [2], "trained_lengths": [2, 4]}},
            "task.held_out: trained_lengths: 2 is also in lengths; remove it from one of the two",
        ),
        (
            {"held_out": {"facts": 0.1, "trained_lengths": [3]}},
            "task.held_out: trained_lengths: needs lengths; set that or remove it",
        ),
    ],
)
def test_what_cannot_be_held_out_is_one_line(task, error):
    with pytest.raises(UserError) as raised:
        validate(TrialConfig, {"task": task, "losses": {"ce": {}}}, "x.yaml")
    assert str(raised.value) == f"x.yaml: {error}"


def test_a_family_that_cannot_split_its_facts_anew_is_refused(monkeypatch):
    monkeypatch.setattr(type(level("easy")), "message_lengths", Level.message_lengths)
    with pytest.raises(
        UserError, match=r"held_out.lengths: level easy draws messages of fixed lengths; remove it"
    ):
        draw_episode(level("easy"), 0, "confirm", HeldOut(lengths=(1,)))
