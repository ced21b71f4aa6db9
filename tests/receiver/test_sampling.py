"""Sampling: reproducible per episode whatever the batch, paired across conditions, true to the logits."""

import pytest
import torch
from scipy.stats import chisquare

from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level

EPISODES = episodes(level("easy"), range(64), "search")
MESSAGES = [episode.message for episode in EPISODES]


@pytest.fixture(scope="module")
def mini() -> Receiver:
    return load_receiver("mini", device="cpu")


def test_a_sampled_answer_depends_on_the_episode_and_the_seed_and_not_on_the_batch(mini):
    def sample(batch: list[Episode], seed: int = 0) -> list[str]:
        return mini.decode(batch, [""] * len(batch), temperature=1.5, seed=seed)

    together = sample(EPISODES)
    assert together == sample(EPISODES)
    assert together == [sample([episode])[0] for episode in EPISODES]
    assert together[::-1] == sample(EPISODES[::-1])
    assert sum(a != b for a, b in zip(together, sample(EPISODES, seed=1), strict=True)) > 20


def test_the_noise_is_the_same_in_every_condition_so_that_comparisons_are_paired(mini):
    ids = [mini.tokens(message) for message in MESSAGES[:8]]
    for episode, row in zip(EPISODES, ids, strict=False):
        own_BKD = mini.embedding_ND[torch.tensor(row)][None]
        assert mini.decode([episode], [episode.message], temperature=1.5) == mini.decode(
            [episode], len(row), own_BKD, temperature=1.5
        )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_sampled_frequencies_are_the_softmax_of_the_logits_over_the_temperature(mini, temperature):
    """For the first word, without the message, where mini is least sure."""
    logits_EW = mini.logits(mini.layout(EPISODES, 0), None, 1)[:, 0]
    unsure = int((logits_EW / temperature).softmax(dim=1).max(dim=1).values.argmin())
    layout, count = mini.layout([EPISODES[unsure]], 0), 1500
    prompt = layout.ids_BT[0, : int(layout.answer_B)].tolist()
    texts = mini.generate([prompt] * count, range(count), temperature, max_new_tokens=1)
    wanted_W = (logits_EW[unsure].double() / temperature).softmax(dim=0) * count
    found_W = torch.tensor([texts.count(mini.text([word])) for word in range(len(wanted_W))])
    common_W = wanted_W >= 5
    assert 2 <= common_W.sum() < len(wanted_W)
    found, wanted = ([*x_W[common_W], x_W[~common_W].sum() + 1e-9] for x_W in (found_W.double(), wanted_W))
    assert chisquare(found, wanted).pvalue > 1e-3


def test_a_low_temperature_is_greedy(mini):
    cold = mini.decode(EPISODES[:16], MESSAGES[:16], temperature=1e-4)
    assert cold == mini.decode(EPISODES[:16], MESSAGES[:16])


@pytest.mark.parametrize(("texts", "place"), [(3, "message"), ("text", "message"), (3, "after")])
def test_a_cached_prompt_prefix_changes_no_logits_and_no_answers(tiny, monkeypatch, texts, place):
    """The tiny receiver's chat prompt starts with the same tokens in every row, and ends with its own."""
    batch = episodes(level("easy"), range(8), "search")
    texts = [episode.message for episode in batch] if texts == "text" else texts
    prefix_BKD = torch.randn(8, 3, tiny.width, generator=torch.Generator().manual_seed(0)) * tiny.embedding_norm
    found = []
    for worth in (16, 10_000):
        monkeypatch.setattr("m2ray.receiver.layout.MIN_CACHED_TOKENS", worth)
        layout = tiny.layout(batch, texts, place)
        prefix = prefix_BKD.clone().requires_grad_()
        output = tiny.score_answers(layout, prefix, 5, states=True)
        states = output.states_BLSD.transpose(1, 2)[output.mask_BS]
        if texts == 3:
            states.square().mean().backward()
        vectors = prefix_BKD if texts == 3 else None
        answered = tiny.generate_and_score(batch, texts, vectors, place, max_new_tokens=9)
        found.append((int(layout.cached_B[0]), output.logits_BAW, states, prefix.grad, answered))
    (shared, *once, answered), (none, *plain, answered_plain) = found
    assert shared > 16
    assert none == 0
    torch.testing.assert_close(once, plain, rtol=1e-3, atol=1e-4)
    assert answered[0] == answered_plain[0]
    torch.testing.assert_close(answered[1], answered_plain[1], rtol=1e-3, atol=1e-4)
