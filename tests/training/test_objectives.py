"""Objectives: each against an independent calculation, or against what its docstring promises."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy
from torch.nn import functional as F

from m2ray.codec.codec import CodecOutput
from m2ray.codec.prefix_statistics import mean_cosine
from m2ray.config.objectives import Losses, LossTerm, MarginTerm, NegativesTerm
from m2ray.config.trial import CodecConfig, TrialConfig
from m2ray.receiver.model.requests import AnswerOutput
from m2ray.receiver.references import AnswerFrame, References
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.objectives import (
    LOSSES,
    Heads,
    Signals,
    SlotStates,
    ce,
    code_information,
    commitment,
    contrast,
    diversity,
    help,
    info_preserve,
    infonce,
    kl,
    latent_information,
    reconstruction,
    reconstruction_tokens,
    states,
    value_weight,
    weighted_nll,
    weighted_sum,
)

# Five answer tokens, values in places 1 and 3, two values a place, a vocabulary of seven words.
FRAME = AnswerFrame(
    torch.tensor([0, 4, 1, 5, 2]), torch.tensor([1, 3]), torch.tensor([[4, 6], [5, 3]]), torch.tensor([2])
)
PLAIN = LossTerm()


def references(rows: int) -> References:
    """The answers of `FRAME`: none is padded."""
    values_BA = torch.tensor([[False, True, False, True, False]]).expand(rows, -1)
    return References(FRAME.ids_A.expand(rows, -1), torch.ones_like(values_BA), values_BA, FRAME.ends_E, None)


def random_signals(seed: int = 0, rows: int = 4, negatives: int = 3) -> Signals:
    """Random numbers in every field, of the shapes that training gives them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def random_answer() -> AnswerOutput:
        return AnswerOutput(
            3 * normal(rows, 5, 7), normal(rows, 2, 6, 8), torch.arange(6, 0, -1) <= behind[:, None]
        )

    behind = torch.arange(rows) + 3
    latent, nll = normal(rows, 3, 8), normal(rows, 5).square()
    return Signals(
        references=references(rows),
        answer=random_answer(),
        nll_BA=nll,
        nll_B=nll.mean(1),
        shuffled_B=normal(rows).square(),
        null_B=normal(rows).square(),
        negatives_MBA=normal(negatives, rows, 5).square(),
        text_answer=random_answer(),
        encoded=CodecOutput(normal(rows, 3, 8), latent, None, None, None),
        inputs_HD=normal(rows, 8),
        message_ids_HT=torch.randint(20, (rows, 6), generator=generator),
        message_mask_HT=torch.arange(6) < torch.tensor([[6], [2], [4], [6]])[:rows],
        heads=None,
        slots=SlotStates(
            normal(rows, 2, 3, 8), normal(rows, 2, 3, 8), torch.arange(rows * 3).reshape(rows, 3) % 5 > 0
        ),
    )


@pytest.fixture
def heads(tiny) -> Heads:
    torch.manual_seed(0)
    terms = {name: {} for name in ("reconstruction", "reconstruction_tokens", "latent_information")}
    return Heads(TrialConfig(codec=CodecConfig(k=3), losses=Losses.model_validate(terms)), tiny)


