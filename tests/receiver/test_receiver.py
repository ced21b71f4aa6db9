"""The receiver: what B sees, injection, batches, decoding. On `mini` and on a tiny random Qwen2 with a BPE."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_numbers import decoded_logits
from tokenizers import pre_tokenizers

from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import reference_nll
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import draw_episode, episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

EASY = level("easy")
EPISODES = episodes(EASY, range(64), "search")
MESSAGES = [episode.message for episode in EPISODES]


@pytest.fixture(scope="session")
def mini() -> Receiver:
    return load_receiver("mini", device="cpu")


@pytest.fixture(scope="session")
def gpt2(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Receiver:
    """Learned positions: unlike with rotary ones, a shift of all position ids changes everything."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.2
    )
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return load_receiver(str(folder), device="cpu")


@pytest.fixture(params=["mini", "tiny", "gpt2"])
def receiver(request: pytest.FixtureRequest) -> Receiver:
    return request.getfixturevalue(request.param)


def drawn_prefix(receiver: Receiver, rows: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, k, receiver.width, generator=generator) * receiver.embedding_norm / receiver.width**0.5
    )


def answer_len(receiver: Receiver) -> int:
    return len(receiver.answer_frame(EASY).ids_A)


# --- what B sees ---


def test_a_row_is_before_slots_after_answer_and_padding(receiver):
    batch, k = EPISODES[:8], 5
    for place in ("message", "before", "after"):
        layout = receiver.layout(batch, k, place)
        for i, episode in enumerate(batch):
            before, after = receiver.prompt_ids(episode)
            answer = receiver.tokens(write_answer(EASY, episode.solution, receiver.style.answer))
            row, slots, start = layout.ids_BT[i].tolist(), layout.slots_BK[i].tolist(), int(layout.answer_B[i])
            first = {"message": len(before), "before": 0, "after": len(before) + len(after)}[place]
            assert slots == list(range(first, first + k))
            assert row[:first] + row[first + k : start] == before + after
            assert row[start : start + len(answer)] == answer
            assert row[start + len(answer)] in receiver.end_ids
            assert set(row[start + len(answer) + 1 :]) <= {receiver.pad_id}


def test_a_text_stands_where_the_slots_would_be(receiver):
    texts, open_slots = receiver.layout(EPISODES, MESSAGES), [receiver.tokens(message) for message in MESSAGES]
    for i, ids in enumerate(open_slots):
        row = receiver.layout([EPISODES[i]], len(ids))
        first = int(row.slots_BK[0, 0])
        same = row.ids_BT[0].clone()
        same[first : first + len(ids)] = torch.tensor(ids)
        assert torch.equal(texts.ids_BT[i, : len(same)], same)
        assert texts.answer_B[i] == row.answer_B[0]


def test_no_slots_and_an_empty_text_are_the_same_p0(receiver):
    bare, empty = receiver.layout(EPISODES, 0), receiver.layout(EPISODES, [""] * len(EPISODES))
    assert torch.equal(bare.ids_BT, empty.ids_BT)
    assert bare.slots_BK.shape == (64, 0)


def test_the_compact_prompt_is_the_one_that_mini_was_trained_on(mini):
    before, after = mini.prompt_ids(EPISODES[0])
    words = f"A {EPISODES[0].message} B {EPISODES[0].context} ?".replace(";", " ;").split()
    assert mini.tokenizer.convert_ids_to_tokens(before + mini.tokens(MESSAGES[0]) + after) == words


def test_the_chat_prompt_is_the_tokenizers_own_template_around_the_task(tiny):
    before, after = tiny.prompt_ids(EPISODES[0])
    turns = [
        {"role": "system", "content": tiny.style.system},
        {
            "role": "user",
            "content": "Find whole numbers for x1, x2, x3, x4, none above 2, that satisfy every constraint. "
            "Answer with one JSON object on one line and nothing else, with the keys x1, x2, x3, x4.\n"
            f"Constraints: {MESSAGES[0]}; {EPISODES[0].context}",
        },
    ]
    text = tiny.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tiny.tokenizer.decode(before) + MESSAGES[0] + tiny.tokenizer.decode(after) == text


