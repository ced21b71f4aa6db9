"""Channels on the embedded receiver: text through its own keys and values, what is masked, gradients, refusals."""

from dataclasses import replace

import pytest
import torch
import transformers
from made_codecs import make_codec

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.evaluation.rivals import identity, p1
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.model.causal_model import PLAIN
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

CHANNELS = [("kv", None), ("kv", [0, 2]), ("hidden", [1])]
PLACES = ("before", "message", "after")


@pytest.fixture(scope="module")
def mini() -> Receiver:
    return load_receiver("mini")


def drawn(count: int):
    return [draw_episode(level("easy"), seed, "confirm") for seed in range(2000, 2000 + count)]


def own_vectors(receiver, episodes, k):
    """Return k vectors of the receiver's own for each episode, those of other messages."""
    return torch.stack([own_TD[:k] for own_TD in receiver.message_vectors(episodes[1:] + episodes[:1])])


def answers_of(receiver, episodes, injection):
    return answer_episodes(receiver, episodes, injection, EvaluationConfig(max_new_tokens=32))


@pytest.mark.parametrize(("channel", "layers"), [("kv", None), ("kv", [1]), ("hidden", [0]), ("hidden", [2])])
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_message_itself_through_a_channel_is_read_like_the_text(mini, channel, layers, count):
    episodes = drawn(count)
    codec = make_codec(mini, k=2, channel=channel, channel_layers=layers)
    inputs = ConditionInputs(mini, episodes, codec, None, 50)
    through, text = answers_of(mini, episodes, identity(inputs)), answers_of(mini, episodes, p1(inputs))
    assert through.texts == text.texts
    assert torch.allclose(through.nll_E, text.nll_E, atol=1e-4)


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
@pytest.mark.parametrize("place", PLACES)
def test_vectors_are_read_the_same_in_every_way_of_running(mini, channel, layers, place):
    fast = open_channel(mini, channel, layers)
    slow = mini.run_in(PLAIN).through(fast.channel)
    episodes = drawn(6)
    vectors_BKD = own_vectors(fast, episodes, 3)
    vectors_BKD[0, 1] = 0
    frame = fast.answer_frame(episodes[0].level)
    logits = [each.logits(each.layout(episodes, 3, place), vectors_BKD, len(frame.ids_A)) for each in (fast, slow)]
    assert torch.allclose(*logits, atol=1e-3)
    decoded = [each.generate_and_score(episodes, 3, vectors_BKD, place) for each in (fast, slow)]
    assert decoded[0].texts == decoded[1].texts
    assert torch.allclose(decoded[0].nll_B, decoded[1].nll_B, atol=1e-3)
    sampled = [each.decode(episodes, 3, vectors_BKD, place, 1.0, 32) for each in (fast, slow)]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_a_change_of_the_message_changes_no_logit_while_the_vectors_stay(mini, channel, layers):
    receiver = open_channel(mini, channel, layers)
    episodes = drawn(8)
    pairs = zip(episodes, episodes[1:] + episodes[:1], strict=True)
    others = [replace(episode, sender=other.sender, message=other.message) for episode, other in pairs]
    vectors_BKD = own_vectors(receiver, episodes, 3)
    answer = len(receiver.answer_frame(episodes[0].level).ids_A)
    logits = [receiver.logits(receiver.layout(each, 3), vectors_BKD, answer) for each in (episodes, others)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_no_token_reads_the_filler_of_a_slot(mini, channel, layers):
    receiver = open_channel(mini, channel, layers)
    episodes = drawn(4)
    vectors_BKD = own_vectors(receiver, episodes, 3)
    layout, answer = receiver.layout(episodes, 3), len(receiver.answer_frame(episodes[0].level).ids_A)
    others = layout._replace(ids_BT=layout.ids_BT.scatter(1, layout.slots_BK, receiver.tokens("3")[0]))
    assert torch.equal(*(receiver.logits(each, vectors_BKD, answer) for each in (layout, others)))


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_slots_of_zeros_in_kv_are_as_if_only_the_positions_were_there(mini, layers):
    receiver = open_channel(mini, "kv", layers)
    (episode,) = drawn(1)
    frame = receiver.answer_frame(episode.level)
    k, answer = 3, len(frame.ids_A)
    zeros_BKD = torch.zeros(1, k, receiver.channel.width)
    ours = receiver.logits(receiver.layout([episode], k), zeros_BKD, answer)
    without = receiver.layout([episode], [""])
    ids_BT = without.ids_BT[:, :-1]
    positions_BT = torch.arange(ids_BT.shape[1])[None]
    positions_BT = positions_BT + k * (positions_BT >= len(receiver.prompt_ids(episode)[0]))
    mask_BT = torch.ones_like(ids_BT)
    own = receiver.model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=mask_BT).logits
    assert torch.allclose(ours, own[:, -answer:], atol=1e-4)


