"""Slots behind B's half: after all of B's text, before the words that the style closes a prompt with."""

import pytest
import torch

from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level


@pytest.fixture(params=["mini", "chat"])
def receiver(request, tiny):
    return load_receiver("mini") if request.param == "mini" else tiny


@pytest.fixture
def batch():
    return episodes(level("easy"), range(7_000_000, 7_000_006), "search")


def test_slots_stand_between_bs_half_and_the_closing_words(receiver, batch):
    layout = receiver.layout(batch, 3, "behind")
    for i, episode in enumerate(batch):
        row, first = layout.ids_BT[i].tolist(), layout.slots_BK[i, 0].item()
        text = receiver.tokenizer.decode(row[:first])
        assert text.replace(" ", "").endswith(episode.context.replace(" ", "")[-6:])
        assert episode.context.replace(" ", "") not in receiver.tokenizer.decode(row[first:]).replace(" ", "")
        assert layout.after_B[i] == layout.answer_B[i] - first - 3 > 0
        before, after = receiver.prompt_ids(episode)
        assert [token for j, token in enumerate(row[: layout.answer_B[i]]) if not first <= j < first + 3] == [
            *before,
            *after,
        ]


def test_all_of_bs_half_is_kept(receiver, batch):
    layout = receiver.layout(batch, 3, "behind")
    assert layout.cached_B.tolist() == layout.slots_BK[:, 0].tolist()


def test_a_prefix_there_is_read_as_one_row_at_a_time(receiver, batch):
    torch.manual_seed(0)
    prefix_BKD = torch.randn(len(batch), 3, receiver.width) * receiver.embedding_norm / receiver.width**0.5
    together = receiver.generate_and_score(batch, 3, prefix_BKD, "behind")
    alone = [
        receiver.generate_and_score([episode], 3, prefix_BKD[i : i + 1], "behind")
        for i, episode in enumerate(batch)
    ]
    assert together.texts == [each.texts[0] for each in alone]
    assert torch.allclose(together.nll_B, torch.cat([each.nll_B for each in alone]), atol=1e-4)


def test_the_embedded_receiver_takes_zeros_there_as_no_message_but_not_next_to_its_answer():
    """Why a codec can be judged in place `behind` and not in `after`."""
    mini = load_receiver("mini")
    some = episodes(level("easy"), range(7_000_000, 7_000_064), "search")
    zeros_BKD = torch.zeros(len(some), 8, mini.width)
    none = mini.generate_and_score(some, [""] * len(some)).nll_B.mean()
    behind, after = (
        mini.generate_and_score(some, 8, zeros_BKD, place).nll_B.mean() for place in ("behind", "after")
    )
    assert abs(behind - none) < 0.1
    assert after > none + 5