class TestAnswerLikelihood:
    def targets(self, rows: int, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(seed).dirichlet([1, 1], (rows, 2))).float()

    def test_values_are_scored_against_a_distribution_the_rest_against_its_token(self):
        signals, targets = random_signals(), self.targets(4)
        log_p = log_softmax(signals.answer.logits_BAW.double().numpy(), axis=-1)
        expected = -log_p[:, np.arange(5), FRAME.ids_A.numpy()]
        for row, (v, place) in itertools.product(range(4), enumerate([1, 3])):
            words = FRAME.values_VN[v].numpy()
            expected[row, place] = -sum(
                targets[row, v, n].item() * log_p[row, place, w] for n, w in enumerate(words)
            )
        np.testing.assert_allclose(answer_nll(signals.answer.logits_BAW, FRAME, targets), expected, rtol=1e-5)

    def test_certain_targets_are_plain_cross_entropy(self):
        """A target that is certain of one value is the usual token loss of torch."""
        logits = random_signals().answer.logits_BAW
        targets = F.one_hot(torch.tensor([[0, 1]] * 4), 2).float()
        ids = FRAME.ids_A.clone()
        ids[3] = 3
        expected = F.cross_entropy(logits.transpose(1, 2), ids.expand(4, -1), reduction="none")
        torch.testing.assert_close(answer_nll(logits, FRAME, targets), expected)

    def test_a_perfect_reasoner_pays_the_entropy_of_what_is_left(self):
        """Cross-entropy is least where the prediction is the target, and there it is the target's entropy."""
        targets = self.targets(4)
        logits = torch.full((4, 5, 7), -1e4)
        logits[:, torch.arange(5), FRAME.ids_A] = 0
        logits[:, FRAME.positions_V] = -1e4
        for v, place in enumerate(FRAME.positions_V):
            logits[:, place, FRAME.values_VN[v]] = targets[:, v].log()
        nll = answer_nll(logits, FRAME, targets)
        np.testing.assert_allclose(nll[:, FRAME.positions_V], entropy(targets.numpy(), axis=-1), rtol=1e-4)
        assert not nll[:, [0, 2, 4]].any()

    @given(weight=st.floats(0.01, 1e4), seed=st.integers(0, 2**31))
    def test_weighted_nll_is_the_weighted_average(self, weight, seed):
        nll = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed))
        expected = np.average(nll, axis=1, weights=[1, weight, 1, weight, 1])
        np.testing.assert_allclose(weighted_nll(nll, references(len(nll)), weight), expected, rtol=1e-4)

    def test_every_answer_token_of_a_real_receiver_is_scored_once(self, tiny):
        """On JSON answers the sum over tokens is the log-likelihood of the whole answer."""
        batch = episodes(level("lookup"), range(5), "train")  # one solution each: targets are certain
        frame = tiny.answer_frame(batch[0].level)
        layout = tiny.layout(batch, [episode.message for episode in batch])
        nll = answer_nll(tiny.logits(layout, None, len(frame.ids_A)), frame, tiny.targets(batch))
        for row, episode in enumerate(batch):
            before, after = tiny.prompt_ids(episode)
            prompt = before + tiny.tokens(episode.message) + after
            answer = tiny.answer_ids(episode.level, torch.tensor([episode.solution]))[0].tolist()
            logits = tiny.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            expected = F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
            torch.testing.assert_close(nll[row].sum(), expected, rtol=1e-4, atol=1e-4)


