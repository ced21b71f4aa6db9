"""Text to tokens: opening and end tokens, unknown text, chat templates, vocabularies of other sizes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from own_numbers import EASY, EPISODES, MESSAGES
from tiny_tokenizers import (
    BEGIN,
    CHAT,
    END,
    TURN_END,
    bpe,
    like_llama_2,
    receiver,
    unigram,
    without_exclamation_mark,
)
from tokenizers import normalizers

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.loading import EMBEDDED, load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import success_probability
from m2ray.tasks.episodes import episodes
from m2ray.util.errors import UserError

UNEQUAL = next(episode for episode in EPISODES if "!=" in episode.message)


def row_of(made: Receiver, text: str) -> list[int]:
    """Return the prompt of the first episode as token ids."""
    layout = made.layout(EPISODES[:1], [text])
    return layout.ids_BT[0, : int(layout.answer_B[0])].tolist()


# --- opening tokens ---


def test_a_plain_prompt_begins_with_the_opening_token_once():
    made = receiver(bpe(opening=True))
    row = row_of(made, MESSAGES[0])
    begin = made.tokenizer.convert_tokens_to_ids(BEGIN)
    assert row[0] == begin
    assert row.count(begin) == 1
    slots = made.layout(EPISODES[:1], 3, "after")
    assert slots.ids_BT[0, 0] == begin
    before = made.layout(EPISODES[:1], 3, "before")
    assert before.ids_BT[0, 3] == begin


def test_without_an_opening_token_a_plain_prompt_begins_with_its_text():
    made = receiver(bpe())
    assert made.opening_ids == []
    assert made.tokenizer.decode(row_of(made, MESSAGES[0])).startswith("Puzzles, each answered")


@pytest.mark.parametrize(("template", "count"), [("<s>" + CHAT, 1), (CHAT, 0)], ids=["in the template", "not"])
def test_in_a_chat_the_template_alone_writes_the_opening_token(template, count):
    made = receiver(bpe(template, opening=True), "chat")
    assert row_of(made, MESSAGES[0]).count(made.tokenizer.convert_tokens_to_ids(BEGIN)) == count


def test_a_message_on_its_own_is_read_behind_the_opening_token():
    made = receiver(bpe(opening=True))
    messages = made.encode_messages(MESSAGES[:3])
    for i, message in enumerate(MESSAGES[:3]):
        whole_1T = torch.tensor([made.tokenizer(message)["input_ids"]])
        assert messages.ids_BT[i, : whole_1T.shape[1] - 1].tolist() == whole_1T[0, 1:].tolist()
        with torch.no_grad():
            states = made.model(input_ids=whole_1T, use_cache=False, output_hidden_states=True).hidden_states
        ours_TD = messages.states_BTD[i, : whole_1T.shape[1] - 1]
        torch.testing.assert_close(ours_TD, states[-1][0, 1:], atol=1e-4, rtol=1e-4)


# --- unknown text ---


@pytest.mark.parametrize("special", [{}, {"unk_token": "<unk>"}], ids=["left out", "one token for all"])
def test_text_without_a_token_is_refused_in_message_and_context_and_never_left_out(special):
    made = receiver(without_exclamation_mark(**special))
    fault = r"receiver made: its tokenizer has no token for `!.*; use another receiver, or a task in words"
    for text in (UNEQUAL.message, "x4 != 1"):
        with pytest.raises(UserError, match=fault):
            made.tokens(text)
        with pytest.raises(UserError, match=fault):
            made.encode_messages([text])
    with pytest.raises(UserError, match=r"its vocabulary lacks words of level easy, such as `!=`"):
        made.layout([UNEQUAL], 3)
    with pytest.raises(UserError, match=fault):
        made.prompt_ids(next(episode for episode in episodes(EASY, range(99)) if "!=" in episode.context))


def test_an_unknown_character_of_a_message_is_refused_however_it_reaches_b():
    """The words of the level are known, those of a sender LM or of a file of episodes may not be."""
    mini = load_receiver("mini", device="cpu")
    strange = replace(EPISODES[0], message="x4 ≠ 1")
    with pytest.raises(UserError, match=r"no token for `≠` in `x4 ≠ 1`"):
        mini.layout([strange], [strange.message])
    with pytest.raises(UserError, match=r"no token for `≠` in `x4 ≠ 1`"):
        mini.decode(EPISODES[:1], [strange.message])
    with pytest.raises(UserError, match=r"no token for `≠` in `x4 ≠ 1`"):
        evaluate(mini, [strange], "search", ["P0", "P1"], EvaluationConfig(max_new_tokens=4))


def test_unknown_text_of_a_unigram_is_refused():
    with pytest.raises(UserError, match=r"no token for `.*!"):
        receiver(unigram()).tokens("x4 != 1")


@pytest.mark.parametrize(("old", "new"), [("!", ""), ("!=", "=")], ids=["left out", "replaced"])
def test_a_character_that_a_normalizer_takes_away_is_refused(old, new):
    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(old, new)
    made = receiver(tokenizer)
    with pytest.raises(UserError, match=r"no token for `!` in `x4 != 1; x2 = 0`"):
        made.tokens("x4 != 1; x2 = 0")


@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.BertNormalizer(lowercase=True)])
def test_text_that_a_normalizer_writes_otherwise_is_allowed(normalizer):
    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizer
    receiver(tokenizer).tokens("ÀÉ ﬁne … ½ Straße x\u00a0y 日本語")


# --- tokenizers that put a space before a text ---


def test_no_space_is_put_between_the_parts_of_a_prompt():
    made = receiver(like_llama_2())
    firsts = [made.tokenizer.convert_ids_to_tokens(of("x1 = 0"))[0] for of in (made.first_tokens, made.tokens)]
    assert [first.startswith("▁") for first in firsts] == [True, False]
    for episode in EPISODES:
        before = made.tokenizer.decode(made.prompt_ids(episode)[0])
        row = made.tokenizer.decode(made.layout([episode], [episode.message]).ids_BT[0].tolist())
        assert row.startswith(f"{before}{episode.message}; ")
        assert '\n{"x1": ' in row
    for text in ("x1", " x1", "\nx1", "0", ""):
        assert made.tokenizer.decode(made.first_tokens("A") + made.tokens(text)) == "A" + text


# --- tokens that differ from time to time ---


def test_a_tokenizer_that_was_saved_with_dropout_is_used_without(tmp_path):
    made = receiver(bpe())
    made.model.save_pretrained(tmp_path)
    made.tokenizer.backend_tokenizer.model.dropout = 0.5
    made.tokenizer.save_pretrained(tmp_path)
    loaded = load_receiver(str(tmp_path), device="cpu")
    assert len({tuple(loaded._plain_ids(EPISODES[0].message)) for _ in range(20)}) == 1


def test_a_message_that_is_cut_in_a_word_is_read_as_far_as_it_goes():
    mini = load_receiver("mini", device="cpu")
    for length in range(len(MESSAGES[0])):
        mini.layout(EPISODES[:1], [MESSAGES[0][:length]])
    evaluate(mini, EPISODES, "search", ["text-16"], EvaluationConfig(max_new_tokens=4))


def test_spaces_and_unicode_that_a_tokenizer_knows_are_allowed():
    made = receiver(bpe())
    for text in ("  two  spaces\n\ttab", "naïve 日本語 🙂", ""):
        assert made.tokenizer.decode(made.tokens(text)) == text


# --- end tokens ---


@pytest.fixture
def other_end(tmp_path: Path) -> Receiver:
    """`mini` with its end token in the generation configuration only; the tokenizer names another."""
    folder = Path(shutil.copytree(EMBEDDED / "mini", tmp_path / "other-end"))
    for file, changes in (
        ("tokenizer_config.json", {"eos_token": "<unknown>"}),
        ("generation_config.json", {"eos_token_id": [20, 0]}),
    ):
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(data | changes))
    return load_receiver(str(folder), device="cpu")


def test_the_end_tokens_of_the_generation_configuration_end_an_answer(other_end):
    mini = load_receiver("mini", device="cpu")
    assert {0, 20} <= other_end.end_ids
    assert mini.decode(EPISODES, MESSAGES) == other_end.decode(EPISODES, MESSAGES)
    before, after = (success_probability(r, EPISODES, MESSAGES, None, "message") for r in (mini, other_end))
    assert float(before.mean()) > 0.5
    torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)


def test_a_chats_reference_answer_ends_in_the_token_that_the_template_puts_behind_an_answer():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn_end>\n{% endfor %}assistant:"
    tokenizer = bpe(template)
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    made = receiver(tokenizer, "chat", eos_token_id=[tokenizer.eos_token_id, end])
    assert made.answer_frame(EASY).ids_A[-1] == end
    assert made.end_ids == {tokenizer.eos_token_id, end}


def test_end_tokens_that_the_tokenizer_does_not_have_are_left_out():
    tokenizer = bpe()
    made = receiver(tokenizer, eos_token_id=[199_999, tokenizer.eos_token_id])
    assert made.end_ids == {tokenizer.eos_token_id}
    assert made.answer_frame(EASY).ids_A[-1] == tokenizer.eos_token_id
    assert receiver(tokenizer, eos_token_id=199_999).end_ids == {tokenizer.eos_token_id}


def test_without_padding_token_rows_are_padded_with_an_end_token():
    made = receiver(bpe())
    assert made.tokenizer.pad_token_id is None
    assert made.pad_id == made.tokenizer.eos_token_id
    assert len(made.decode(EPISODES, MESSAGES, max_new_tokens=4)) == len(EPISODES)


def test_a_tokenizer_without_end_token_uses_that_of_the_generation_configuration_or_is_refused():
    tokenizer = bpe(eos_token=None)
    end = tokenizer.convert_tokens_to_ids(END)
    made = receiver(tokenizer, eos_token_id=end)
    assert (made.end_ids, made.pad_id, int(made.answer_frame(EASY).ids_A[-1])) == ({end}, end, end)
    with pytest.raises(UserError, match=r"neither its tokenizer nor its generation_config\.json names an end"):
        receiver(tokenizer)


# --- chat templates ---


@pytest.mark.parametrize(
    "switch",
    [
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        "{% if thinking %}<think>{% else %}</think>{% endif %}",
    ],
    ids=["Qwen3", "DeepSeek-V3.1"],
)
def test_thinking_is_switched_off(switch):
    made = receiver(bpe(CHAT + switch), "chat")
    prompt = made.tokenizer.decode(row_of(made, MESSAGES[0]))
    assert prompt.rstrip().endswith("</think>")


# By model: what its template writes before an answer, and where the model is to go on; and the end of the prompt.
OPENED = {
    "Qwen3-Thinking, QwQ": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n\n</think>\n\n"),
    "DeepSeek-R1": ("", "<think>\n", "<think>\n\n</think>\n\n"),
    "GLM-4.1V-Thinking": ("", "<think>", "<think></think>"),
    "EXAONE Deep": ("", "<thought>\n", "<thought>\n\n</thought>\n\n"),
    "Magistral": ("", "[THINK]", "[THINK][/THINK]"),
    "gpt-oss": ("<|channel|>final<|message|>", "", "<|channel|>final<|message|>"),
    "no thought": ("", "", ""),
}


def thinks(before_answer: str, opening: str) -> str:
    """Return a template that opens a thought whatever it is told."""
    return (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}" + before_answer + "{% endif %}"
        "{{ m.content }}<turn_end>\n{% endfor %}{% if add_generation_prompt %}assistant: "
        + opening
        + "{% endif %}"
    )


@pytest.mark.parametrize("model", OPENED)
def test_the_answer_comes_behind_the_thought_that_a_template_opens(model):
    before_answer, opening, expected = OPENED[model]
    made = receiver(bpe(thinks(before_answer, opening)), "chat")
    prompt = made.tokenizer.decode(row_of(made, MESSAGES[0]))
    assert prompt.endswith(f"<turn_end>\nassistant: {expected}")


@pytest.mark.parametrize("opening", ["<|begin_of_thought|>\n\n", "<|channel|>analysis<|message|>"])
def test_a_thought_with_an_unknown_end_is_refused(opening):
    made = receiver(bpe(thinks("", opening)), "chat")
    with pytest.raises(UserError, match=r"ends in a thought.*with no known end; put m2ray\.json"):
        row_of(made, MESSAGES[0])


def turn(content: str) -> str:
    return "{% for m in messages %}{{ m.role }}: " + content + "{{ '\n' }}{% endfor %}assistant:"


IN_PARTS = turn("{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}")
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)


def test_a_template_that_takes_content_in_parts_gets_parts():
    """As SmolVLM's and Idefics' do."""
    whole, parts = (receiver(bpe(template), "chat") for template in (turn("{{ m.content }}"), IN_PARTS))
    prompts = [made.tokenizer.decode(row_of(made, MESSAGES[0])) for made in (whole, parts)]
    assert prompts[0] == prompts[1]


def test_a_template_without_system_turn_gets_the_system_text_in_the_users():
    made = receiver(bpe(NO_SYSTEM), "chat")
    prompt = made.tokenizer.decode(row_of(made, MESSAGES[0]))
    assert prompt.startswith(f"user: {made.style.system}\n\nFind whole numbers")
    assert prompt.count(MESSAGES[0]) == 1


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (turn("{{ m.content | tojson }}"), "it does not write the user's text once"),
        (turn("{{ m.content }}{{ m.content }}"), "it does not write the user's text once"),
        (turn("{{ m.content + 1 }}"), "can only concatenate str"),
        (turn("{{ raise_exception('never') }}"), "never"),
    ],
    ids=["tojson", "twice", "TypeError", "always fails"],
)
def test_a_template_that_fails_or_changes_the_text_is_refused_in_one_line(template, cause):
    made = receiver(bpe(template), "chat")
    with pytest.raises(
        UserError, match=rf"its chat template fails \(.*{cause}.*put m2ray\.json with .*plain"
    ) as e:
        made.prompt_ids(EPISODES[0])
    assert "\n" not in str(e.value)


# --- vocabularies ---


def test_a_model_may_have_more_embeddings_than_the_tokenizer_has_tokens():
    """Many are padded to a multiple of 64 or 128."""
    tokenizer = bpe()
    made = receiver(tokenizer, rows=len(tokenizer) + 37)
    assert made.embedding_ND.shape[0] == len(tokenizer) + 37
    assert len(made.decode(EPISODES, MESSAGES, max_new_tokens=8)) == len(EPISODES)


def test_a_model_with_fewer_embeddings_than_tokens_is_refused():
    tokenizer = bpe()
    with pytest.raises(UserError, match=rf"its tokenizer knows {len(tokenizer)} tokens, its model 100"):
        receiver(tokenizer, rows=100)


def test_added_tokens_count_as_tokens():
    tokenizer = bpe()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    assert isinstance(receiver(tokenizer), Receiver)
    with pytest.raises(UserError, match="give it the tokenizer that the model was trained with"):
        receiver(tokenizer, rows=rows)


def test_the_tokenizers_of_transformers_are_fast(tiny):
    assert isinstance(tiny.tokenizer, transformers.PreTrainedTokenizerFast)
