"""Codecs: shapes, on-manifold start, calibration, quantizer, what is saved is what is loaded."""

import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from m2ray.codec.codec import Codec, load_codec, min_parameters
from m2ray.codec.encoder_registry import ENCODERS
from m2ray.codec.encoders import segment_shares
from m2ray.codec.vector_quantizer import VectorQuantizer
from m2ray.config.trial import CodecConfig
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")
MESSAGES = [episode.message for episode in episodes(EASY, range(6), "train")]


def make(receiver: Receiver, **settings: object) -> Codec:
    torch.manual_seed(0)
    defaults: dict[str, object] = {"width": 32, "k": 5, "lora_rank": 2}
    return Codec(CodecConfig.model_validate({**defaults, **settings}), receiver)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("calibration", ["norm", "layernorm"])
@pytest.mark.parametrize("bottleneck", ["none", "vq"])
def test_every_codec_gives_finite_prefixes_and_gradients(tiny, encoder, calibration, bottleneck):
    codec = make(tiny, encoder=encoder, calibration=calibration, bottleneck=bottleneck, codebook=16, groups=2)
    encoded = codec(tiny.encode_messages(MESSAGES))
    assert encoded.prefix_BKD.shape == (6, 5, tiny.width)
    encoded.prefix_BKD.square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in codec.parameters())
    assert all(p.grad is None for p in tiny.model.parameters())


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "constant"])
def test_the_prefix_of_a_message_does_not_depend_on_its_batch(tiny, encoder):
    codec = make(tiny, encoder=encoder).eval()
    together = codec(tiny.encode_messages(MESSAGES)).prefix_BKD
    for i, message in enumerate(MESSAGES):
        torch.testing.assert_close(
            codec(tiny.encode_messages([message])).prefix_BKD[0], together[i], atol=1e-5, rtol=1e-4
        )


def test_constant_is_content_free_and_the_others_are_not(tiny):
    for encoder in ENCODERS:
        prefix = make(tiny, encoder=encoder).eval()(tiny.encode_messages(MESSAGES)).prefix_BKD
        assert torch.equal(prefix[0], prefix[1]) == (encoder == "constant")


def test_segments_start_on_the_embedding_manifold(tiny):
    """With as many slots as tokens the untrained codec is the identity, up to the norm."""
    codec = make(tiny, scale_gate=1.5)
    ids = tiny.tokens(MESSAGES[0])
    prefix_KD = codec(tiny.encode_messages([MESSAGES[0]]), k=len(ids)).prefix_BKD[0]
    own_KD = tiny.embedding_ND[torch.tensor(ids)]
    assert torch.cosine_similarity(prefix_KD, own_KD).min() > 0.9999
    torch.testing.assert_close(prefix_KD.norm(dim=1), torch.full((len(ids),), 1.5 * tiny.embedding_norm))


def test_segments_start_from_states_where_asked(tiny):
    """An untrained slot is the receiver's own state behind its first layer at the segment's last word."""
    codec = make(tiny, start="states", scale_gate=3.0)
    ids = tiny.tokens(MESSAGES[0])
    prefix_KD = codec(tiny.encode_messages([MESSAGES[0]]), k=len(ids)).prefix_BKD[0]
    own_TD = tiny.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    assert torch.cosine_similarity(prefix_KD, own_TD).min() > 0.9999
    torch.testing.assert_close(prefix_KD.norm(dim=1), torch.full((len(ids),), 3.0 * tiny.embedding_norm))
    beyond_KD = codec(tiny.encode_messages([MESSAGES[0]]), k=2 * len(ids)).prefix_BKD[0]
    assert (beyond_KD.norm(dim=1) == 0).sum() == len(ids)


def test_slots_beyond_the_message_do_not_drown_the_gradient(tiny):
    norms = []
    for k in (4, 2 * max(len(tiny.tokens(message)) for message in MESSAGES)):
        codec = make(tiny)
        codec(tiny.encode_messages(MESSAGES), k=k).prefix_BKD.sum().backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in codec.parameters() if p.grad is not None]))
    assert norms[1] < 1000 * norms[0]  # it was a million times


def test_a_quantizer_works_under_autocast(tiny):
    codec = make(tiny, bottleneck="vq", codebook=8)
    with torch.autocast("cpu", torch.bfloat16):
        codec(tiny.encode_messages(MESSAGES)).prefix_BKD.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in codec.parameters() if p.grad is not None)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    k=st.integers(1, 30),
    padding=st.integers(0, 3),
)
def test_every_token_is_in_one_segment_in_order_and_clauses_share_none_where_there_are_enough(lengths, k, padding):
    clause = [i for i, length in enumerate(lengths) for _ in range(length)]
    mask = torch.tensor([[True] * len(clause) + [False] * padding])
    ends = torch.tensor([[i + 1 < len(clause) and clause[i] != clause[i + 1] for i in range(len(clause))]])
    shares = segment_shares(mask, F.pad(ends, (0, padding)), k)
    assert torch.equal(shares.sum(1), mask.float())
    segment = shares[0].argmax(0)[: len(clause)].tolist()
    assert segment == sorted(segment)
    if k >= len(lengths):
        holders = [{c for c, s in zip(clause, segment, strict=True) if s == j} for j in set(segment)]
        assert all(len(held) == 1 for held in holders)


