"""A real pretrained receiver on `lookup`, not adapted: it uses the message, and guesses without one."""

import subprocess
import sys

import pytest
import torch

from m2ray.receiver.loading import load_receiver, resolve_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NAME = "qwen2.5-coder-0.5b"
COUNT = 48


@pytest.fixture(scope="module")
def qwen() -> Receiver:
    try:
        resolve_receiver(NAME)
    except UserError:
        subprocess.run([sys.executable, "-m", "m2ray.fetch", NAME], check=True)
    return load_receiver(NAME)


def solved(receiver: Receiver, batch: list[Episode], texts: list[str]) -> float:
    """Share of episodes solved, greedily; as many answers must parse as a gate asks for."""
    answers = receiver.decode(batch, texts, max_new_tokens=64)
    outcomes = [verify(e, answer, receiver.style.answer) for e, answer in zip(batch, answers, strict=True)]
    assert sum(outcome.parsed for outcome in outcomes) >= 0.8 * len(outcomes)
    return sum(outcome.success for outcome in outcomes) / len(outcomes)


def test_it_is_a_qwen2_with_its_own_chat_template_and_digits_as_tokens(qwen):
    assert qwen.model.config.model_type == "qwen2"
    assert qwen.style_name == "chat"
    assert qwen.tokens("x1 = 10") == qwen.tokenizer.convert_tokens_to_ids(["x", "1", "Ġ=", "Ġ", "1", "0"])
    frame = qwen.answer_frame(level("lookup-6x10"))
    assert qwen.tokenizer.convert_ids_to_tokens(frame.values_VN[0].tolist()) == list("0123456789")


@pytest.mark.parametrize(("name", "share"), [("lookup", 0.8), ("lookup-6x10", 0.9)])
def test_it_solves_lookup_with_the_message_and_hardly_without(qwen, name, share):
    """Measured at `lookup`, float32: with the message 43 of 48, without it 6, by chance.

    The other five answers have the keys of the prompt's example, `a` and `b`. With the constraints in front of the
    instruction, as the prompt once was, all 48 were right.
    """
    batch = episodes(level(name), range(COUNT), "train")
    assert solved(qwen, batch, [episode.message for episode in batch]) >= share
    assert solved(qwen, batch, [""] * COUNT) <= 0.35


def test_identity_is_p1(qwen):
    """Equal embeddings bit for bit on all 48, so equal answers; shown on the first 8."""
    batch = episodes(level("lookup"), range(COUNT), "train")
    messages = [episode.message for episode in batch]
    ids_BK = torch.tensor([qwen.tokens(message) for message in messages], device=qwen.device)
    own_BKD = qwen.embedding_ND[ids_BK]
    with torch.no_grad():
        text_BTD = qwen.embed(qwen.layout(batch, messages), None)
        slots_BTD = qwen.embed(qwen.layout(batch, ids_BK.shape[1]), own_BKD)
    assert torch.equal(text_BTD, slots_BTD)
    assert qwen.decode(batch[:8], messages[:8]) == qwen.decode(batch[:8], ids_BK.shape[1], own_BKD[:8])