def test_a_chat_template_without_system_turns_is_refused_with_a_fix(tiny):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tiny.name)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"System role not supported.*plain"):
        Receiver(tiny.model, tokenizer, "chat", "strict", {}).prompt_ids(EPISODES[0])


@given(text=st.text(st.characters(codec="utf-8"), max_size=60), other=st.integers(0, 1000))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_of_the_message_reaches_b_but_through_the_slots(receiver, text, other):
    """Bit for bit, with other messages and other constraints of A and the same prefix."""
    prefix_BKD = drawn_prefix(receiver, 4, 6)
    changed = [replace(e, message=text, sender=draw_episode(EASY, other, "train").sender) for e in EPISODES[:4]]
    layouts = [receiver.layout(batch, 6) for batch in (EPISODES[:4], changed)]
    assert torch.equal(layouts[0].ids_BT, layouts[1].ids_BT)
    logits = [receiver.logits(layout, prefix_BKD, answer_len(receiver)) for layout in layouts]
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("place", ["message", "before", "after"])
def test_every_slot_of_the_prefix_reaches_the_logits(receiver, place):
    layout = receiver.layout(EPISODES[:4], 6, place)
    prefix_BKD = drawn_prefix(receiver, 4, 6)
    held = receiver.logits(layout, prefix_BKD, answer_len(receiver))
    for k in range(6):
        moved_BKD = prefix_BKD.clone()
        moved_BKD[:, k] = drawn_prefix(receiver, 4, 6, seed=1)[:, k]
        assert (receiver.logits(layout, moved_BKD, answer_len(receiver)) != held).any(dim=2).all()


def test_gradients_reach_the_prefix_and_nothing_of_the_receiver(receiver):
    prefix_BKD = drawn_prefix(receiver, 4, 6).requires_grad_()
    weights = {name: weight.clone() for name, weight in receiver.model.state_dict().items()}
    logits_BAW = receiver.logits(receiver.layout(EPISODES[:4], 6), prefix_BKD, answer_len(receiver))
    logits_BAW.log_softmax(dim=2)[..., 0].sum().backward()
    assert (prefix_BKD.grad.norm(dim=2) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in receiver.model.parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in receiver.model.state_dict().items())


# --- answers ---