def test_without_clauses_segments_are_equal_shares_of_the_tokens():
    shares = segment_shares(torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool), 4)
    assert shares[0].argmax(0).tolist() == [i // 3 for i in range(12)]


def test_a_slot_stands_for_the_last_word_of_its_clause(tiny):
    encoder = make(tiny, cut="clauses", k=4).encoder
    messages = tiny.encode_messages(MESSAGES)
    places = encoder.word_positions(messages, 4)
    for message, ids, row in zip(MESSAGES, messages.ids_BT.tolist(), places.tolist(), strict=True):
        for clause, place in zip(message.split("; "), row, strict=True):
            before = tiny.tokenizer.decode(ids[: place + 1])
            assert before.endswith(clause)
    many = encoder.word_positions(messages, 40)
    assert (many == -1).any()
    assert (many < messages.mask_BT.sum(1, keepdim=True)).all()


def test_the_attempts_calibration_has_its_norm_and_gate(tiny):
    codec = make(tiny, encoder="last_token", calibration="layernorm", scale_gate=0.5)
    norms = codec(tiny.encode_messages(MESSAGES)).prefix_BKD.norm(dim=-1)
    # LayerNorm gives sqrt(D), times mean norm / sqrt(D), times the gate
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5 * tiny.embedding_norm), rtol=1e-2, atol=1e-4)
    assert codec.scale_gate.requires_grad
    assert not codec.decode(torch.randn(2, 5, tiny.width), 0.0).prefix_BKD.any()


