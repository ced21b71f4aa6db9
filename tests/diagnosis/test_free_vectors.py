"""Free vectors: a bound that only rises with more steps, and that fitting reaches."""

from itertools import pairwise

import pytest
import torch

from m2ray.diagnosis import free_vectors as module
from m2ray.diagnosis.free_vectors import free_vectors
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.scoring import reference_nll, value_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

EASY = level("easy")


def test_they_converge_on_mini_and_solve_what_no_message_does_not():
    mini = load_receiver("mini")
    part = episodes(EASY, range(20_000_000, 20_000_016), "search")
    before = {name: parameter.clone() for name, parameter in mini.model.named_parameters()}
    fit = free_vectors(mini, part, 4, "message")
    assert fit.vectors_EKD.shape == (16, 4, mini.width)
    assert all(fit.converged)
    answers = mini.decode(part, 4, fit.vectors_EKD)
    assert [verify(e, a, "values").success for e, a in zip(part, answers, strict=True)] == fit.solved
    without = [verify(e, a, "values").success for e, a in zip(part, mini.decode(part, [""] * 16), strict=True)]
    assert sum(fit.solved) >= max(15, sum(without) + 4)
    assert all(torch.equal(before[name], parameter) for name, parameter in mini.model.named_parameters())


def test_more_steps_never_solve_fewer_episodes():
    mini = load_receiver("mini-arithmetic")
    part = episodes(level("arithmetic"), range(30_000_000, 30_000_008), "search")
    fits = [free_vectors(mini, part, 4, "message", steps) for steps in (50, 150, 300)]
    for fewer, more in pairwise(fits):
        assert all(later >= earlier for earlier, later in zip(fewer.solved, more.solved, strict=True))
        assert all(later >= earlier for earlier, later in zip(fewer.converged, more.converged, strict=True))
    assert sum(fits[-1].solved) > sum(fits[0].solved)


def test_those_of_an_episode_do_not_depend_on_its_neighbors(tiny):
    part = episodes(EASY, range(3), "search")
    together = free_vectors(tiny, part, 2, "before", 3)
    alone = free_vectors(tiny, part[:1], 2, "before", 3)
    torch.testing.assert_close(together.vectors_EKD[:1], alone.vectors_EKD, rtol=1e-3, atol=1e-4)
    start = free_vectors(tiny, part, 2, "before", 0)
    assert not any(start.solved + start.converged)
    nll = [value_nll(tiny, part, 2, fit.vectors_EKD, "before").mean() for fit in (start, together)]
    assert nll[1] < nll[0]


@pytest.mark.slow
def test_without_progress_the_rate_falls_and_all_starts_are_used(tiny, monkeypatch):
    monkeypatch.setattr(module, "LEAST_FALL", 1.0)  # no fall is enough
    monkeypatch.setattr(module, "ROUND_STEPS", 1)
    monkeypatch.setattr(module, "STARTS", 2)
    part = episodes(EASY, range(3), "search")
    # Rates of 0.2, 0.1, ... down to 0.003: seven rounds a start.
    short = free_vectors(tiny, part, 2, "before", 13)
    whole = free_vectors(tiny, part, 2, "before", 14)
    assert not any(short.solved + short.converged)
    assert whole.converged == [True] * 3
    once = free_vectors(tiny, part, 2, "before", 7)
    nll = [value_nll(tiny, part, 2, fit.vectors_EKD, "before") for fit in (once, whole)]
    assert (nll[1] <= nll[0] + 1e-4).any()


@pytest.mark.parametrize("place", ["message", "before", "after"])
def test_the_best_vectors_are_kept_not_the_last(tiny, place, monkeypatch):
    monkeypatch.setattr(module, "RATE", 1000.0)  # every step away from the start is a bad one
    part = episodes(EASY, range(4), "search")
    start, wild = (free_vectors(tiny, part, 2, place, steps).vectors_EKD for steps in (0, 8))
    references = tiny.references(part)

    def loss(vectors_EKD):
        logits = tiny.logits(tiny.layout(part, 2, place), vectors_EKD, references.length)
        return reference_nll(logits, references).sum(1)

    with torch.no_grad():
        assert (loss(wild) <= loss(start) + 1e-4).all()