@given(name=st.sampled_from(["easy", "lookup", "lookup-2x3"]), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_are_what_the_tokenizer_makes_of_the_written_answer(receiver, name, data):
    size = level(name)
    value = st.integers(0, size.domain - 1)
    values = data.draw(st.lists(value, min_size=size.variables, max_size=size.variables))
    expected = receiver.tokens(write_answer(size, values, receiver.style.answer))
    row = receiver.answer_ids(size, torch.tensor([values]))[0].tolist()
    assert row == [*expected, receiver.tokenizer.eos_token_id]


def test_a_tokenizer_that_splits_numbers_writes_values_up_to_nine(tiny):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tiny.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    split = Receiver(tiny.model, tokenizer, "chat", "split", {})
    frame = split.answer_frame(level("lookup-6x10"))
    assert tokenizer.convert_ids_to_tokens(frame.values_VN[3].tolist()) == list("0123456789")
    assert split.answer_ids(level("lookup-6x10"), torch.tensor([[9, 0, 3, 7, 1, 8]]))[0].tolist()[
        :-1
    ] == split.tokens('{"x1": 9, "x2": 0, "x3": 3, "x4": 7, "x5": 1, "x6": 8}')
    with pytest.raises(UserError, match="lookup-6x11 in several tokens; use a domain of at most 10"):
        split.answer_frame(level("lookup-6x11"))


def test_a_level_whose_words_a_receiver_lacks_is_refused(mini):
    for name in ("medium", "hard", "lookup-6x3", "lookup-4x10"):
        with pytest.raises(UserError, match=f"mini: its vocabulary lacks words of level {name}"):
            mini.layout(episodes(level(name), range(2)), 4)


def test_targets_are_the_answers_that_the_halves_allow(mini):
    batch = episodes(level("lookup"), range(4))
    known_BVN, alone_BVN = mini.targets(batch), mini.targets(batch, with_message=False)
    assert torch.equal(known_BVN.argmax(dim=2), torch.tensor([e.solution for e in batch]))
    assert torch.equal(known_BVN.max(dim=2).values, torch.ones(4, 4))
    for i, episode in enumerate(batch):
        known = {c.variable for c in episode.receiver}
        assert [v in known for v in range(4)] == (alone_BVN[i].max(dim=1).values == 1).tolist()


# --- the context ---


def test_a_prefix_that_fills_the_context_fits_and_one_more_is_refused(receiver):
    room = receiver.max_positions - receiver.layout(EPISODES[:2], 0).ids_BT.shape[1]
    assert receiver.layout(EPISODES[:2], room).ids_BT.shape[1] == receiver.max_positions
    with pytest.raises(UserError, match=rf"exceed its context of {receiver.max_positions}; use a smaller k$"):
        receiver.layout(EPISODES[:2], room + 1)


def test_decoding_ends_where_the_context_does(gpt2):
    batch = EPISODES[:2]
    room = gpt2.max_positions - gpt2.layout(batch, 0).ids_BT.shape[1]
    texts = gpt2.decode(batch, room, drawn_prefix(gpt2, 2, room), max_new_tokens=500)
    assert len(texts) == 2
    with pytest.raises(UserError, match="exceed its context"):
        gpt2.generate([[0] * gpt2.max_positions], [0])


# --- identity and batches ---


def test_identity_is_p1_answer_for_answer_and_bit_for_bit(receiver):
    for episode in EPISODES[:12]:
        ids = receiver.tokens(episode.message)
        own_BKD = receiver.embedding_ND[torch.tensor(ids)][None]
        text, slots = receiver.layout([episode], [episode.message]), receiver.layout([episode], len(ids))
        assert torch.equal(
            receiver.logits(text, None, answer_len(receiver)),
            receiver.logits(slots, own_BKD, answer_len(receiver)),
        )
        limit = {"max_new_tokens": 12}
        assert receiver.decode([episode], [episode.message], **limit) == receiver.decode(
            [episode], len(ids), own_BKD, **limit
        )


def test_a_batch_of_64_is_64_batches_of_one(receiver):
    limit = {"max_new_tokens": 12}
    together = receiver.decode(EPISODES, MESSAGES, **limit)
    assert len(set(together)) > 5
    assert together == [receiver.decode([e], [e.message], **limit)[0] for e in EPISODES]
    logits_BAW = receiver.logits(receiver.layout(EPISODES, MESSAGES), None, answer_len(receiver))
    for i, episode in enumerate(EPISODES):
        alone = receiver.logits(receiver.layout([episode], [episode.message]), None, answer_len(receiver))[0]
        torch.testing.assert_close(logits_BAW[i], alone, atol=1e-4, rtol=1e-4)


def test_a_batch_of_prefixes_decodes_as_its_rows_do(receiver):
    prefix_BKD = drawn_prefix(receiver, 16, 6)
    for place in ("message", "before", "after"):
        together = receiver.decode(EPISODES[:16], 6, prefix_BKD, place, max_new_tokens=12)
        rows = [
            receiver.decode([EPISODES[i]], 6, prefix_BKD[i : i + 1], place, max_new_tokens=12) for i in range(16)
        ]
        assert together == [row[0] for row in rows]


def test_greedy_decoding_in_a_padded_batch_is_transformers_own_generate_row_by_row(receiver):
    """An independent decoder: token ids instead of embeddings, one row, no padding."""
    texts = ["" if i % 3 == 0 else " ; ".join([message] * (1 + i % 2)) for i, message in enumerate(MESSAGES[:12])]
    layout = receiver.layout(EPISODES[:12], texts)
    assert len(set(layout.answer_B.tolist())) > 3
    decoded = receiver.decode(EPISODES[:12], texts, max_new_tokens=16)
    for i, text in enumerate(decoded):
        ids_1T = layout.ids_BT[i : i + 1, : layout.answer_B[i]]
        row = receiver.model.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=sorted(receiver.end_ids),
            pad_token_id=receiver.tokenizer.eos_token_id,
        )[0, ids_1T.shape[1] :]
        assert text == receiver.tokenizer.decode(row, skip_special_tokens=True)


