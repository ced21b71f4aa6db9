"""Codecs of the channels kv and hidden: how they start, are trained, judged, saved and loaded."""

import pandas as pd
import pytest
import torch
from made_codecs import make_codec

from m2ray.codec.codec import Codec, load_codec
from m2ray.config.trial import CodecConfig, EvaluationConfig, TrialConfig
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

CHANNELS = [("kv", None), ("kv", [1, 3]), ("hidden", [1])]
ENCODERS = ["last_token", "resampler", "segments", "memory", "constant"]


@pytest.fixture(scope="module")
def mini():
    return load_receiver("mini")


def drawn(count):
    return [draw_episode(level("easy"), seed, "confirm") for seed in range(2000, 2000 + count)]


def test_the_channel_embeddings_leaves_digests_and_records_as_they_were():
    assert not {"channel", "channel_layers", "lead"} & CodecConfig().model_dump().keys()
    assert "autoencoding" not in TrialConfig().model_dump()["losses"]
    assert '"channel"' not in TrialConfig().model_dump_json()
    kv = CodecConfig(channel="kv", channel_layers=[0, 2])
    assert CodecConfig.model_validate(kv.model_dump()) == kv
    assert CodecConfig(channel="hidden", channel_layers=1) == CodecConfig(channel="hidden", channel_layers=[1])


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"channel_layers": [1]}, "the channel embeddings has none"),
        ({"channel": "hidden"}, "needs exactly one layer"),
        ({"channel": "hidden", "channel_layers": [1, 2]}, "needs exactly one layer"),
        ({"channel": "kv", "channel_layers": [2, 1]}, "in ascending order"),
        ({"channel": "kv", "channel_layers": []}, "at least 1 item"),
        ({"channel": "kv", "start": "states"}, "only the channel embeddings uses it"),
        ({"calibration": "none", "bottleneck": "vq"}, "does not fit bottleneck vq"),
    ],
)
def test_settings_that_do_not_fit_a_channel_are_refused(settings, cause):
    with pytest.raises(ValueError, match=cause):
        CodecConfig.model_validate(settings)


@pytest.mark.parametrize("lead", ["", "A"])
@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_a_receiver_without_the_codecs_channel_is_refused_in_one_line(mini, channel, layers, lead):
    codec = make_codec(mini, k=2, channel=channel, channel_layers=layers, lead=lead)
    (episode,) = drawn(1)
    with pytest.raises(UserError, match=f"channel {channel}; read them with codec.receiver.encode_messages"):
        codec(mini.encode_messages([episode.message]))
    prefix_BKD = codec(codec.receiver.encode_messages([episode.message])).prefix_BKD.detach()
    assert codec.receiver.decode([episode], 2, prefix_BKD)
    if codec.width != mini.width:  # of equal widths nothing tells the channels apart
        with pytest.raises(UserError, match=r"channel embeddings takes 128; use the codec's own: codec\.receiver"):
            mini.decode([episode], 2, prefix_BKD)


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_segments_start_as_the_mean_of_the_messages_own_vectors(mini, channel, layers):
    codec = make_codec(mini, k=2, channel=channel, channel_layers=layers, calibration="norm", scale_gate=1.0)
    (episode,) = drawn(1)
    messages = codec.receiver.encode_messages([episode.message])
    halves = messages.own_BTD[0].chunk(2)
    latents_KD = codec.encode(messages, 2)[0]
    for latent_D, half_TD in zip(latents_KD, halves, strict=True):
        assert torch.allclose(latent_D, half_TD.mean(0), atol=1e-4)
    prefix_KD = codec(messages).prefix_BKD[0]
    assert torch.allclose(prefix_KD.norm(dim=1), torch.full((2,), codec.receiver.channel.unit), rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
@pytest.mark.parametrize("bottleneck", ["none", "vq"])
def test_every_encoder_learns_from_the_answer(mini, encoder, channel, layers, bottleneck):
    settings = {"channel": channel, "channel_layers": layers, "bottleneck": bottleneck, "codebook": 8}
    codec = make_codec(mini, k=3, encoder=encoder, **settings)
    receiver, episodes = codec.receiver, drawn(4)
    prefix_BKD = codec(receiver.encode_messages([e.message for e in episodes])).prefix_BKD
    answer = len(receiver.answer_frame(episodes[0].level).ids_A)
    receiver.logits(receiver.layout(episodes, 3), prefix_BKD, answer).logsumexp(-1).sum().backward()
    learned = [name for name, p in codec.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert any(name.startswith("encoder") for name in learned)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_saved_codec_of_a_channel_loads_as_it_was(mini, tmp_path, encoder):
    for channel, layers in CHANNELS:
        codec = make_codec(mini, k=2, encoder=encoder, channel=channel, channel_layers=layers)
        folder = tmp_path / f"{channel}-{layers}"
        codec.save_pretrained(folder)
        loaded = Codec.from_pretrained(folder, receiver=mini)
        assert loaded.digest == codec.digest == load_codec(folder, mini).digest
        messages = codec.receiver.encode_messages(["x1 = 2; x2 != 0"])
        assert torch.equal(loaded(messages).prefix_BKD, codec(messages).prefix_BKD)


CONDITIONS = [
    *("normal", "null", "random", "shuffle", "P0", "P1", "identity", "mean", "matched", "rotate", "init", "near"),
    *("tokens-2", "noise-1", "drop-1", "scale_gate=0.5", "constant"),
]


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_every_control_is_made_in_the_channel_of_the_codec(mini, channel, layers):
    from m2ray.codec.checkpoints import CheckpointId
    from m2ray.evaluation.runner import evaluate

    codec = make_codec(mini, k=2, channel=channel, channel_layers=layers)
    constant = make_codec(mini, k=2, channel=channel, channel_layers=layers, encoder="constant")
    checkpoint = CheckpointId("c", 0, codec.digest, 1, "{}")
    config = EvaluationConfig(max_new_tokens=20)
    rows = evaluate(mini, drawn(20), "confirm", CONDITIONS, config, checkpoint, codec, constant)
    answers = {name: part.set_index("episode").answer for name, part in rows.groupby("condition")}
    pd.testing.assert_series_equal(answers["identity"], answers["P1"])
    at = "message " + " ".join([channel, *([",".join(map(str, layers))] if layers else [])])
    assert set(rows[rows.k == 2].place) == {at}
    assert (answers["normal"] != answers["null"]).any()


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_a_rotation_keeps_the_norms_of_each_part(mini, channel, layers):
    from m2ray.evaluation.controls import rotate

    codec = make_codec(mini, k=2, channel=channel, channel_layers=layers)
    inputs = ConditionInputs(mini, drawn(3), codec, None, 3)
    rotated_EKD = torch.stack(list(rotate(inputs).prefixes))
    widths = codec.receiver.channel.part_widths
    norms = [
        torch.stack([part.norm(dim=-1) for part in each.split(widths, -1)])
        for each in (inputs.prefixes_EKD, rotated_EKD)
    ]
    assert torch.allclose(*norms, rtol=1e-4)
    assert not torch.allclose(inputs.prefixes_EKD, rotated_EKD, atol=0.1)
