"""What a message costs, counted by hand."""

import pytest
from made_codecs import make_codec

from m2ray.codec.sent_size import sent_size
from m2ray.receiver.loading import load_receiver

MESSAGES = ["x1 = 2; x2 != 0", "x1 + x2 = 3"]


@pytest.mark.parametrize(
    ("settings", "numbers", "run"),
    [
        ({}, 3 * 128, 3),
        ({"channel": "hidden", "channel_layers": [1]}, 3 * 128, 3),
        ({"channel": "kv"}, 3 * 4 * 2 * 64, 0),
        ({"channel": "kv", "channel_layers": [2]}, 3 * 2 * 64, 0),
    ],
)
def test_vectors_cost_their_numbers_in_the_receivers_precision(settings, numbers, run):
    mini = load_receiver("mini")
    tokens = sum(len(mini.tokens(message)) for message in MESSAGES) / 2
    config = mini.model.config
    assert (config.hidden_size, config.num_hidden_layers) == (128, 4)
    assert sent_size(make_codec(mini, k=3, **settings), MESSAGES) == {
        "bytes": numbers * 4,
        "numbers": numbers,
        "text_bytes": 13,
        "prefill_saved": round(2 * layer_weights(mini) * (tokens - run)),
    }


def layer_weights(receiver):
    embedding = receiver.model.get_input_embeddings().weight  # tied to the head
    return sum(weight.numel() for weight in receiver.model.parameters()) - embedding.numel()


def test_codes_cost_whole_bytes_of_bits():
    codec = make_codec(load_receiver("mini"), k=3, bottleneck="vq", codebook=32, groups=2)
    assert sent_size(codec, MESSAGES)["bytes"] == 4  # 3 slots of 2 codes of 5 bits
