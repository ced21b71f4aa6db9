"""Probes find what is planted and nothing else; their closed forms equal the long way round."""

import itertools
import math

import numpy as np
import pytest
import torch

from m2ray.codec.codec import Codec, CodecOutput
from m2ray.codec.encoders import last_state
from m2ray.codec.prefix_statistics import effective_rank
from m2ray.codec.prefix_statistics import prefix_metrics as training_metrics
from m2ray.config.trial import CodecConfig
from m2ray.diagnosis import probes
from m2ray.diagnosis.probes import (
    POSITIONS,
    STRENGTHS,
    fact_accuracy,
    probe,
    probed_facts,
    read_fields,
    ridge,
    shared_facts,
    similarity_map,
    stage_features,
)
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")


@pytest.fixture(scope="module")
def parts():
    return episodes(EASY, range(1200), "train"), episodes(EASY, range(500), "search")


@pytest.fixture(scope="module")
def fields(parts):
    facts = probed_facts(*parts)
    return [read_fields(part, facts) for part in parts]


def normal(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [300, 2000], ids=["narrow", "wide"])
def test_a_latent_that_holds_the_facts_is_read(fields, width):
    mix = normal(len(fields[0].facts), width, 0)
    fit, held = (part.said_MC.float() @ mix + 0.05 * normal(len(part.said_MC), width, 1) for part in fields)
    found = probe(fit, held, *fields)
    assert found.facts.low > 0.98
    assert found.held > 0.95
    # The values left follow from the facts, but not linearly.
    assert found.values.low > found.majority + 0.3
    assert found.kept.low > 0.3


def test_a_latent_that_holds_the_values_left_is_read(fields):
    fit, held = (torch.cat([part.left_MV == mask for mask in range(1, 8)], 1).float() for part in fields)
    found = probe(fit, held, *fields)
    assert found.values.value > 0.99
    assert found.kept.value > 0.99


def test_a_random_latent_reads_as_chance(fields):
    found = probe(normal(1200, 400, 2), normal(500, 400, 3), *fields)
    assert found.facts.low < 0.5 < found.facts.high
    assert found.facts.high - found.facts.low < 0.03
    assert abs(found.values.value - found.majority) < 0.05
    assert found.held < 0.05


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_constant_latent_reads_as_chance_even_if_rounding_betrays_the_message(fields, noise):
    fit, held = (1 + noise * part.said_MC.double() for part in fields)
    found = probe(fit, held, *fields)
    assert found.facts.value == 0.5
    assert found.values.value == pytest.approx(found.majority)


@pytest.mark.parametrize(("rows", "width"), [(40, 7), (20, 60)])
def test_leaving_one_out_in_closed_form_equals_fitting_again_without_it(monkeypatch, rows, width):
    features, new, targets = (
        normal(rows, width, 0).double(),
        normal(5, width, 1).double(),
        normal(rows, 3, 2).double(),
    )
    share = 0.03
    monkeypatch.setattr(probes, "STRENGTHS", [share])
    left_out, guesses = ridge(features, new, targets)
    centered = features - features.mean(0)
    strength = share * torch.linalg.eigvalsh(centered.T @ centered).max()

    def refit(kept):
        middle, level_ = features[kept].mean(0), targets[kept].mean(0)
        x, y = features[kept] - middle, targets[kept] - level_
        weight = torch.linalg.solve(x.T @ x + strength * torch.eye(width), x.T @ y)
        return lambda rows: (rows - middle) @ weight + level_

    for i in range(rows):
        kept = [j for j in range(rows) if j != i]
        torch.testing.assert_close(left_out[i], refit(kept)(features[i]))
    torch.testing.assert_close(guesses, refit(list(range(rows)))(new))


def test_the_strength_with_the_least_left_out_error_is_taken(monkeypatch):
    features, targets = normal(60, 200, 0), normal(60, 2, 1)
    errors = {}
    for strength in STRENGTHS:
        with monkeypatch.context() as patch:
            patch.setattr(probes, "STRENGTHS", [strength])
            left_out, _ = ridge(features, features[:1], targets)
            errors[strength] = float(((left_out - targets).square().mean(0) / targets.var(0)).mean())
    left_out, _ = ridge(features, features[:1], targets)
    chosen = float(((left_out - targets).square().mean(0) / targets.var(0)).mean())
    assert chosen == pytest.approx(min(errors.values()))