class TestReceiverObjectives:
    def test_ce_is_the_mean_of_the_rows(self):
        signals = random_signals()
        assert ce(signals, PLAIN).item() == pytest.approx(np.mean(signals.nll_B.numpy()))

    def test_kl_is_scipys_relative_entropy_from_the_receiver_that_sees_the_text(self):
        signals = random_signals()
        teacher, student = (
            softmax(x.double().numpy(), -1) for x in (signals.text_answer.logits_BAW, signals.answer.logits_BAW)
        )
        expected = rel_entr(teacher, student).sum(-1).mean()
        assert kl(signals, PLAIN).item() == pytest.approx(expected, rel=1e-5)
        signals.answer = signals.text_answer._replace(
            logits_BAW=signals.text_answer.logits_BAW + 5.0
        )  # the same distribution
        assert kl(signals, PLAIN).item() == pytest.approx(0, abs=1e-6)

    def test_states_is_the_mean_cosine_distance_after_the_place_of_the_message(self):
        signals = random_signals()
        prefix, text = (
            signals.answer.states_BLSD.double().numpy(),
            signals.text_answer.states_BLSD.double().numpy(),
        )
        rows = []
        for row, behind in enumerate([3, 4, 5, 6]):
            places = range(6 - behind, 6)
            rows.append(np.mean([cosine(prefix[row, n, s], text[row, n, s]) for n in range(2) for s in places]))
        assert states(signals, PLAIN).item() == pytest.approx(np.mean(rows), rel=1e-5)
        signals.answer = signals.text_answer
        assert states(signals, PLAIN).item() == pytest.approx(0, abs=1e-6)

    @given(seed=st.integers(0, 2**31), margin=st.floats(0, 5))
    def test_the_hinges_are_the_attempts_formulas(self, seed, margin):
        signals = random_signals(seed)
        right, wrong, null = (x.double().numpy() for x in (signals.nll_B, signals.shuffled_B, signals.null_B))
        term = MarginTerm(margin=margin)
        expected = np.maximum(0, margin - (wrong - right)).mean()
        assert contrast(signals, term).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        expected = np.maximum(0, right - null + margin).mean()
        assert help(signals, term).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)

    def test_contrast_pulls_right_down_and_wrong_up_within_the_margin_and_stops_beyond(self):
        signals = random_signals()
        signals.nll_B = torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
        signals.shuffled_B = torch.tensor([0.5, 1.5, 2.5, 9.0], requires_grad=True)
        loss = contrast(signals, MarginTerm(margin=1.0))
        assert loss.item() == pytest.approx((1.5 + 0.5) / 4)
        loss.backward()
        assert signals.nll_B.grad.tolist() == [0.25, 0.25, 0, 0]
        assert signals.shuffled_B.grad.tolist() == [-0.25, -0.25, 0, 0]

    def test_help_pulls_right_down_until_it_beats_zeros_by_the_margin(self):
        signals = random_signals()
        signals.nll_B = torch.tensor([2.0, 0.9, 0.7, 0.1], requires_grad=True)
        signals.null_B = torch.ones(4)
        loss = help(signals, MarginTerm(margin=0.2))
        assert loss.item() == pytest.approx((1.2 + 0.1) / 4)
        loss.backward()
        assert signals.nll_B.grad.tolist() == [0.25, 0.25, 0, 0]

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_infonce_is_cross_entropy_over_log_likelihoods(self, temperature):
        signals = random_signals()
        scores = -torch.stack([signals.nll_BA.sum(1), *signals.negatives_MBA.sum(2)], dim=1) / temperature
        expected = F.cross_entropy(scores, torch.zeros(4, dtype=torch.long))
        term = NegativesTerm(negatives=3, temperature=temperature)
        torch.testing.assert_close(infonce(signals, term), expected)

    @pytest.mark.parametrize("negatives", [1, 3, 15])
    def test_infonce_of_a_receiver_that_cannot_tell_messages_apart_is_log_of_their_number(self, negatives):
        signals = random_signals()
        signals.negatives_MBA = signals.nll_BA.expand(negatives, -1, -1)
        loss = infonce(signals, NegativesTerm(negatives=negatives))
        assert loss.item() == pytest.approx(math.log(1 + negatives), rel=1e-6)


