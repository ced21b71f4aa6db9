"""Sentences: deterministic, answerable from one sentence only, and fit for near, facts-M and held_out."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2ray.tasks.episodes import PARTS, part_of
from m2ray.tasks.held_out import HeldOut
from m2ray.tasks.scorers import scorer
from m2ray.tasks.sentences import data as sentence_data
from m2ray.tasks.sentences.data import Pool, data_version, pool
from m2ray.tasks.sentences.family import SentenceItem, level_of, sentence_episodes, write_sentences
from m2ray.tasks.sentences.relations import BY_NAME, RELATIONS
from m2ray.tasks.text_episodes import MESSAGE
from m2ray.util.errors import UserError

levels = st.builds(lambda n, m: level_of(f"sentences-{n}x{m}"), st.integers(2, 32), st.integers(1, 12))
seeds = st.integers(0, 10**9)
parts = st.sampled_from(list(PARTS))


def below(seed):
    rng = random.Random(seed)
    return lambda n: int(rng.random() * n)


def test_names_of_levels():
    assert level_of("sentences") == level_of("sentences-5x4")
    assert level_of("sentences-32x12").relations == 12
    for name in (
        "sentences-1x4",
        "sentences-33x4",
        "sentences-5x13",
        "sentences-5x0",
        "sentences-05x4",
        "easy",
        "sentences-",
    ):
        assert level_of(name) is None


@settings(max_examples=150, deadline=None)
@given(levels, seeds, parts)
def test_an_episode_is_drawn_by_seed_and_answered_by_one_sentence(level, seed, part):
    episode = level.draw(seed, part)
    assert level.draw(seed, part) == episode
    assert len(episode.facts) == len(set(episode.facts)) == level.sentences
    assert part_of(episode.facts) == part
    assert {fact.relation for fact in episode.facts} <= {
        relation.name for relation in RELATIONS[: level.relations]
    }
    assert len({(fact.relation, fact.subject) for fact in episode.facts}) == level.sentences
    assert max(Counter(fact.relation for fact in episode.facts).values()) <= -(-level.sentences // level.relations)
    names = {fact.subject for fact in episode.facts} | {fact.value for fact in episode.facts}
    words = [word for name in names for word in set(name.lower().split())]
    assert len(words) == len(set(words))
    asked = episode.facts[episode.asked]
    assert asked.value in str(asked)
    assert asked.subject in str(asked)
    assert episode.message == " ".join(map(str, episode.facts))
    text = episode.text
    assert (text.message, text.targets) == (episode.message, episode.targets)
    assert text.prompt.count(MESSAGE) == 1
    assert asked.subject in text.prompt
    assert asked.value not in text.prompt_with("")
    assert f"{level.name}/{part}/{seed}" == text.id == text.group


@settings(max_examples=100, deadline=None)
@given(levels, seeds)
def test_near_changes_the_asked_sentence_only_so_that_the_right_answer_is_wrong(level, seed):
    episode = level.draw(seed)
    changed = episode.near(below(seed))
    different = [i for i, (a, b) in enumerate(zip(episode.facts, changed.facts, strict=True)) if a != b]
    assert different == [episode.asked]
    before, after = episode.facts[episode.asked], changed.facts[episode.asked]
    assert after._replace(value=before.value) == before
    assert changed.text.prompt == episode.text.prompt
    for name in ("exact", "contains", "f1"):
        assert scorer(name).score(changed.targets[0], episode.targets) < scorer(name).threshold
    assert episode.near(below(seed)) == changed


def test_first_sentences_are_a_message_too():
    episode = level_of("sentences-6x3").draw(1)
    for count in range(1, 7):
        assert episode.message.startswith(write_sentences(episode.facts[:count]))
    assert write_sentences(episode.facts[:2]).count(".") == 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            HeldOut(facts=0.1),
            HeldOut(pairs=0.05),
            HeldOut(lengths=(3,), trained_lengths=(2, 5)),
            HeldOut(lengths=(3,)),
        ]
    ),
    parts,
    seeds,
)
def test_all_messages_of_confirm_hold_a_held_out_item_and_no_other_does(held_out, part, seed):
    level = level_of("sentences-5x4")
    episode = level.draw(seed, part, held_out)
    assert held_out.holds(fact.item() for fact in episode.facts) == (part == "confirm")
    assert part_of(episode.facts) == part
    assert episode.task == f"sentences-5x4+held_out-{held_out.digest}"
    if held_out.lengths:
        assert (len(episode.facts) == 3) == (part == "confirm")


def test_a_held_out_value_is_in_no_training_message_whoever_it_is_about():
    level, held_out = level_of("sentences-5x4"), HeldOut(facts=0.2)
    trained = {
        fact.item() for row in sentence_episodes(level, range(800), "train", held_out) for fact in row.facts
    }
    for row in sentence_episodes(level, range(100), "confirm", held_out):
        assert any(fact.item() not in trained for fact in row.facts)
    assert not any(held_out.holds([item]) for item in trained)
    assert str(SentenceItem("home", "Waco")) == "home: Waco"


def test_held_out_items_that_no_message_suits_are_refused(monkeypatch):
    monkeypatch.setattr("m2ray.tasks.sentences.family._MAX_DRAWS", 200)
    with pytest.raises(
        UserError, match=r"^held_out: level sentences-5x4 has no message for part 'train'; lower the"
    ):
        level_of("sentences").draw(0, "train", HeldOut(facts=0.99))
    with pytest.raises(
        UserError, match=r"held_out.lengths: level sentences-5x4 has no messages of 40 facts; use 1 to 32"
    ):
        level_of("sentences").draw(0, "train", HeldOut(lengths=(40,), trained_lengths=(2,)))


def test_messages_of_different_parts_and_seeds_differ():
    level = level_of("sentences-5x4")
    contents = [
        frozenset(fact.fact() for fact in row.facts)
        for part in PARTS
        for row in sentence_episodes(level, range(500), part)
    ]
    assert len(set(contents)) == len(contents)


def test_all_wordings_name_subject_and_value_and_there_are_thousands_of_values():
    for relation in RELATIONS:
        assert len(relation.wordings) >= 3
        assert len(relation.questions) >= 2
        for wording in relation.wordings:
            assert wording.count("{s}") == wording.count("{v}") == 1
            assert wording.count(".") == 1
        assert all(question.count("{s}") == 1 for question in relation.questions)
    assert list(BY_NAME) == [relation.name for relation in RELATIONS]
    assert sum(len(pool(relation.value).values) for relation in RELATIONS) > 8_000
    assert all(len(pool(relation.value).values) >= 90 for relation in RELATIONS)


def test_another_version_of_the_data_changes_few_episodes(monkeypatch):
    level = level_of("sentences-5x4")
    before = [level.draw(seed) for seed in range(300)]
    version = data_version()
    pools = {kind: pool(kind) for kind in sentence_data._SOURCES}
    rng = random.Random(4)

    def other(kind):
        kept = [value for value in pools[kind].values if rng.random() > 0.001]
        return Pool(kind, [*kept, "Newvalue", "Othervalue"])

    others = {kind: other(kind) for kind in pools}
    for module in ("family", "data"):
        monkeypatch.setattr(f"m2ray.tasks.sentences.{module}.pool", others.__getitem__)
    after = [level.draw(seed) for seed in range(300)]
    assert 0.5 < sum(a == b for a, b in zip(before, after, strict=True)) / 300 < 1
    data_version.cache_clear()
    try:
        assert data_version() != version
        assert data_version().startswith("mimesis-")
    finally:
        data_version.cache_clear()


def test_values_are_drawn_about_evenly():
    counts = Counter(pool("language").pick(int(i * 2**32 / 50_000)) for i in range(50_000))
    values = pool("language").values
    assert set(counts) == set(values)
    assert max(counts.values()) < 2.5 * 50_000 / len(values)


def test_a_fixed_episode():
    # It may change with the data package only; see `data_version`.
    episode = level_of("sentences-2x1").draw(0, "train")
    assert episode.message == "Paul lives in Santa Maria. Carlita's home is in Kingsport."
    assert episode.text.prompt == (
        "{message}\n\nQuestion: In which city is Carlita's home?\nAnswer with a few words.\nAnswer:"
    )
    assert episode.targets == ("Kingsport",)