def test_memory_leaves_the_receiver_as_it_was(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    codec = make(tiny, encoder="memory")
    for parameter in codec.encoder.up.values():
        torch.nn.init.ones_(parameter)
    messages = tiny.encode_messages(MESSAGES)
    codec(messages)
    after = tiny.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(tiny.encode_messages(MESSAGES).states_BTD, messages.states_BTD)


def test_quantizer_is_straight_through_and_revives_dead_codes(tiny):
    config = CodecConfig(bottleneck="vq", codebook=8, groups=2)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(config, tiny)
    latent = torch.randn(64, 3, tiny.width)
    for _ in range(200):
        quantized, codes, probs = quantizer(latent, lambda t: t)
    assert codes.shape == (64, 3, 2)
    torch.testing.assert_close(probs.sum(-1), torch.ones(64, 3, 2))
    used = [len(codes[..., group].unique()) for group in range(2)]
    assert min(used) >= 7
    # a quantized vector is a codebook entry, and quantizing again changes nothing
    quantizer.eval()
    again, _, _ = quantizer(quantized, lambda t: t)
    torch.testing.assert_close(again, quantized)
    # nearest code, by brute force
    parts = latent.reshape(64, 3, 2, -1)
    eval_codes = quantizer(latent, lambda t: t)[1]
    for group in range(2):
        nearest = torch.cdist(parts[:, :, group].flatten(0, 1), quantizer.codes_GCE[group]).argmin(1).view(64, 3)
        assert torch.equal(nearest, eval_codes[..., group])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_is_loaded(tiny, tmp_path, encoder):
    codec = make(tiny, encoder=encoder, bottleneck="vq", codebook=8).eval()
    codec.save(tmp_path, {"config": "c", "seed": 0, "step": 1})
    loaded = load_codec(tmp_path, tiny)
    messages = tiny.encode_messages(MESSAGES)
    assert torch.equal(codec(messages).prefix_BKD, loaded(messages).prefix_BKD)
    assert loaded.digest == codec.digest
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.pkl"))


@pytest.fixture
def other(other_folder):
    return load_receiver(str(other_folder))


@pytest.mark.parametrize("encoder", ["segments", "resampler", "last_token", "memory"])
def test_a_codec_runs_on_another_receiver_where_asked_to(tiny, other, tmp_path, encoder):
    codec = make(tiny, encoder=encoder).eval()
    codec.save(tmp_path / "own", {"config": "c", "seed": 0, "step": 1})
    loaded = load_codec(tmp_path / "own", other, other_receiver=True)
    assert loaded.receiver is not codec.receiver
    assert loaded.digest == codec.digest
    prefixes = [each(who.encode_messages(MESSAGES)).prefix_BKD for each, who in ((codec, tiny), (loaded, other))]
    assert not torch.allclose(*prefixes)
    # Saved again it is still a codec of its own receiver.
    loaded.save(tmp_path / "again", {})
    assert torch.equal(
        load_codec(tmp_path / "again", tiny)(tiny.encode_messages(MESSAGES)).prefix_BKD, prefixes[0]
    )


class TestBadCheckpoints:
    @pytest.fixture
    def saved(self, tiny, tmp_path):
        make(tiny).save(tmp_path, {})
        return tmp_path

    def change(self, folder, **changes):
        record = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            node = record
            *path, last = key.split("__")
            for part in path:
                node = node[part]
            node[last] = value
        (folder / "config.json").write_text(json.dumps(record))

    def test_truncated(self, tiny, saved):
        file = saved / "codec.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"codec.safetensors: truncated"):
            load_codec(saved, tiny)

    def test_of_another_receiver(self, tiny, saved):
        self.change(saved, receiver_digest="0" * 16, receiver="tiny")
        with pytest.raises(UserError, match=r"trained with receiver tiny \(0000.* not with .*; use the"):
            load_codec(saved, tiny)

    def test_of_the_receiver_that_is_called_another(self, tiny, saved):
        with pytest.raises(UserError, match=r"--other-receiver: .* is the receiver that .*; leave it out"):
            load_codec(saved, tiny, other_receiver=True)

    @pytest.mark.parametrize("encoder", ["segments", "last_token", "memory", "constant"])
    def test_of_a_receiver_of_another_size(self, tiny, tmp_path, encoder):
        make(tiny, encoder=encoder).save(tmp_path, {})
        with pytest.raises(UserError, match=r"does not fit mini, of width 128; give a receiver of the width"):
            load_codec(tmp_path, load_receiver("mini"), other_receiver=True)

    def test_of_another_receiver_but_changed(self, tiny, saved, other):
        self.change(saved, codec__k=9)
        with pytest.raises(UserError, match="digest: weights or settings were changed"):
            load_codec(saved, other, other_receiver=True)

    def test_of_another_k(self, tiny, tmp_path):
        make(tiny, encoder="resampler").save(tmp_path, {})
        self.change(tmp_path, codec__k=9)
        with pytest.raises(UserError, match=r"does not fit config\.json"):
            load_codec(tmp_path, tiny)

    def test_of_another_k_where_any_k_fits(self, tiny, saved):
        self.change(saved, codec__k=9)
        with pytest.raises(UserError, match="digest: weights or settings were changed"):
            load_codec(saved, tiny)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"codec": 1}', '{"a": ' * 5000])
    def test_hostile_record(self, tiny, saved, text):
        (saved / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            load_codec(saved, tiny)

    def test_missing(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r"no config.json"):
            load_codec(tmp_path / "nowhere", tiny)


def test_k_beyond_the_context_is_refused(tiny):
    with pytest.raises(UserError, match=r"codec.k: .* use a smaller k"):
        make(tiny, k=tiny.max_positions)


def test_gate_starts_where_it_is_told(tiny):
    for calibration in ("norm", "layernorm"):
        gate = make(tiny, calibration=calibration, scale_gate=0.7).scale_gate
        assert math.isclose(float(gate.detach()), 0.7, rel_tol=1e-5)


def test_a_checkpoint_from_before_a_setting_existed_still_loads(tiny, tmp_path):
    codec = make(tiny)
    codec.record["codec"] = {key: None for key in CodecConfig.model_fields if key not in ("cut", "start")}
    codec.save(tmp_path, {})
    record = json.loads((tmp_path / "config.json").read_text())
    assert "cut" not in record["codec"]
    loaded = load_codec(tmp_path, tiny)
    assert (loaded.config, loaded.digest) == (codec.config, record["digest"])
    loaded.save(tmp_path, {})
    assert load_codec(tmp_path, tiny).digest == record["digest"]
    record["codec"]["width"] = 36
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError):
        load_codec(tmp_path, tiny)


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "own"])  # which has no weights
@pytest.mark.parametrize("bottleneck", ["none", "vq"])
def test_a_record_that_asks_for_gigabytes_is_refused_before_they_are_made(tiny, tmp_path, encoder, bottleneck):
    codec = make(tiny, encoder=encoder, bottleneck=bottleneck, codebook=16)
    assert min_parameters(codec.config, tiny.width, codec.width) <= sum(
        t.numel() for t in codec.state_dict().values()
    )
    codec.save(tmp_path, {})
    record = json.loads((tmp_path / "config.json").read_text())
    record["codec"] |= {"k": 4096, "width": 8192, "layers": 32, "lora_rank": 256, "codebook": 65536}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"fewer weights than config\.json implies; restore either$"):
        load_codec(tmp_path, tiny)


@pytest.mark.parametrize("name", ["results/recipe-mini/best-k5", "best-k5", "./best-k5"])
def test_a_codec_that_is_nowhere_is_one_line(tiny, name):
    with pytest.raises(UserError, match=f"^{re.escape(name)}: no such folder; give a codec's folder, or its name"):
        Codec.from_pretrained(name, receiver=tiny)


def test_a_codec_that_the_hub_cannot_give_is_one_line(tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^m2ray/best-k5: no such folder, and the hub does not provide it"):
        Codec.from_pretrained("m2ray/best-k5", receiver=tiny)
