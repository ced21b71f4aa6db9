"""The arms of search_spaces/methods.yaml at tiny size: each trains, is judged, saved, loaded and read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2ray.codec.checkpoints import CheckpointId
from m2ray.codec.codec import Codec
from m2ray.codec.untrained import untrained_codec
from m2ray.config.plan import load_plan
from m2ray.evaluation.conditions import derangement
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.channel import entering
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.training.objectives import Heads
from m2ray.training.step import CodecLoss
from m2ray.training.trainer import train

FILE = Path(__file__).parents[2] / "search_spaces" / "methods.yaml"
TINY = {
    "splits": {"train": "100000:100100", "search": "1100:1108", "select": "1110:1112", "confirm": "1112:1114"},
    "training.epochs": 1,
    "training.epoch_samples": 8,
    "training.batch_size": 4,
    "training.log_every": 1,
}
ARMS = load_plan(FILE, TINY).points
CONDITIONS = [
    *("normal", "null", "random", "shuffle", "P0", "P1", "mean", "matched", "rotate", "near", "identity"),
    *("tokens-8", "noise-1", "bits-4", "drop-1", "scale_gate=0.5"),
]


@pytest.fixture(scope="module")
def mini():
    return load_receiver("mini")


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):
    """Return the checkpoint's folder of an arm, which is trained at the first call."""
    folders = {}

    def get(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            folders[name] = train(ARMS[name], 0, mini, folder, lambda metrics, at: None, {"config": name})
        return folders[name]

    return get


def drawn(count):
    return [draw_episode(level("easy"), seed, "confirm") for seed in range(2000, 2000 + count)]


def with_codec(name, **changes):
    """Return an arm's configuration with other values in `codec`."""
    codec = ARMS[name].codec.model_copy(update=changes)
    return ARMS[name].model_copy(update={"codec": codec})


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_trains_what_it_says(mini, trained, name):
    config, codec = ARMS[name], Codec.from_pretrained(trained(name), receiver=mini)
    before = untrained_codec(config, 0, mini).state_dict()
    changed = [key for key, weight in codec.state_dict().items() if not torch.equal(weight, before[key])]
    assert bool(changed) != config.codec.trains_nothing
    assert not config.codec.trains_nothing or "init" not in config.conditions_on("confirm")
    if config.codec.calibration == "none":
        assert "gate" not in changed


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_judged_under_every_condition(mini, trained, name):
    codec, episodes = Codec.from_pretrained(trained(name), receiver=mini), drawn(8)
    names = [*CONDITIONS, *([] if ARMS[name].codec.trains_nothing else ["init"])]
    checkpoint = CheckpointId(name, 0, codec.digest, 1, "{}")
    rows = evaluate(mini, episodes, "confirm", names, ARMS[name].evaluation, checkpoint, codec, None)
    answers = {condition: list(part.answer) for condition, part in rows.groupby("condition")}
    assert set(answers) == set(names)
    assert answers["identity"] == answers["P1"]


@pytest.mark.parametrize("name", ARMS)
def test_a_saved_arm_loads_as_it_was(mini, trained, tmp_path, name):
    codec = Codec.from_pretrained(trained(name), receiver=mini)
    codec.save_pretrained(tmp_path)
    again = Codec.from_pretrained(tmp_path, receiver=mini)
    messages = codec.receiver.encode_messages([episode.message for episode in drawn(3)])
    assert again.digest == codec.digest
    assert torch.equal(again(messages).prefix_BKD, codec(messages).prefix_BKD)


@pytest.mark.parametrize("name", ARMS)
def test_the_payload_is_all_that_b_reads_of_a_message(mini, trained, name):
    """Another message gives other vectors; with the same vectors no logit changes, whatever the message is."""
    codec, episodes = Codec.from_pretrained(trained(name), receiver=mini), drawn(6)
    prefixes_EKD = ConditionInputs(mini, episodes, codec, None, 6).prefixes_EKD
    partners = derangement(episodes)
    assert all(not torch.equal(prefixes_EKD[i], prefixes_EKD[partner]) for i, partner in enumerate(partners))
    others = [
        replace(episode, sender=episodes[partner].sender, message=episodes[partner].message)
        for episode, partner in zip(episodes, partners, strict=True)
    ]
    length, config = mini.references(episodes).length, ARMS[name].codec
    first, second = (
        codec.receiver.logits(codec.receiver.layout(each, config.k, config.place), prefixes_EKD, length)
        for each in (episodes, others)
    )
    assert torch.equal(first, second)


def test_the_sender_reads_the_message_behind_the_lead(mini):
    """All keys and values of a message behind the prompt's beginning are those of the text in its place."""
    codec = untrained_codec(with_codec("kvcomm", channel_layers=None), 0, mini).eval()
    (episode,) = episodes = drawn(1)
    own_KD = codec(codec.receiver.encode_messages([episode.message])).prefix_BKD[0]
    (in_place_TD,) = codec.receiver.message_vectors(episodes)
    empty = len(own_KD) - len(in_place_TD)
    assert not own_KD[:empty].any()
    torch.testing.assert_close(own_KD[empty:], in_place_TD, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["icae", "500xcompressor"])
def test_autoencoding_is_the_receivers_own_cross_entropy_of_the_message(mini, name):
    """Padding, slots and the embedding that asks are where a row that is run alone has them."""
    config, episodes = ARMS[name], drawn(4)
    codec, heads = untrained_codec(config, 0, mini), Heads(config, mini)
    _, values = CodecLoss(config, codec, heads, mini)(episodes, config.codec.k, 0, True)
    total, tokens = 0.0, 0
    for episode in episodes:
        prefix_1KD = codec(codec.receiver.encode_messages([episode.message])).prefix_BKD
        ids_T = torch.tensor(mini.tokens(episode.message))
        slots_K = torch.full((config.codec.k + 1,), mini.slot_id)
        ids_1T = torch.cat([slots_K, ids_T])[None]
        embeds_1TD = mini.embedding_ND[ids_1T].clone()
        embeds_1TD[0, config.codec.k] = heads.repeat_D
        if config.codec.channel == "embeddings":
            embeds_1TD[:, : config.codec.k] = prefix_1KD
        slots = codec.receiver.slots(torch.arange(config.codec.k)[None], prefix_1KD)
        with torch.no_grad(), entering(slots, None, mini.causal.layers):
            logits_TW = mini.causal.own(inputs_embeds=embeds_1TD).logits[0, config.codec.k : -1]
        total += float(torch.nn.functional.cross_entropy(logits_TW, ids_T, reduction="sum"))
        tokens += len(ids_T)
    assert float(values["autoencoding"]) == pytest.approx(total / tokens, rel=1e-4)


def test_a_faded_objective_costs_no_forward_pass(mini, monkeypatch):
    config = ARMS["icae"]
    loss = CodecLoss(config, untrained_codec(config, 0, mini), Heads(config, mini), mini)
    monkeypatch.setattr(CodecLoss, "_repeated", None)  # would fail if it were called
    last = config.training.steps - 1
    assert "autoencoding" not in loss(drawn(2), config.codec.k, last, False)[1]


def test_messages_longer_than_k_are_cut_to_the_ends_of_equal_parts(mini):
    config = with_codec("activation", channel="embeddings", channel_layers=None, k=2)
    codec = untrained_codec(config, 0, mini).eval()
    (message,) = [episode.message for episode in drawn(1)]
    ids, own_KD = mini.tokens(message), codec(mini.encode_messages([message])).prefix_BKD[0]
    assert torch.equal(own_KD, mini.embedding_ND[[ids[len(ids) // 2 - 1], ids[-1]]])


def test_every_arm_sees_as_many_samples_or_none():
    plan = load_plan(FILE)
    samples = {
        c.training.epochs * c.training.epoch_samples for c in plan.points.values() if not c.codec.trains_nothing
    }
    assert samples == {plan.example.evaluation.constant_samples}
    splits = plan.example.splits
    assert len(open_source(plan.example.task).seeds(splits, "confirm")) == 1000
