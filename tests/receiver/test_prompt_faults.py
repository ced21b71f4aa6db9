"""Faults of templates, tokenizers and configurations that a newcomer found."""

import json
import shutil

import pytest
from tiny_models import save_receiver, tiny_model

from m2ray.receiver.loading import EMBEDDED, load_receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def mini_copy(tmp_path):
    return shutil.copytree(EMBEDDED / "mini", tmp_path / "copy")


def test_a_template_that_trims_its_turns_is_used(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "trims")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("message.content", "message.content | trim"))
    trims, plain = load_receiver(str(folder)), load_receiver(str(tiny_folder))
    episode = draw_episode(EASY, 0)
    assert trims.prompt_ids(episode) == plain.prompt_ids(episode)


def test_an_unknown_word_is_refused_where_only_the_tokenizers_own_file_names_its_token(mini_copy):
    config = json.loads((mini_copy / "tokenizer_config.json").read_text())
    config.pop("unk_token")
    (mini_copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no token for `banana`"):
        load_receiver(str(mini_copy)).tokens("x1 = 0 ; banana")


@pytest.mark.parametrize("ends", [50256, [0, 50256], -1])
def test_end_tokens_beyond_the_vocabulary_end_no_answer(mini_copy, ends):
    edit(mini_copy / "generation_config.json", eos_token_id=ends)
    receiver = load_receiver(str(mini_copy))
    assert receiver.end_ids == {0}
    assert receiver.answer_frame(EASY).ids_A[-1] == 0


def test_a_style_that_is_a_list_and_a_configuration_that_cannot_be_built_are_one_line(mini_copy):
    (mini_copy / "m2ray.json").write_text('{"style": ["compact"]}')
    with pytest.raises(UserError, match=r"style: .* does not exist"):
        load_receiver(str(mini_copy))
    edit(mini_copy / "config.json", num_attention_heads=0)
    with pytest.raises(UserError, match="not loadable as a causal LM"):
        load_receiver(str(mini_copy), device="cpu")


def test_a_bidirectional_model_is_refused_in_16_bits_too(tmp_path):
    save_receiver(tiny_model("bert", is_decoder=False), tmp_path)
    for dtype in ("bfloat16", "float32"):
        with pytest.raises(UserError, match="is not causal"):
            load_receiver(str(tmp_path), device="cpu", dtype=dtype)