def test_logits_are_the_models_own_on_the_token_ids(receiver):
    layout = receiver.layout(EPISODES[:6], MESSAGES[:6])
    logits_BAW = receiver.logits(layout, None, answer_len(receiver))
    for i in range(6):
        start = int(layout.answer_B[i])
        whole = receiver.model(input_ids=layout.ids_BT[i : i + 1, : start + answer_len(receiver)]).logits[0]
        torch.testing.assert_close(logits_BAW[i], whole[start - 1 : -1], atol=1e-4, rtol=1e-4)


def test_the_head_reads_rows_that_lie_side_by_side_in_memory(receiver):
    """The product with rows far apart, one position of a batch, is over 100 times slower in bfloat16 on a CPU."""
    contiguous = []
    head = receiver.causal.own.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: contiguous.append(given[0].is_contiguous()))
    try:
        with torch.no_grad():
            ids_BT = torch.ones(4, 10, dtype=torch.long)
            states_BTD = receiver.causal.run(torch.randn(4, 10, receiver.width), ids_BT).last_BTD
            contiguous.clear()  # where the layers cannot be run alone, the head has run as well
            logits_BW, copied_BW = (receiver.causal.head(s) for s in (states_BTD[:, 3], states_BTD[:, 3].clone()))
    finally:
        hook.remove()
    assert contiguous == [True, True]
    assert torch.equal(logits_BW, copied_BW)


