"""Receivers of every kind of architecture give their model's own numbers, or are refused by name.

Each is a tiny random model. The reference is in `own_numbers`: `model(input_ids).logits` a row at a time, and
greedy decoding that reads the whole row again for every token.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from own_numbers import (
    BOUND,
    EPISODES,
    MESSAGES,
    answer_len,
    answers_that_differ,
    decoded_logits,
    error,
    gradient_error,
    logit_error,
    own_answer_logits,
    own_answers,
    own_logits,
)
from receiver_matrix import EXACT, REFUSED, measure
from tiny_models import LAYERS, NOT_BUILT, causal_types, save_receiver, tiny_model
from tiny_trainings import config
from tokenizers import processors

from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.training.start_weights import check_layers
from m2ray.util.errors import UserError


class Kind(NamedTuple):
    """A kind of architecture, on one model.

    Attributes:
        model_type: The model's type.
        changes: Of its tiny configuration.
        without: Changes that take away what is special. The model's logits must then be others, else the test
            would prove nothing.
    """

    model_type: str
    changes: dict[str, Any] = {}
    without: dict[str, Any] = {}


LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0],
    "original_max_position_embeddings": 30,
    "rope_theta": 10000.0,
}
KINDS = {
    "logits are scaled": Kind("granite", {"logits_scaling": 8.0}, {"logits_scaling": 1.0}),
    "logits are capped": Kind("gemma3_text", {"final_logit_softcapping": 2.0}, {"final_logit_softcapping": None}),
    "a transform before the output matrix": Kind("bert"),
    "embeddings are scaled": Kind("gemma"),
    "per-layer inputs": Kind("gemma3n_text"),
    "per-layer inputs and layers that share keys": Kind("gemma4_text"),
    "a window of 30": Kind("mistral", {"sliding_window": 30}, {"sliding_window": 512}),
    "a window of 12": Kind("mistral", {"sliding_window": 12}, {"sliding_window": 512}),
    "some layers with a window": Kind("gemma3_text", {"sliding_window": 12}, {"sliding_window": 512}),
    "rotary factors that change with the length": Kind(
        "phi3",
        {"sliding_window": None, "original_max_position_embeddings": 30, "rope_parameters": LONG_ROPE},
        {"rope_parameters": {**LONG_ROPE, "long_factor": [1.0] * 8}},
    ),
    "positions that cannot be given": Kind("bart"),
    "positions that cannot be given, normalized before": Kind("blenderbot"),
    "keys and values of different width": Kind("deepseek_v3"),
    "layers of different head sizes": Kind(
        "gemma4_text", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 512}
    ),
    "linear attention": Kind("qwen3_5_text"),
    "linear attention and experts": Kind("qwen3_next"),
    "state spaces and attention": Kind("bamba"),
    "state spaces": Kind("mamba"),
    "a recurrent block and a window": Kind("recurrent_gemma"),
    "a decoder that is the whole model": Kind("llama4_text"),
    "a decoder that is the output matrix": Kind("modernbert-decoder"),
    "a composite configuration": Kind("gemma3"),
    "biases by distance": Kind("bloom"),
    "biases by distance in columns": Kind("mpt"),
    "positions counted by the cache": Kind("roformer"),
    "attention sinks": Kind("gpt_oss"),
    "local and global layers": Kind("gpt_neo"),
    "attention scores are capped": Kind("gemma2"),
    "learned positions": Kind("gpt2"),
}

# Types that are refused, and why.
ALWAYS_REFUSED = {
    "cpmant": "is not causal",
    "prophetnet": "is not causal",
    "qwen4_exp": "its embeddings are 64 wide, the output of its layers 256",
    "qwen4_exp_text": "its embeddings are 64 wide, the output of its layers 256",
    "reformer": "cannot be run",
    "xlnet": "is not causal",
}


@pytest.fixture(scope="module", autouse=True)
def _checked_anew(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No receiver's check is kept from an earlier run. One thread runs tiny models fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Receiver]:
    """Saves a model and loads it as a receiver."""

    def loaded(model: Any, settings: dict[str, Any] | None = None) -> Receiver:
        return load_receiver(str(save_receiver(model, tmp_path / "receiver", settings=settings)), device="cpu")

    return loaded


def assert_own_numbers(receiver: Receiver, tokens: int = 8) -> None:
    """Logits, greedy answers and gradients are the model's own: of text, and of vectors in each place."""
    assert logit_error(receiver) < BOUND
    assert answers_that_differ(receiver, tokens) == (0, 12)
    assert gradient_error(receiver) < 10 * BOUND
    messages = receiver.encode_messages(MESSAGES)
    assert messages.first_BTD.shape == messages.states_BTD.shape == messages.embeds_BTD.shape
    layout = receiver.layout(EPISODES, MESSAGES)
    states = receiver.score_answers(layout, None, answer_len(receiver), states=True).states_BLSD
    assert states is not None
    assert states.shape[1::2] == (LAYERS, receiver.width)