def test_balanced_accuracy_and_its_interval_equal_the_long_way_round():
    generator = np.random.default_rng(0)
    said = torch.from_numpy(generator.random((400, 12)) < np.linspace(0.03, 0.6, 12))
    guesses = said + torch.from_numpy(generator.normal(0, 0.7, said.shape))
    found = fact_accuracy(guesses, guesses, said, said)

    def balanced(rows):
        rates = []
        for c in range(said.shape[1]):
            yes, score = said[rows, c], guesses[rows, c]
            # The line is fixed by the messages that fit the probes: all of them, here.
            line = (guesses[said[:, c], c].mean() + guesses[~said[:, c], c].mean()) / 2
            rates += [float((score[yes] > line).double().mean()), float((score[~yes] <= line).double().mean())]
        return sum(rates) / len(rates)

    assert found.value == pytest.approx(balanced(np.arange(400)))
    low, high = np.quantile([balanced(generator.integers(0, 400, 400)) for _ in range(500)], [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.008)
    assert found.high == pytest.approx(high, abs=0.008)


def test_fields_equal_brute_force(parts):
    facts = probed_facts(*parts)
    part = parts[1][:40]
    found = read_fields(part, facts)
    for episode, said, left in zip(part, found.said_MC, found.left_MV, strict=True):
        assert [fact in {c.fact() for c in episode.sender} for fact in facts] == said.tolist()
        solutions = [
            values
            for values in itertools.product(range(3), repeat=4)
            if all(c.holds(values) for c in episode.sender)
        ]
        assert [sum(1 << v for v in {s[i] for s in solutions}) for i in range(4)] == left.tolist()


def test_in_lookup_a_value_left_is_the_value_named(parts):
    size = level("lookup-6x10")
    fit, held = episodes(size, range(600), "train"), episodes(size, range(200), "search")
    found = read_fields(held, probed_facts(fit, held))
    for episode, left in zip(held, found.left_MV, strict=True):
        named = {c.variable: 1 << c.value for c in episode.sender}
        assert left.tolist() == [named.get(i, 1023) for i in range(6)]


def test_too_few_messages_are_refused(parts):
    with pytest.raises(UserError, match="no fact is stated by 5 of 10 held-out messages"):
        probed_facts(parts[0], parts[1][:10])


def test_effective_rank_is_that_of_the_singular_values_and_training_logs_it():
    prefix = normal(64, 3 * 32, 5).reshape(64, 3, 32) * torch.linspace(0.1, 2, 32)
    centered = prefix.flatten(1).double() - prefix.flatten(1).double().mean(0)
    share = torch.linalg.svdvals(centered).square() / centered.square().sum()
    assert effective_rank(prefix.flatten(1)) == pytest.approx(float(torch.exp(-(share * share.log()).nansum())))
    logged = training_metrics(CodecOutput(prefix, prefix, None, None, None), 1.0)
    assert effective_rank(prefix.flatten(1)) == pytest.approx(float(logged["effective_rank"]), rel=1e-4)
    found = similarity_map(prefix.flatten(1), torch.zeros(64, 64))
    assert found.cosine == pytest.approx(float(logged["prefix_cosine"]), abs=1e-5)


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_effective_rank_counts_equal_directions(directions):
    rows = torch.cat([torch.eye(directions), -torch.eye(directions)])
    rows = torch.cat([rows, torch.zeros(len(rows), 40)], dim=1) + 7
    assert effective_rank(rows) == pytest.approx(directions)


def test_the_map_of_equal_rows_is_collapse_and_of_one_direction_is_a_line():
    same = similarity_map(torch.ones(20, 8), torch.zeros(20, 20))
    assert same.cosine == pytest.approx(1)
    assert same.effective_rank == 1
    assert same.spread == 0
    assert math.isnan(same.follows)
    line = similarity_map(10 + torch.arange(20.0)[:, None] * torch.ones(8), torch.zeros(20, 20))
    assert line.cosine_centred == pytest.approx(1)
    assert line.effective_rank == pytest.approx(1, abs=1e-6)


def test_a_map_follows_the_message_where_alike_messages_are_alike(parts, fields):
    shared = shared_facts(parts[1])
    mix = normal(len(fields[1].facts), 64, 0)
    assert similarity_map(fields[1].said_MC.float() @ mix, shared).follows > 0.5
    assert abs(similarity_map(normal(500, 64, 1), shared).follows) < 0.02
    assert torch.equal(
        shared, torch.tensor([[len(a.content & b.content) for b in parts[1]] for a in parts[1]]).float()
    )


@pytest.mark.parametrize("encoder", ["last_token", "segments"])
def test_stages_are_what_the_codec_reads_and_writes(tiny, parts, encoder):
    torch.manual_seed(0)
    codec = Codec(CodecConfig(encoder=encoder, k=3, width=16, layers=1), tiny).eval()
    part = parts[1][:6]
    found = stage_features(ConditionInputs(tiny, part, codec, None, 4))
    reading = tiny.encode_messages([episode.message for episode in part])
    with torch.no_grad():
        encoded = codec(reading)
    torch.testing.assert_close(found["latent"], encoded.latent_BKD.flatten(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["prefix"], encoded.prefix_BKD.flatten(1), rtol=1e-4, atol=1e-4)
    mean = (reading.states_BTD * reading.mask_BT[..., None]).sum(1) / reading.mask_BT.sum(1, keepdim=True)
    pooled = last_state(reading) if encoder == "last_token" else mean
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-4, atol=1e-4)
    tokens = found["tokens"].reshape(6, 1 + POSITIONS, -1)
    for i, length in enumerate(reading.mask_BT.sum(1).tolist()):
        states = reading.states_BTD[i, :length]
        torch.testing.assert_close(tokens[i, 0], states.sum(0), rtol=1e-4, atol=1e-4)
        kept = min(length, POSITIONS)
        torch.testing.assert_close(tokens[i, 1 : 1 + kept], states[:kept], rtol=1e-4, atol=1e-4)
        assert not tokens[i, 1 + kept :].any()


@pytest.mark.parametrize("encoder", ["constant", "segments"])
def test_no_stage_holds_on_to_a_gradient(tiny, encoder):
    """A constant's latent is a view of its parameter."""
    codec = Codec(CodecConfig(encoder=encoder, k=2, width=8, layers=1), tiny)
    inputs = ConditionInputs(tiny, episodes(level("easy"), range(6), "search"), codec, None, 4)
    assert not any(rows.requires_grad for rows in stage_features(inputs).values())