class TestLatentObjectives:
    def signals(self, tiny, heads, k: int = 3) -> Signals:
        messages = tiny.encode_messages(
            [episode.message for episode in episodes(level("easy"), range(6), "train")]
        )
        signals = random_signals(rows=1)
        latent = torch.randn(6, k, tiny.width, generator=torch.Generator().manual_seed(1), requires_grad=True)
        signals.encoded = CodecOutput(latent, latent, None, None, None)
        signals.inputs_HD = messages.states_BTD.mean(1)
        signals.message_ids_HT, signals.message_mask_HT = messages.ids_BT, messages.mask_BT
        signals.heads = heads
        return signals

    def test_reconstruction_lies_between_same_and_opposite_direction(self, tiny, heads):
        signals = self.signals(tiny, heads)
        assert 0 < reconstruction(signals, PLAIN).item() < 4 / tiny.width
        guess = heads.rebuild(heads.flat(signals.encoded.latent_BKD)).detach()
        for scale, expected in ((1.0, 0.0), (7.0, 0.0), (-1.0, 4 / tiny.width)):
            signals.inputs_HD = scale * guess
            assert reconstruction(signals, PLAIN).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("name", ["reconstruction", "reconstruction_tokens", "latent_information"])
    def test_heads_serve_every_k_of_an_annealed_training(self, tiny, heads, name):
        for k in (7, 4, 3):
            signals = self.signals(tiny, heads, k)
            LOSSES[name](signals, PLAIN).backward()
            assert signals.encoded.latent_BKD.grad.abs().sum() > 0

    def test_token_reconstruction_is_cross_entropy_over_the_messages_own_tokens(self, tiny, heads):
        """A blind guess costs log of the vocabulary; what stands in the padding does not count."""
        signals = self.signals(tiny, heads)
        signals.message_mask_HT[0, 5:] = False
        first = reconstruction_tokens(signals, PLAIN)
        signals.message_ids_HT = signals.message_ids_HT.masked_fill(~signals.message_mask_HT, 7)
        assert reconstruction_tokens(signals, PLAIN) == first
        for parameter in heads.tokens["out"].parameters():
            torch.nn.init.zeros_(parameter)
        blind = reconstruction_tokens(signals, PLAIN).item()
        assert blind == pytest.approx(math.log(len(tiny.embedding_ND)), rel=1e-5)

    def test_token_reconstruction_of_a_message_does_not_depend_on_the_longest_in_its_batch(self, tiny, heads):
        signals = self.signals(tiny, heads)
        first = reconstruction_tokens(signals, PLAIN)
        signals.message_ids_HT = F.pad(signals.message_ids_HT, (0, 300))
        signals.message_mask_HT = F.pad(signals.message_mask_HT, (0, 300))
        torch.testing.assert_close(reconstruction_tokens(signals, PLAIN), first)

    def test_info_preserve_is_the_mse_of_similarity_maps(self):
        signals = random_signals()
        latent, inputs = signals.encoded.latent_BKD.flatten(1).numpy(), signals.inputs_HD.numpy()

        def cosines(x):
            return [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x]

        expected = np.square(np.subtract(cosines(latent), cosines(inputs))).mean()
        assert info_preserve(signals, PLAIN).item() == pytest.approx(expected, rel=1e-4)

    def test_info_preserve_is_zero_where_similarities_are_kept(self):
        """A rotated and scaled copy of the inputs has the inputs' similarities."""
        signals = random_signals()
        turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)))[0][:8]
        latent = (5 * signals.inputs_HD @ turn).reshape(4, 3, 8)
        signals.encoded = CodecOutput(latent, latent, None, None, None)
        assert info_preserve(signals, PLAIN).item() == pytest.approx(0, abs=1e-10)

    def test_commitment_moves_the_latent_and_never_the_code(self):
        signals = random_signals()
        latent, code = (torch.randn(4, 3, 8, requires_grad=True) for _ in range(2))
        signals.encoded = CodecOutput(latent, latent, None, None, code)
        loss = commitment(signals, PLAIN)
        assert loss.item() == pytest.approx((latent - code).square().mean().item())
        loss.backward()
        torch.testing.assert_close(latent.grad, 2 * (latent - code).detach() / latent.numel())
        assert code.grad is None

    def codes(self, probs) -> torch.Tensor:
        signals = random_signals()
        signals.encoded = signals.encoded._replace(code_probs_BKGC=torch.as_tensor(probs, dtype=torch.float32))
        return code_information(signals, PLAIN)

    @given(seed=st.integers(0, 2**31), sharpness=st.floats(0.01, 30))
    def test_code_information_is_between_nothing_and_log_of_the_codebook(self, seed, sharpness):
        logits = sharpness * np.random.default_rng(seed).normal(size=(16, 2, 2, 5))
        probs = softmax(logits, axis=-1)
        expected = (entropy(probs, axis=-1).mean(0) - entropy(probs.mean(0), axis=-1)).mean()
        value = self.codes(probs).item()
        assert value == pytest.approx(expected, abs=1e-4)
        assert -math.log(5) - 1e-5 <= value <= 1e-5

    def test_code_information_at_its_bounds(self):
        every_code_once = torch.eye(8)[:, None, None]
        assert self.codes(every_code_once).item() == pytest.approx(-math.log(8), rel=1e-5)
        assert self.codes(torch.eye(8)[[3] * 8][:, None, None]).item() == pytest.approx(0, abs=1e-6)
        undecided = torch.full((8, 1, 1, 8), 1 / 8)
        assert self.codes(undecided).item() == pytest.approx(0, abs=1e-6)

    def test_latent_information_never_claims_more_than_there_is(self, tiny, heads):
        """log H minus the loss bounds the mutual information from below: trained hard on latents that are
        independent of the inputs it claims nothing on fresh ones, on copies of the inputs up to log H."""
        rows = 64
        signals = self.signals(tiny, heads)
        generator = torch.Generator().manual_seed(0)

        def claim(informative: bool) -> float:
            signals.inputs_HD = torch.randn(rows, tiny.width, generator=generator)
            latent = signals.inputs_HD if informative else torch.randn(rows, tiny.width, generator=generator)
            signals.encoded = CodecOutput(latent, latent[:, None].expand(-1, 3, -1), None, None, None)
            return latent_information(signals, PLAIN)

        for informative in (False, True):
            optimizer = torch.optim.Adam(heads.critic.parameters(), lr=1e-2)
            for _ in range(100):
                optimizer.zero_grad()
                claim(informative).backward()
                optimizer.step()
            with torch.no_grad():
                bounds = [math.log(rows) - claim(informative).item() for _ in range(20)]
            assert max(bounds) <= math.log(rows)
            assert np.mean(bounds) > 0.9 * math.log(rows) if informative else np.mean(bounds) < 0.05

    @given(seed=st.integers(0, 2**31), rows=st.integers(2, 9), collapse=st.floats(0, 10))
    def test_diversity_is_the_mean_cosine_over_all_pairs(self, seed, rows, collapse):
        prefix = torch.randn(rows, 3, 8, generator=torch.Generator().manual_seed(seed))
        prefix = prefix + collapse
        pairs = [
            F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in itertools.combinations(prefix, 2)
        ]
        assert mean_cosine(prefix).item() == pytest.approx(np.mean(pairs), abs=1e-5)
        signals = random_signals()
        signals.encoded = signals.encoded._replace(prefix_BKD=prefix)
        assert diversity(signals, PLAIN) == mean_cosine(prefix)

    def test_mean_cosine_of_a_total_collapse_is_one(self):
        assert mean_cosine(torch.ones(5, 2, 3)).item() == pytest.approx(1)
        assert mean_cosine(torch.ones(1, 2, 3)).item() == 0  # no pair, nothing to compare