@pytest.mark.parametrize(("channel", "layers"), CHANNELS)
def test_gradients_flow_to_the_vectors_also_where_rows_are_recomputed(mini, channel, layers):
    receiver = open_channel(mini, channel, layers)
    episodes = drawn(4)
    layout, answer = receiver.layout(episodes, 3), len(receiver.answer_frame(episodes[0].level).ids_A)
    gradients = []
    for rows_at_once in (None, 1):
        leaf_BKD = own_vectors(receiver, episodes, 3).requires_grad_()
        (output,) = receiver.forward([receiver.answer_request(layout, leaf_BKD, answer, False)], rows_at_once)
        receiver.gather_answer(layout, answer, output).logits_BAW.logsumexp(-1).sum().backward()
        gradients.append(leaf_BKD.grad)
    assert bool((gradients[0].abs().amax(2) > 0).all())
    assert torch.allclose(*gradients, atol=1e-4)


def test_layers_that_a_receiver_does_not_have_are_refused(mini):
    with pytest.raises(UserError, match=r"codec.channel_layers: 4: receiver mini has layers 0 to 3; use 0 to 3"):
        open_channel(mini, "kv", [0, 4])
    with pytest.raises(UserError, match=r"no layer reads the output of the last; use 0 to 2"):
        open_channel(mini, "hidden", [3])


def tiny_model(tiny, config) -> Receiver:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return Receiver(model, tiny.tokenizer, "chat", type(model).__name__, {})


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (transformers.GPTNeoXConfig(intermediate_size=64, **SIZES), "layer 0 has 0 modules k_proj"),
        (
            transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4),
            "layer 0 has 0 modules k_proj",
        ),
        (
            transformers.DeepseekV3Config(
                intermediate_size=64, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2,
                n_group=1, topk_group=1, first_k_dense_replace=2, kv_lora_rank=16, q_lora_rank=16,
                qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, num_key_value_heads=4, **SIZES,
            ),
            "layer 0 has 0 modules k_proj",
        ),
    ],
)  # fmt: skip
def test_kinds_without_keys_and_values_of_their_own_are_refused_in_one_line(tiny, config, cause):
    config.vocab_size, config.eos_token_id = len(tiny.tokenizer), tiny.pad_id
    with pytest.raises(UserError, match=f"codec.channel: kv: receiver .* does not read it exactly: {cause}"):
        open_channel(tiny_model(tiny, config), "kv")


def test_layers_that_mix_attention_with_a_recurrent_state_are_refused(tiny):
    config = transformers.Qwen3NextConfig(
        vocab_size=len(tiny.tokenizer), intermediate_size=64, num_key_value_heads=2, head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"], num_experts=0, mlp_only_layers=[0, 1], **SIZES,
    )  # fmt: skip
    config.eos_token_id = tiny.pad_id
    with pytest.raises(UserError, match="does not read it exactly"):
        open_channel(tiny_model(tiny, config), "kv", [1])


def test_a_sliding_window_is_kept(tiny):
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tiny.tokenizer), intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=32,
        layer_types=["sliding_attention", "full_attention"], **SIZES,
    )  # fmt: skip
    config.eos_token_id = tiny.pad_id
    receiver = tiny_model(tiny, config)
    for layers in (None, [1]):
        assert open_channel(receiver, "kv", layers).channel.kind == "kv"
