"""A receiver on a GPU against the same receiver in float32 on the CPU: logits, answers, kept KV caches, memory."""

import pytest
import torch
from gpu_device import cuda_or_skip, gpu_or_cpu
from own_numbers import random_vectors

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.inputs import Injection
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.layout import Place
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.scoring import value_nll
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

pytestmark = pytest.mark.gpu
MANY = episodes(level("easy"), range(200), "search")
PLACES: tuple[Place, ...] = ("before", "message", "after")
SLOTS = 4


@pytest.fixture(scope="module")
def on_cpu():
    return load_receiver("mini", "cpu", "float32")


@pytest.mark.parametrize("place", PLACES)
def test_float32_answers_and_scores_as_on_the_cpu(on_cpu, place):
    device = gpu_or_cpu()
    there = load_receiver("mini", device, "float32")
    prefix_BKD = random_vectors(on_cpu, len(MANY), SLOTS)
    own = on_cpu.generate_and_score(MANY, SLOTS, prefix_BKD, place, max_new_tokens=16)
    for _ in range(2):  # the second time from kept KV caches
        other = there.generate_and_score(MANY, SLOTS, prefix_BKD.to(device), place, max_new_tokens=16)
        assert torch.allclose(own.nll_B, other.nll_B.cpu(), atol=2e-3)
        assert sum(a != b for a, b in zip(own.texts, other.texts, strict=True)) <= len(MANY) // 50


def test_sampled_answers_are_those_of_the_cpu(on_cpu):
    there = load_receiver("mini", gpu_or_cpu(), "float32")
    messages = [episode.message for episode in MANY]
    own, other = (each.decode(MANY, messages, temperature=0.7, max_new_tokens=16) for each in (on_cpu, there))
    assert sum(a != b for a, b in zip(own, other, strict=True)) <= len(MANY) // 50


def test_bfloat16_changes_scores_by_little_and_few_answers(on_cpu):
    there = load_receiver("mini", gpu_or_cpu(), "bfloat16")
    messages = [episode.message for episode in MANY]
    own_B, other_B = (value_nll(each, MANY, messages, None, "message").cpu() for each in (on_cpu, there))
    assert float((own_B - other_B).abs().mean()) < 0.05
    own, other = (each.decode(MANY, messages, max_new_tokens=16) for each in (on_cpu, there))
    assert sum(a == b for a, b in zip(own, other, strict=True)) >= 0.95 * len(MANY)


def test_an_evaluation_that_runs_out_of_memory_gives_the_same_answers():
    cuda_or_skip()
    receiver = load_receiver("mini", "cuda", "float32")
    many = episodes(level("easy"), range(4000), "search")
    injection = Injection([episode.message for episode in many], None, "message")
    config = EvaluationConfig(max_new_tokens=16, batch_size=len(many))
    whole = answer_episodes(receiver, many, injection, config)
    receiver.clear_caches()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    answer_episodes(receiver, many[:500], injection._replace(texts=injection.texts[:500]), config)
    enough = torch.cuda.max_memory_reserved() * 1.5
    receiver.clear_caches()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            receiver.decode(many, injection.texts, max_new_tokens=16)
        halved = answer_episodes(receiver, many, injection, config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sum(a != b for a, b in zip(whole.texts, halved.texts, strict=True)) <= len(many) // 100
    assert torch.allclose(whole.nll_E, halved.nll_E, atol=1e-3)
