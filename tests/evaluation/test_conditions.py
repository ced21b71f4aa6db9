"""Ablation conditions: each puts into the slots what its name says, for the right episode, in any batch."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import made_codecs
import numpy as np
import pytest
import tiny_trainings
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from m2ray.codec.codec import Codec
from m2ray.codec.untrained import untrained_version
from m2ray.evaluation.conditions import CONDITIONS, SHIFT, derangement, get_condition
from m2ray.evaluation.controls import rotation
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, episodes, write_facts
from m2ray.tasks.level import Level
from m2ray.tasks.registry import level
from m2ray.training.trainer import Trainer
from m2ray.util.errors import UserError

RESULTS = Path(__file__).parents[2] / "results"
EASY = level("easy")
EPISODES = episodes(EASY, range(1000, 1024), "search")
DERIVED = [*CONDITIONS, "facts-2", "text-7", "tokens-2", "noise-0.5", "drop-3", "scale_gate=0.5"]


def make_codec(receiver: Receiver, seed: int = 0, **settings: object) -> Codec:
    """An untrained codec that writes another prefix for every message."""
    return made_codecs.make_codec(receiver, seed, **{"encoder": "resampler", "k": 3, **settings})


def make_inputs(
    receiver: Receiver, batch: Sequence[Episode] = EPISODES, batch_size: int = 9, seed: int = 0, **settings
) -> ConditionInputs:
    constant = make_codec(receiver, 1, **{**settings, "encoder": "constant"})
    return ConditionInputs(receiver, batch, make_codec(receiver, seed, **settings), constant, batch_size)


def inject(name: str, inputs: ConditionInputs) -> Injection:
    return get_condition(name).inject(inputs)


def stacked(injection: Injection) -> torch.Tensor:
    return torch.stack(list(injection.prefixes))


@pytest.fixture(scope="module")
def inputs(tiny) -> ConditionInputs:
    return make_inputs(tiny)


@pytest.fixture(scope="module")
def prefixes(inputs) -> torch.Tensor:
    """The right prefixes, message by message."""
    with torch.no_grad():
        return torch.cat(
            [inputs.codec(inputs.receiver.encode_messages([e.message])).prefix_BKD for e in inputs.episodes]
        )


class TestLatentConditions:
    def test_normal_is_the_prefix_of_each_episodes_own_message(self, inputs, prefixes):
        torch.testing.assert_close(stacked(inject("normal", inputs)), prefixes, atol=1e-5, rtol=1e-4)
        assert len(prefixes.flatten(1).unique(dim=0)) == len({e.message for e in EPISODES})

    @pytest.mark.parametrize("calibration", ["norm", "layernorm"])
    def test_null_is_true_zeros_where_decode_of_zero_is_not(self, tiny, calibration):
        inputs = make_inputs(tiny, calibration=calibration)
        if calibration == "layernorm":
            torch.nn.init.ones_(inputs.codec.norm.bias)
            assert inputs.codec.decode(torch.zeros(1, 3, tiny.width)).prefix_BKD.any()
        null = stacked(inject("null", inputs))
        assert null.shape == (len(EPISODES), 3, tiny.width)
        assert not null.any()

    def test_random_decodes_standard_normal_latents(self, inputs, monkeypatch):
        seen = []
        decode = inputs.codec.decode
        monkeypatch.setattr(
            inputs.codec, "decode", lambda latent, *a, **k: seen.append(latent) or decode(latent, *a, **k)
        )
        drawn = stacked(inject("random", inputs))
        assert stats.kstest(seen[0].flatten(), "norm").pvalue > 1e-3
        torch.testing.assert_close(drawn, decode(seen[0]).prefix_BKD)

    def test_random_depends_on_the_episode_alone(self, tiny, inputs):
        """The same in any batch and for any message, different for every episode."""
        together = stacked(inject("random", inputs))
        some = make_inputs(tiny, [replace(EPISODES[i], message=EPISODES[0].message) for i in (5, 2, 19)])
        torch.testing.assert_close(stacked(inject("random", some)), together[[5, 2, 19]])
        assert len(together.flatten(1).unique(dim=0)) == len(EPISODES)

    def test_shuffle_is_the_prefix_of_the_partners_message(self, inputs, prefixes):
        injection = inject("shuffle", inputs)
        partners = [prefixes[i] for i in injection.partners]
        torch.testing.assert_close(stacked(injection), torch.stack(partners), atol=1e-5, rtol=1e-4)
        assert all(EPISODES[i].content != e.content for i, e in zip(injection.partners, EPISODES, strict=True))

    def test_mean_is_one_prefix_for_all(self, inputs, prefixes):
        expected = prefixes.numpy().mean(0)
        for prefix in stacked(inject("mean", inputs)):
            np.testing.assert_allclose(prefix, expected, atol=1e-5)

    def test_matched_has_the_mean_and_covariance_of_the_prefixes(self, tiny):
        """Over many episodes: mean and covariance within sampling error, Gaussian along every strong direction."""
        inputs = make_inputs(tiny, episodes(EASY, range(1000, 1600), "search"), batch_size=600, k=2)
        real, drawn = (
            stacked(inject("normal", inputs)).flatten(1),
            stacked(inject("matched", inputs)).flatten(1),
        )
        real, drawn = real.double().numpy(), drawn.double().numpy()
        cov_real, cov_drawn = np.cov(real.T), np.cov(drawn.T)
        z = (drawn.mean(0) - real.mean(0)) / np.sqrt(np.diag(cov_real) / len(drawn))
        assert np.abs(z).max() < 4.5
        # E||S - C||^2 / ||C||^2 = (1 + tr(C)^2 / tr(C^2)) / n for a sample covariance of n Gaussian rows
        expected = (1 + np.trace(cov_real) ** 2 / np.trace(cov_real @ cov_real)) / len(drawn)
        error = np.linalg.norm(cov_drawn - cov_real) ** 2 / np.linalg.norm(cov_real) ** 2
        assert error < 3 * expected
        strong = np.linalg.eigh(cov_real)[1][:, -5:]
        for direction in strong.T:
            scores = (drawn - real.mean(0)) @ direction / np.sqrt(direction @ cov_real @ direction)
            assert stats.kstest(scores, "norm").pvalue > 1e-4

    def test_matched_does_not_depend_on_the_episodes_own_message(self, tiny, inputs):
        drawn = stacked(inject("matched", inputs)).flatten(1)
        assert len(drawn.unique(dim=0)) == len(EPISODES)
        alone = make_inputs(tiny, [EPISODES[0]] * 8)  # one message: no covariance, its mean for all
        torch.testing.assert_close(stacked(inject("matched", alone)), stacked(inject("mean", alone)))

    def test_constant_is_the_content_free_codecs_own_prefix(self, inputs):
        constant = stacked(inject("constant", inputs))
        expected = inputs.constant.calibrate(inputs.constant.encoder.vectors_KD).detach()
        torch.testing.assert_close(constant, expected.expand_as(constant))

    @pytest.mark.parametrize("calibration", ["norm", "layernorm"])
    @pytest.mark.parametrize("bottleneck", ["none", "vq"])
    def test_scale_gate_scales_the_right_prefix_and_zero_closes_it(self, tiny, calibration, bottleneck):
        inputs = make_inputs(tiny, calibration=calibration, bottleneck=bottleneck, codebook=8, scale_gate=0.5)
        normal = stacked(inject("normal", inputs))
        torch.testing.assert_close(stacked(inject("scale_gate=0.5", inputs)), normal)
        torch.testing.assert_close(stacked(inject("scale_gate=1.5", inputs)), 3 * normal)
        assert not stacked(inject("scale_gate=0", inputs)).any()
        norms = stacked(inject("scale_gate=0.25", inputs)).norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, 0.25 * tiny.embedding_norm), rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("place", ["message", "before", "after"])
    def test_all_of_them_take_the_codecs_slots(self, tiny, place):
        inputs = make_inputs(tiny, EPISODES[:6], place=place, k=5)
        for name in [n for n in DERIVED if get_condition(n).depends_on != "receiver"]:
            injection = inject(name, inputs)
            assert injection.place == place
            assert injection.texts is None
            if name == "tokens-2":
                assert stacked(injection).shape == (6, 2, tiny.width)
                continue
            assert stacked(injection).shape == (6, 5, tiny.width)
            assert not stacked(injection).requires_grad


class TestSharperConditions:
    """The right message through the codec, with one thing changed."""

    def test_init_is_the_prefix_with_which_a_training_begins(self, tiny, tmp_path):
        trial = tiny_trainings.config(tiny)
        trained = Codec(trial.codec, tiny)  # other weights
        trained.record |= {"trial": trial.model_dump(), "seed": 3}
        inputs = ConditionInputs(tiny, EPISODES, trained, None, 9)
        trainer = Trainer(trial, 3, tiny, tmp_path, lambda metrics, at: None, {"config": "c"})
        trainer.close()
        for restart in (0, 1):
            trainer._begin(restart, None)
            fresh = ConditionInputs(tiny, EPISODES, trainer.loss_module.codec.eval(), None, 9)
            trained.record["metrics"] = {"restart": restart}
            state = torch.random.get_rng_state()
            init = stacked(inject("init", inputs))
            torch.testing.assert_close(init, stacked(inject("normal", fresh)), atol=0, rtol=0)
            assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn from the global generator"

    @pytest.mark.parametrize("name", ["recipe-mini/best-k8", "arithmetic/best-k8"])
    def test_published_codecs_can_be_untrained(self, name):
        codec = Codec.from_pretrained(RESULTS / name)
        untrained = untrained_version(codec, load_receiver(codec.record["receiver"]))
        assert untrained.config == codec.config
        assert untrained.digest != codec.digest

    @pytest.mark.parametrize("lacking", ["trial", "seed"])
    def test_init_needs_the_record_of_a_training(self, tiny, lacking):
        inputs = make_inputs(tiny)
        del inputs.codec.record[lacking]
        with pytest.raises(UserError, match=r"condition init: .* lacks trial or seed, .*; load a checkpoint of"):
            inject("init", inputs)

    def test_near_is_the_prefix_of_a_message_with_one_fact_changed(self, inputs):
        injection = inject("near", inputs)
        for episode, prefix, facts in zip(EPISODES, injection.prefixes, injection.facts, strict=True):
            assert sum(a != b for a, b in zip(facts, episode.sender, strict=True)) == 1
            assert not all(EASY.checks(facts, episode.solution))
            changed = replace(episode, message=write_facts(facts))
            alone = ConditionInputs(inputs.receiver, [changed], inputs.codec, None, 1)
            torch.testing.assert_close(prefix, stacked(inject("normal", alone))[0], atol=1e-5, rtol=1e-4)
        assert inject("near", inputs).facts == injection.facts

    def test_near_is_refused_for_free_words_and_for_levels_that_cannot_change_a_fact(self, tiny):
        free = make_inputs(tiny, [replace(EPISODES[0], message="The first is one.")])
        with pytest.raises(
            UserError, match=r"near: the message of episode 1000 is in free words, .*; leave near out"
        ):
            inject("near", free)

        class Plain(type(EASY)):
            change_fact = Level.change_fact

        plain = Plain(**{field.name: getattr(EASY, field.name) for field in fields(EASY)})
        with pytest.raises(
            UserError, match=r"level easy does not define change_fact, so condition near cannot run"
        ):
            inject("near", make_inputs(tiny, [replace(EPISODES[0], level=plain)]))

    def test_drop_blanks_one_slot_and_leaves_the_others(self, inputs, prefixes):
        for slot in (1, 2, 3):
            dropped = stacked(inject(f"drop-{slot}", inputs))
            others = [other for other in range(3) if other != slot - 1]
            assert not dropped[:, slot - 1].any()
            torch.testing.assert_close(dropped[:, others], prefixes[:, others], atol=1e-5, rtol=1e-4)
        with pytest.raises(UserError, match="condition drop-4: the codec has 3 slots; use drop-1 to drop-3"):
            inject("drop-4", inputs)


class TestControls:
    def test_rotate_keeps_all_norms_and_angles_and_no_direction(self, tiny, inputs):
        normal, turned = (stacked(inject(name, inputs)).flatten(0, 1) for name in ("normal", "rotate"))
        torch.testing.assert_close(turned @ turned.T, normal @ normal.T, atol=1e-3, rtol=1e-4)
        assert torch.cosine_similarity(normal, turned).abs().mean() < 0.5
        q_DD = rotation(tiny.width)
        torch.testing.assert_close(q_DD @ q_DD.T, torch.eye(tiny.width, dtype=q_DD.dtype))
        other = make_inputs(tiny, seed=5)
        torch.testing.assert_close(
            stacked(inject("rotate", other)), stacked(inject("normal", other)) @ q_DD.float()
        )

    def test_noise_has_the_norm_in_its_name_and_depends_on_the_episode_alone(self, tiny, inputs):
        drawn = stacked(inject("noise-0.5", inputs))
        norms = drawn.norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, 0.5 * tiny.embedding_norm))
        some = make_inputs(tiny, [replace(EPISODES[i], message=EPISODES[0].message) for i in (5, 2)], seed=4)
        torch.testing.assert_close(stacked(inject("noise-0.5", some)), drawn[[5, 2]])
        torch.testing.assert_close(stacked(inject("noise-2", inputs)), 4 * drawn)
        assert len(drawn.flatten(1).unique(dim=0)) == len(EPISODES)


class TestTextConditions:
    def test_facts_m_is_the_text_of_the_first_facts(self, inputs):
        for count in (1, 2, 3):
            texts = inject(f"facts-{count}", inputs).texts
            assert texts == ["; ".join(e.message.split("; ")[:count]) for e in EPISODES]
        with pytest.raises(
            UserError, match=r"facts-4: .* episode 1000 has 4 facts, so it would be P1; use a smaller"
        ):
            inject("facts-4", inputs)

    @pytest.mark.parametrize(
        "message",
        ["Take x1 = 2. Then x3! Is it?", " Take x1 = 2.  Then x3!\nIs it? ", "Take x1 = 2.\nThen x3!\nIs it"],
    )
    def test_in_free_words_they_are_sentences(self, tiny, message):
        inputs = ConditionInputs(tiny, [replace(EPISODES[0], message=message)], None, None, 1)
        first, second = (inject(f"facts-{count}", inputs).texts[0] for count in (1, 2))
        assert first == "Take x1 = 2."
        assert re.sub(r"\s+", " ", second) == "Take x1 = 2. Then x3!"
        with pytest.raises(
            UserError, match="facts-3: the message of episode 1000 has 3 sentences, so it would be P1"
        ):
            inject("facts-3", inputs)

    def test_tokens_k_are_the_first_token_embeddings_in_the_codecs_place(self, tiny):
        inputs = make_inputs(tiny, place="before")
        whole = inject("identity", inputs).prefixes
        for count in (1, min(map(len, whole)), max(map(len, whole)) - 1, max(map(len, whole)) + 5):
            injection = inject(f"tokens-{count}", inputs)
            assert injection.place == "before"
            for vectors, all_vectors in zip(injection.prefixes, whole, strict=True):
                assert torch.equal(vectors, all_vectors[:count])

    def test_p0_and_p1_are_no_message_and_the_whole_message(self, inputs):
        assert inject("P0", inputs) == ([""] * len(EPISODES), None, "message", None, None, None)
        assert inject("P1", inputs) == ([e.message for e in EPISODES], None, "message", None, None, None)

    def test_identity_is_the_messages_own_token_embeddings(self, inputs):
        injection = inject("identity", inputs)
        for episode, vectors in zip(EPISODES, injection.prefixes, strict=True):
            distance = torch.cdist(vectors, inputs.receiver.embedding_ND)
            assert inputs.receiver.tokenizer.decode(distance.argmin(1)) == episode.message
            torch.testing.assert_close(vectors, inputs.receiver.embedding_ND[distance.argmin(1)], atol=0, rtol=0)

    @given(messages=st.lists(st.text(min_size=1), min_size=1, max_size=3), limit=st.integers(1, 40))
    def test_text_b_is_the_longest_text_that_fits_in_b_bytes(self, tiny, messages, limit):
        batch = [replace(EPISODES[0], message=text) for text in messages]
        cut = inject(f"text-{limit}", ConditionInputs(tiny, batch, None, None, 1)).texts
        for whole, short in zip(messages, cut, strict=True):
            assert whole.startswith(short)
            assert len(short.encode()) <= limit
            assert short == whole or len(whole[: len(short) + 1].encode()) > limit

    def test_text_b_cuts_before_a_letter_that_does_not_fit(self, tiny):
        batch = [replace(EPISODES[0], message="aé😀z")]  # 1 + 2 + 4 + 1 bytes
        cuts = [inject(f"text-{b}", ConditionInputs(tiny, batch, None, None, 1)).texts[0] for b in range(1, 10)]
        assert cuts == ["a", "a", "aé", "aé", "aé", "aé", "aé😀", "aé😀z", "aé😀z"]

    def test_conditions_of_the_receiver_need_no_codec(self, tiny):
        bare = ConditionInputs(tiny, EPISODES[:2], None, None, 1)
        for name in [n for n in DERIVED if get_condition(n).depends_on == "receiver"]:
            assert len(inject(name, bare).texts or inject(name, bare).prefixes) == 2


@pytest.mark.parametrize("name", DERIVED)
def test_conditions_do_not_depend_on_the_batch_size(tiny, name):
    injections = [inject(name, make_inputs(tiny, batch_size=size)) for size in (1, 7, 250)]
    assert len({(i.place, tuple(i.texts or ()), tuple(i.partners or ())) for i in injections}) == 1
    if injections[0].prefixes is not None:
        for injection in injections[1:]:
            for one, other in zip(injections[0].prefixes, injection.prefixes, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class TestDerangement:
    def clash(self, one: Episode, other: Episode) -> bool:
        return one.content == other.content or one.message == other.message

    def check(self, batch: Sequence[Episode]) -> list[int]:
        partner = derangement(batch)
        assert sorted(partner) == list(range(len(batch)))
        assert not any(self.clash(episode, batch[p]) for episode, p in zip(batch, partner, strict=True))
        return partner

    @settings(max_examples=25, deadline=None)
    @given(
        start=st.integers(0, 10**9),
        count=st.integers(2, 120),
        name=st.sampled_from(["easy", "lookup-6x10"]),
    )
    def test_no_drawn_episode_gets_a_message_of_its_own_content(self, start, count, name):
        self.check(episodes(level(name), range(start, start + count), "confirm"))

    def test_it_is_the_attempts_shift_where_that_is_a_derangement(self):
        batch = episodes(level("lookup-8x10"), range(100), "train")
        assert derangement(batch) == [(i + SHIFT) % 100 for i in range(100)]

    @settings(deadline=None)
    @given(picks=st.lists(st.integers(0, 3), min_size=1, max_size=12))
    def test_it_is_found_exactly_where_no_message_is_more_than_half(self, picks):
        batch = [EPISODES[pick] for pick in picks]
        if 2 * max(picks.count(pick) for pick in picks) <= len(picks):
            self.check(batch)
        else:
            with pytest.raises(UserError, match="too few different messages"):
                derangement(batch)

    @settings(deadline=None)
    @given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5))
    def test_in_free_words_it_is_found_wherever_there_is_one(self, pairs):
        """Contents may share a wording, and one may have several. Checked by brute force over all orders."""
        batch = [replace(EPISODES[content], message=f"words {words}") for content, words in pairs]
        possible = any(
            not any(self.clash(episode, batch[p]) for episode, p in zip(batch, order, strict=True))
            for order in permutations(range(len(batch)))
        )
        if possible:
            self.check(batch)
        else:
            with pytest.raises(UserError, match=r"condition shuffle: too few .* use more or a larger level"):
                derangement(batch)

    def test_the_same_facts_in_another_order_are_the_same_content(self):
        one = EPISODES[0]
        turned = replace(one, sender=one.sender[::-1], message="; ".join(one.message.split("; ")[::-1]))
        assert turned.message != one.message
        with pytest.raises(UserError, match="too few different messages"):
            derangement([one, turned])
        self.check([one, turned, EPISODES[1], EPISODES[2]])


BAD_TEXTS = [f"text{tail}" for tail in ("", "-", "-0", "-1.5", "--4", "-٣", "-" + "9" * 5000)]
BAD_GATES = [
    f"scale_gate{tail}" for tail in ("", "=", "=-1", "=nan", "=inf", "=1e999", "=1_0", "= 1", "=" + "9" * 5000)
]


class TestNames:
    @pytest.mark.parametrize("name", ["", "Normal", "p0", "decode", "normal\n", *BAD_TEXTS, *BAD_GATES])
    def test_unknown_names_are_refused_in_one_line(self, name):
        with pytest.raises(
            UserError, match=r"--conditions: .* does not exist; use some of normal, null"
        ) as caught:
            get_condition(name)
        assert "\n" not in str(caught.value)

    @given(name=st.text())
    def test_any_other_text_is_a_users_error(self, name):
        parameter = r"((text|facts|tokens|noise|drop)-|scale_gate=)[0-9.e+-]+"
        assume(name not in CONDITIONS and not re.fullmatch(parameter, name))
        with pytest.raises(UserError):
            get_condition(name)