class TestWeights:
    def losses(self, **terms) -> Losses:
        return Losses.model_validate({"ce": {"weight": 1.0}, **terms})

    def test_the_total_is_the_weighted_sum_of_what_is_reported(self):
        config = self.losses(
            contrast={"weight": 0.5}, help={"margin": 0.2, "weight": 2.0}, info_preserve={"weight": 10.0}
        )
        total, values = weighted_sum(random_signals(), config, step=0, steps=9)
        assert list(values) == ["ce", "help", "contrast", "info_preserve"]
        weights = {"ce": 1.0, "contrast": 0.5, "help": 2.0, "info_preserve": 10.0}
        assert total.item() == pytest.approx(sum(weights[n] * v.item() for n, v in values.items()), rel=1e-6)

    @settings(max_examples=30)
    @given(warmup=st.integers(0, 50), step=st.integers(0, 100), weight=st.floats(0, 10))
    def test_a_weight_rises_in_a_straight_line_over_its_warm_up_and_stays(self, warmup, step, weight):
        config = self.losses(diversity={"weight": weight, "warmup": warmup})
        total, values = weighted_sum(random_signals(), config, step, 9)
        share = 1.0 if step >= warmup else (step + 1) / warmup
        assert total.item() == pytest.approx(
            (values["ce"] + weight * share * values["diversity"]).item(), abs=1e-4
        )

    @pytest.mark.parametrize(("step", "share"), [(0, 1.0), (20, 0.6), (50, 0.0), (99, 0.0)])
    def test_a_weight_that_fades_falls_in_a_straight_line_to_nothing(self, step, share):
        term = LossTerm(weight=4.0, fade=0.5)
        assert term.weight_at(step, 100) == pytest.approx(4.0 * share)

    def test_an_objective_of_weight_zero_is_reported_and_pulls_nothing(self):
        signals = random_signals()
        signals.encoded.prefix_BKD.requires_grad_()
        signals.nll_B.requires_grad_()
        total, values = weighted_sum(signals, self.losses(diversity={"weight": 0.0}), step=3, steps=9)
        total.backward()
        assert values["diversity"] == mean_cosine(signals.encoded.prefix_BKD)
        assert not signals.encoded.prefix_BKD.grad.any()

    def test_every_objective_of_the_configuration_has_its_function(self):
        assert set(LOSSES) == set(Losses.model_fields)

    def test_values_weigh_as_ce_says_and_as_the_attempt_did_without_it(self):
        assert value_weight(Losses.model_validate({"ce": {"value_weight": 3.0}})) == 3.0
        assert value_weight(Losses.model_validate({"kl": {}})) == 10.0

    def test_heads_hold_only_what_the_objectives_need(self, tiny, heads):
        assert not list(Heads(TrialConfig(), tiny).parameters())
        assert {name.split(".")[0] for name, _ in heads.named_parameters()} == {"rebuild", "tokens", "critic"}