@pytest.mark.parametrize("name", KINDS)
def test_numbers_are_the_models_own(name, load):
    kind = KINDS[name]
    model = tiny_model(kind.model_type, **kind.changes)
    if kind.without:
        plain = tiny_model(kind.model_type, **(kind.changes | kind.without))
        row = [3 + i * i % 17 for i in range(40)]
        with torch.no_grad():
            assert error([own_logits(plain, row)], [own_logits(model, row)]) > 100 * BOUND
    assert_own_numbers(load(model))


@pytest.mark.parametrize(
    ("model_type", "padding", "opening"), [("roberta", 20, 20), ("xlm-roberta", 0, 0), ("xmod", 1, 0)]
)
def test_positions_that_are_read_off_a_padding_token_in_the_prompt_are_the_models_own(
    tmp_path, model_type, padding, opening
):
    """The token opens prompts, would fill slots as well, or is `A`, the first word of a prompt."""
    folder = save_receiver(tiny_model(model_type, pad_token_id=padding), tmp_path / "receiver")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    token = tokenizer.convert_ids_to_tokens(opening)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, opening)]
    )
    tokenizer.save_pretrained(folder)
    receiver = load_receiver(str(folder), device="cpu")
    assert receiver.opening_ids == [opening]
    assert receiver.causal.ways.ids
    assert_own_numbers(receiver)


def test_a_row_that_exceeds_a_table_of_positions_behind_a_padding_row_is_refused(load):
    receiver = load(tiny_model("roberta", pad_token_id=1, max_position_embeddings=42))
    assert receiver.max_positions == 40
    longest = 40 - receiver.layout(EPISODES[:1], 0).ids_BT.shape[1]
    receiver.logits(receiver.layout(EPISODES[:1], longest), None, 1)
    with pytest.raises(UserError, match="exceed its context of 40"):
        receiver.layout(EPISODES[:1], longest + 1)


def test_the_context_is_the_number_of_positions_whatever_its_key_is_called(load):
    receiver = load(tiny_model("whisper", max_target_positions=64))
    assert receiver.max_positions == 64
    with pytest.raises(UserError, match="exceed its context of 64"):
        receiver.layout(EPISODES[:1], 64)


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "gpt_oss", "phi3"])
def test_rows_longer_than_those_tested_at_load_are_tested_first(load, model_type):
    """A window of 150 does not limit what is tested at load, but it limits these rows."""
    receiver = load(tiny_model(model_type, sliding_window=150))
    assert receiver.causal.ways.tested < 150
    texts = [" ; ".join([message] * (9 + i)) for i, message in enumerate(MESSAGES[:3])]
    layout, count = receiver.layout(EPISODES[:3], texts), answer_len(receiver)
    assert layout.ids_BT.shape[1] > 200
    with torch.no_grad():
        own = own_answer_logits(receiver.model, layout, None, count)
        assert error(own, receiver.logits(layout, None, count)) < BOUND
    assert receiver.causal.ways.tested >= layout.ids_BT.shape[1] - 1
    assert receiver.causal.ways.padded == 149
    assert receiver.decode(EPISODES[:3], texts, max_new_tokens=8) == own_answers(receiver, layout, None, 8)