def test_encoding_a_message_does_not_depend_on_its_batch(receiver):
    together = receiver.encode_messages(MESSAGES)
    assert together.mask_BT.sum(dim=1).tolist() == [len(receiver.tokens(message)) for message in MESSAGES]
    for i in (0, 7, 33):
        alone = receiver.encode_messages([MESSAGES[i]])
        length = alone.ids_BT.shape[1]
        assert torch.equal(together.ids_BT[i, :length], alone.ids_BT[0])
        torch.testing.assert_close(together.states_BTD[i, :length], alone.states_BTD[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.embeds_BTD[0], receiver.embedding_ND[alone.ids_BT[0]])


def test_one_forward_pass_gives_the_answer_and_the_likelihood_of_the_reference(receiver):
    """The same as two separate passes: scoring the reference does not affect the answer."""
    texts, nll_B, _ = receiver.generate_and_score(EPISODES[:16], MESSAGES[:16], max_new_tokens=12)
    logits_BVW = decoded_logits(receiver, EPISODES[:16], MESSAGES[:16], max_new_tokens=12)
    layout = receiver.layout(EPISODES[:16], MESSAGES[:16])
    expected_BAW = receiver.logits(layout, None, answer_len(receiver))
    expected_BVW = expected_BAW[:, receiver.answer_frame(EASY).positions_V]
    torch.testing.assert_close(logits_BVW, expected_BVW, atol=1e-4, rtol=1e-4)
    references = receiver.references(EPISODES[:16])
    torch.testing.assert_close(nll_B, references.value_mean(reference_nll(expected_BAW, references)))
    prompts = [ids[:length] for ids, length in zip(layout.ids_BT.tolist(), layout.answer_B.tolist(), strict=True)]
    assert texts == receiver.generate(prompts, range(16), max_new_tokens=12)


def test_an_answer_is_truncated_where_its_limit_came_before_its_end(receiver):
    for limit in (1, 3, 12):
        decoded = receiver.generate_and_score(EPISODES[:16], MESSAGES[:16], max_new_tokens=limit)
        longer = receiver.generate_and_score(EPISODES[:16], MESSAGES[:16], max_new_tokens=limit + 1)
        assert len(decoded.truncated) == 16
        for text, truncated, whole, still in zip(
            decoded.texts, decoded.truncated, longer.texts, longer.truncated, strict=True
        ):
            assert truncated >= still, "an answer that ends within the limit ends within a higher one"
            assert truncated or text == whole


def test_states_after_the_message_are_aligned_whatever_its_place_holds(receiver):
    count = answer_len(receiver)
    outputs = [
        receiver.score_answers(receiver.layout(EPISODES[:8], k), drawn_prefix(receiver, 8, k), count, True)
        for k in (3, 9)
    ]
    layers = receiver.model.config.num_hidden_layers
    for row, episode in enumerate(EPISODES[:8]):
        behind = len(receiver.prompt_ids(episode)[1]) + count
        assert all(int(side.mask_BS[row].sum()) == behind for side in outputs)
    assert torch.equal(outputs[0].mask_BS, outputs[1].mask_BS)
    assert (
        outputs[0].states_BLSD.shape
        == outputs[1].states_BLSD.shape
        == (8, layers, *outputs[0].mask_BS.shape[1:], receiver.width)
    )
    for side in outputs:  # after the last layer, all answer tokens but the last predict all but the first
        last_BAD = side.states_BLSD[:, -1, -count:-1]
        logits_BAW = receiver.model.get_output_embeddings()(last_BAD)
        torch.testing.assert_close(logits_BAW, side.logits_BAW[:, 1:], atol=1e-4, rtol=1e-4)


def test_caches_of_bfloat16_are_not_used_in_float32(receiver):
    prefix_BKD = drawn_prefix(receiver, 4, 3)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        layout = receiver.layout(EPISODES[:4], 3, "after")
        return receiver.encode_messages(MESSAGES[:4]).states_BTD, receiver.logits(layout, prefix_BKD, 5)

    receiver.clear_caches()
    plain = both()
    receiver.clear_caches()
    with torch.autocast("cpu", torch.bfloat16):
        rough = both()
    again = both()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert not torch.equal(plain[1], rough[1].float())


def test_the_caller_may_change_the_tokens_it_gets(receiver):
    ids = receiver.tokens(MESSAGES[0])
    ids.append(0)
    assert receiver.tokens(MESSAGES[0]) == ids[:-1]


def test_heads_that_share_keys_and_values_equal_heads_with_copies(mini, monkeypatch):
    prefix_BKD = drawn_prefix(mini, 8, 4).requires_grad_()

    def run() -> tuple[list[str], torch.Tensor, torch.Tensor]:
        mini.clear_caches()
        logits_BAW = mini.logits(mini.layout(EPISODES[:8], 4, "after"), prefix_BKD, 5)
        (slope_BKD,) = torch.autograd.grad(logits_BAW.square().sum(), prefix_BKD)
        return mini.decode(EPISODES[:8], 4, prefix_BKD), logits_BAW, slope_BKD

    shared = run()
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "0")
    copied = run()
    assert shared[0] == copied[0]
    torch.testing.assert_close(shared[1], copied[1])
    torch.testing.assert_close(shared[2], copied[2])


def test_a_row_without_kept_tokens_joins_rows_whose_tokens_are_kept(tiny):
    """As in a pack: one codec's slots stand before the prompt, another's behind it."""
    tiny.clear_caches()
    tokens, cache = list(range(20)), tiny.causal.cache_argument
    alone_1HPE = tiny.prompt_cache.forward_arguments([tokens], 4)[cache].layers[0].keys
    arguments = tiny.prompt_cache.forward_arguments([tokens, []], 4)
    assert torch.equal(arguments[cache].layers[0].keys[:1], alone_1HPE)
    assert arguments["attention_mask"].sum(dim=1).tolist() == [24, 4]