def test_slots_is_the_mean_cosine_distance_over_layers_of_slots_that_stand_for_a_word():
    signals = random_signals()
    prefix, text, mask = signals.slots
    apart = [
        np.mean([cosine(prefix[b, layer, k], text[b, layer, k]) for layer in range(2)])
        for b, k in mask.nonzero().tolist()
    ]
    assert float(LOSSES["slots"](signals, PLAIN)) == pytest.approx(np.mean(apart), rel=1e-5)


def slot_states(receiver, batch, embeds_BTD, place):
    (output,) = receiver.forward([receiver.slot_request(batch, embeds_BTD, place, grad=False)])
    return torch.stack(output.hidden[:-1], dim=1)


def test_slots_is_zero_for_a_prefix_of_the_messages_own_embeddings(tiny):
    """Slot j stands for token j, and the receiver holds the same at both."""
    batch = episodes(level("easy"), range(4), "search")
    messages = tiny.encode_messages([episode.message for episode in batch])
    states = [slot_states(tiny, batch, messages.embeds_BTD, "message") for _ in range(2)]
    mask = messages.mask_BT
    signals = random_signals()
    signals.slots = SlotStates(*states, mask)
    assert float(LOSSES["slots"](signals, PLAIN)) == pytest.approx(0, abs=1e-6)
    elsewhere = slot_states(tiny, batch, messages.embeds_BTD, "before")
    signals.slots = SlotStates(elsewhere, states[1], mask)
    assert float(LOSSES["slots"](signals, PLAIN)) > 1e-4


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (49, 0.0), (50, 0.5), (51, 1.0), (59, 2.0), (99, 2.0)])
def test_a_term_counts_from_its_start_and_then_warms_up(step, weight):
    assert LossTerm(weight=2.0, start=0.5, warmup=4).weight_at(step, 100) == pytest.approx(weight)