@pytest.mark.parametrize(
    "model_type",
    [
        *("gemma", "gemma3_text", "granite", "llama"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3n_text", "gemma4_text")),
    ],
)
def test_a_texts_own_embeddings_in_its_place_are_the_text(load, model_type):
    """The embedding layer may scale; per-layer inputs are looked up by token."""
    receiver = load(tiny_model(model_type))
    with torch.no_grad():
        entering_ND = receiver.model.get_input_embeddings()(torch.arange(21))
    assert torch.equal(receiver.embedding_ND, entering_ND)
    assert receiver.embedding_norm == pytest.approx(float(entering_ND.norm(dim=1).mean()))
    for episode, message in zip(EPISODES[:4], MESSAGES[:4], strict=True):
        own_1KD = receiver.embedding_ND[torch.tensor([receiver.tokens(message)])]
        text = receiver.generate_and_score([episode], [message], max_new_tokens=8)
        slots = receiver.generate_and_score([episode], [message], own_1KD, max_new_tokens=8)
        assert slots.texts == text.texts
        logits = [decoded_logits(receiver, [episode], [message], given) for given in (None, own_1KD)]
        assert error(list(logits[0]), list(logits[1])) < BOUND


@pytest.mark.parametrize("model_type", ["mpt", "roformer"])
def test_drafts_are_not_used_where_rejected_ones_shift_positions(load, model_type):
    """The logits are off by a few hundredths, which seldom changes a token."""
    assert load(tiny_model(model_type)).causal.ways.drafted == 0


def test_hidden_states_of_messages_are_the_models_own(load):
    receiver = load(tiny_model("mistral", sliding_window=12))
    messages = receiver.encode_messages(MESSAGES)
    for i, message in enumerate(MESSAGES):
        ids_1T = torch.tensor([receiver.tokens(message)])
        with torch.no_grad():
            states = receiver.model(input_ids=ids_1T, use_cache=False, output_hidden_states=True).hidden_states
        torch.testing.assert_close(messages.first_BTD[i, : ids_1T.shape[1]], states[1][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(messages.states_BTD[i, : ids_1T.shape[1]], states[-1][0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in causal_types() if name not in NOT_BUILT])
def test_every_type_is_exact_or_refused(model_type, tmp_path):
    result = measure(model_type, tmp_path / "receiver")
    reason = ALWAYS_REFUSED.get(model_type, "")
    assert (result.verdict, reason in result.reason) == (REFUSED if reason else EXACT, True), result


@pytest.mark.parametrize("changes", [{}, {"n_langs": 2, "use_lang_emb": True}])
def test_a_way_that_a_model_fails_without_a_message_is_not_used(load, changes):
    """XLM has no cache, and asserts that its mask is as long as its input."""
    receiver = load(tiny_model("xlm", **changes))
    assert receiver.causal.ways.drafted == 0
    assert answers_that_differ(receiver, 8) == (0, 12)


# --- refused ---


@pytest.mark.parametrize(("model_type", "width"), [("opt", "word_embed_proj_dim"), ("electra", "embedding_size")])
def test_layers_of_another_width_than_the_embeddings_are_refused(load, model_type, width):
    with pytest.raises(UserError, match="its embeddings are 32 wide, the output of its layers 64; messages are"):
        load(tiny_model(model_type, **{width: 32}))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_a_model_that_is_not_causal_is_refused_by_name(load, model_type):
    model = tiny_model(model_type, is_decoder=False)
    with pytest.raises(
        UserError, match=rf"{type(model).__name__}: is not causal: later tokens change what it"
    ) as e:
        load(model)
    assert "\n" not in str(e.value)


def test_a_model_that_a_row_switches_to_another_mode_is_refused_with_the_fix(load):
    """A new BigBird attends sparsely, and not causally, to long rows; after a short row, never again."""
    with pytest.raises(UserError, match=r"changes its attention_type .*; set attention_type to original_full"):
        load(tiny_model("big_bird", attention_type="block_sparse"))


def test_a_model_whose_logits_are_not_numbers_is_refused(load):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="its logits are not numbers in float32; use another model"):
        load(model)


def test_weights_that_the_model_does_not_read_are_refused(load):
    """A Qwen2 file under a Llama configuration would lose its biases."""
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(UserError, match=r"LlamaForCausalLM does not read 12 weights of its file, such as .*bias"):
        load(tiny_model("qwen2"), settings)


def test_layers_that_the_model_does_not_read_are_refused(load):
    with pytest.raises(UserError, match=r"does not read \d+ weights of its file, such as model\.layers\.3\."):
        load(tiny_model("llama"), {"num_hidden_layers": 3})


@pytest.mark.parametrize("model_type", ["bart", "mamba"])
def test_layers_are_those_that_text_runs_through(load, model_type):
    """The one layer of an encoder does not count."""
    assert load(tiny_model(model_type)).layers == LAYERS


@pytest.mark.parametrize(("model_type", "key"), [("llama", "num_hidden_layers"), ("bart", "decoder_layers")])
def test_states_between_layers_are_not_compared_in_a_receiver_of_one_layer(load, model_type, key):
    receiver = load(tiny_model(model_type, **{key: 1}))
    slots = config(receiver, losses={"slots": {"weight": 1.0}})
    with pytest.raises(UserError, match=r"losses\.slots: compares states after each layer but the last"):
        check_layers(slots, receiver)


# --- old and foreign files ---


def test_a_type_that_transformers_has_is_loaded_without_the_code_of_its_file(load):
    receiver = load(tiny_model("phi3"), {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}})
    assert type(receiver.model) is transformers.Phi3ForCausalLM


def test_an_old_name_of_a_class_is_known(load):
    receiver = load(tiny_model("llama"), {"architectures": ["LLaMAForCausalLM"]})
    assert type(receiver.model) is transformers.LlamaForCausalLM


def test_a_file_that_asks_for_outputs_without_names_is_used(load):
    assert logit_error(load(tiny_model("llama"), {"return_dict": False})) < BOUND
