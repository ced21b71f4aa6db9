"""Evaluation: every condition runs the same episodes, rows are what happened, and nothing leaks."""

import itertools
from dataclasses import replace
from functools import partial

import made_codecs
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax

from m2ray.codec.checkpoints import CheckpointId
from m2ray.config.task import Splits
from m2ray.config.trial import CodecConfig, EvaluationConfig, TrialConfig
from m2ray.engine.jobs import evaluation_jobs, may_train, run_evaluation
from m2ray.evaluation.conditions import CONDITIONS, get_condition
from m2ray.evaluation.confirm_ledger import message_digest
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.evaluation.rows import SCHEMA
from m2ray.evaluation.runner import answer_episodes, check_no_leak, check_null, evaluate
from m2ray.evaluation.search_score import search_score
from m2ray.judging.selection import paired_gain
from m2ray.judging.statistics import wilson
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import success_probability
from m2ray.tasks.answers import read_answer, verify, write_answer
from m2ray.tasks.episodes import Episode, episodes
from m2ray.tasks.registry import level
from m2ray.training.constant_prefix import trained_constant
from m2ray.util.errors import UserError

EPISODES = episodes(level("easy"), range(1000, 1040), "search")
EVERY = [*CONDITIONS, "facts-2", "text-9", "tokens-4", "noise-0.5", "drop-2", "scale_gate=0.5"]
TRAINED = {"config": "mine", "seed": 5, "step": 7, "params": {"k": 4}}
SHORT = EvaluationConfig(max_new_tokens=12)
CHECKPOINTS = [CheckpointId(f"c{n}", n, f"digest{n}", 96, '{"k": 4}') for n in range(2)]


make_codec = partial(made_codecs.make_codec, k=4)


def rows_of(receiver: Receiver, names=EVERY, config=SHORT, seed=0, batch=EPISODES, **settings) -> pd.DataFrame:
    codec, constant = (make_codec(receiver, s, **c) for s, c in ((seed, settings), (9, {"encoder": "constant"})))
    return evaluate(receiver, batch, "search", names, config, CHECKPOINTS[seed], codec, constant)


@pytest.fixture(scope="module")
def mini() -> Receiver:
    return load_receiver("mini")


@pytest.fixture(scope="module")
def rows(mini) -> pd.DataFrame:
    return rows_of(mini)


class TestRows:
    def test_they_have_the_stores_columns_and_every_condition_runs_the_same_episodes_in_order(self, rows):
        assert list(rows.columns) == SCHEMA.names
        assert list(rows.condition.unique()) == EVERY
        for _, part in rows.groupby("condition"):
            assert list(part.episode) == [e.seed for e in EPISODES]
            assert set(part.decoding) == {"greedy"}
            assert set(part.task) == {"easy"}
            assert set(part.split) == {"search"}
            assert list(part.message) == [message_digest(episode) for episode in EPISODES]

    def test_outcomes_are_what_the_answers_say(self, rows):
        by_seed = {e.seed: e for e in EPISODES}
        for row in rows.itertuples():
            episode = by_seed[row.episode]
            values = read_answer(episode.level, row.answer, "values")
            held = [c.holds(values) for c in episode.sender + episode.receiver] if values else [False]
            assert row.parsed == (values is not None)
            assert row.partial == pytest.approx(np.mean(held))
            assert row.success == (all(held) and all(0 <= v < 3 for v in values or ()))
        assert rows.success.any()
        assert not rows.success.all()

    def test_rows_of_a_checkpoint_name_it_and_the_others_name_none(self, rows, mini):
        for name, part in rows.groupby("condition"):
            one, depends = part.iloc[0], get_condition(name).depends_on
            named = (one.config, one.seed, one.checkpoint, one.step, one.params)
            if depends == "checkpoint":
                assert named == ("c0", 0, "digest0", 96, '{"k": 4}')
            else:
                assert named == ("", -1, "", 0, "")
            assert (one.k, one.place) == ((0, "") if depends == "receiver" else (4, "message"))
            assert one.receiver == mini.digest

    def test_what_does_not_depend_on_the_checkpoint_is_the_same_for_every_checkpoint(self, rows, mini):
        free = [name for name in EVERY if get_condition(name).depends_on != "checkpoint"]
        other = rows_of(mini, free, seed=1)
        pd.testing.assert_frame_equal(rows[rows.condition.isin(free)].reset_index(drop=True), other)

    def test_only_shuffle_has_partners_and_they_say_something_else(self, rows):
        content = {e.seed: e.content for e in EPISODES}
        shuffle = rows[rows.condition == "shuffle"]
        assert sorted(shuffle.partner) == sorted(shuffle.episode)
        assert all(content[a] != content[b] for a, b in zip(shuffle.episode, shuffle.partner, strict=True))
        assert (rows[rows.condition != "shuffle"].partner == -1).all()

    def test_a_shuffled_episode_answers_as_if_its_partner_had_written_to_it(self, rows, mini):
        shuffle = rows[rows.condition == "shuffle"].set_index("episode")
        message = {e.seed: e.message for e in EPISODES}
        fooled = [replace(e, message=message[shuffle.partner[e.seed]]) for e in EPISODES]
        answers = answer_episodes(
            mini,
            fooled,
            get_condition("normal").inject(ConditionInputs(mini, fooled, make_codec(mini), None, 40)),
            SHORT,
        )
        assert answers.texts == list(shuffle.answer)

    def test_the_facts_of_a_row_are_those_of_the_message_whose_content_b_received(self, rows, mini):
        by_seed = {e.seed: e for e in EPISODES}
        near = get_condition("near").inject(ConditionInputs(mini, EPISODES, make_codec(mini), None, 40)).facts
        changed = {e.seed: facts for e, facts in zip(EPISODES, near, strict=True)}
        for row in rows.itertuples():
            facts = by_seed[row.partner if row.condition == "shuffle" else row.episode].sender
            facts = changed[row.episode] if row.condition == "near" else facts
            values = read_answer(level("easy"), row.answer, "values")
            for fact, sign in zip(facts, row.facts, strict=True):
                assert sign in ("-", str(int(values is not None and fact.holds(values))))
        solved = rows[rows.success & ~rows.condition.isin(["shuffle", "near"])]
        assert not solved.facts.str.contains("0").any()

    def test_an_answer_that_reached_the_limit_is_truncated(self, mini):
        for limit, truncated in ((2, True), (12, False)):
            rows = rows_of(mini, ["P1", "null"], EvaluationConfig(max_new_tokens=limit), batch=EPISODES[:6])
            assert (rows.truncated == truncated).all()

    def test_no_conditions_are_refused(self, tiny):
        with pytest.raises(UserError, match=r"evaluation.conditions: empty; name at least one"):
            evaluate(tiny, EPISODES[:2], "search", [], SHORT)


class TestReading:
    """B's answers to texts and vectors, on a receiver that can solve the task."""

    def test_identity_is_the_text_answer_for_answer(self, rows):
        text, vectors = (rows[rows.condition == name] for name in ("P1", "identity"))
        assert list(text.answer) == list(vectors.answer)
        np.testing.assert_allclose(text.nll, vectors.nll, atol=1e-4)

    def test_the_text_helps_and_a_codec_that_keeps_every_token_is_the_text(self, rows, mini):
        """Untrained, with a slot for each token, `segments` is the identity but for the norm."""
        success = rows.groupby("condition").success.mean()
        assert success["P1"] > 0.85
        assert success["P0"] < 0.6
        by_length: dict[int, list[Episode]] = {}
        for episode in EPISODES:
            by_length.setdefault(len(mini.tokens(episode.message)), []).append(episode)
        length, same = max(by_length.items(), key=lambda item: len(item[1]))
        own = rows_of(mini, ["normal"], batch=same, k=length, scale_gate=1.0)
        assert own.success.mean() > 0.6

    def test_a_closed_gate_is_null(self, mini):
        closed = rows_of(mini, ["null", "scale_gate=0"])
        null, gate = (closed[closed.condition == name] for name in ("null", "scale_gate=0"))
        assert list(null.answer) == list(gate.answer)
        assert list(null.nll) == list(gate.nll)

    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    def test_batches_of_7_give_the_rows_of_one_of_250(self, mini, temperature):
        few, many = (
            rows_of(
                mini,
                config=EvaluationConfig(max_new_tokens=12, temperature=temperature, batch_size=size),
                batch=EPISODES[:20],
            )
            for size in (7, 250)
        )
        pd.testing.assert_frame_equal(few, many, check_exact=False, atol=1e-4, rtol=1e-4)
        assert set(few.decoding) == {f"t={temperature:g}" if temperature else "greedy"}

    def test_sampling_is_paired_over_conditions(self, mini):
        """The noise belongs to the episode: two conditions with the same distribution sample the same answers."""
        hot = rows_of(mini, ["P1", "identity"], EvaluationConfig(max_new_tokens=12, temperature=1.5))
        text, vectors = (hot[hot.condition == name] for name in ("P1", "identity"))
        assert list(text.answer) == list(vectors.answer)
        assert list(text.answer) != list(rows_of(mini, ["P1"]).answer)


class TestLikelihood:
    def by_hand(self, receiver: Receiver, episode: Episode, slots: torch.Tensor) -> float:
        """Return the nats per answer value, from one forward pass over embeddings that are concatenated here."""
        before, after = receiver.prompt_ids(episode)
        frame = receiver.answer_frame(episode.level)
        answer = frame.ids_A.clone()
        for v, value in enumerate(episode.solution):
            answer[frame.positions_V[v]] = frame.values_VN[v, value]
        runs = [
            receiver.embedding_ND[torch.tensor(ids, dtype=torch.long)] for ids in (before, after, answer.tolist())
        ]
        embeds = torch.cat([runs[0], slots, *runs[1:]])
        with torch.no_grad():
            logits = receiver.model(inputs_embeds=embeds[None]).logits[0].double().numpy()
        log_p = log_softmax(logits[len(embeds) - len(answer) - 1 : -1], axis=-1)
        targets = episode.level.value_probabilities(episode.sender + episode.receiver, episode.solution)
        values = zip(frame.positions_V.tolist(), frame.values_VN.tolist(), targets, strict=True)
        return float(np.mean([-np.dot(target, log_p[place, words]) for place, words, target in values]))

    @pytest.mark.parametrize("receiver_name", ["tiny", "mini"])
    def test_nll_is_the_cross_entropy_against_a_perfect_reasoner(self, request, receiver_name):
        receiver = request.getfixturevalue(receiver_name)
        batch = EPISODES[:6]
        inputs = ConditionInputs(receiver, batch, make_codec(receiver), None, 6)
        one_token = EvaluationConfig(max_new_tokens=1)
        for name in ("P0", "P1", "identity", "null", "normal", "shuffle"):
            injection = get_condition(name).inject(inputs)
            nll = answer_episodes(receiver, batch, injection, one_token).nll_E
            for i, episode in enumerate(batch):
                if injection.prefixes is not None:
                    slots = injection.prefixes[i]
                else:
                    ids = torch.tensor(receiver.tokens(injection.texts[i]), dtype=torch.long)
                    slots = receiver.embedding_ND[ids]
                assert nll[i].item() == pytest.approx(self.by_hand(receiver, episode, slots), abs=1e-4)

    @pytest.mark.parametrize(
        "settings", [{}, {"place": "before", "encoder": "resampler"}, {"encoder": "constant"}]
    )
    def test_the_search_score_is_the_paired_gain_of_the_rows(self, mini, settings):
        score = search_score(mini, make_codec(mini, **settings), EPISODES, SHORT)
        rows = rows_of(mini, ["normal", "shuffle", "P0"], EvaluationConfig(max_new_tokens=1), **settings)
        assert score["score"] == pytest.approx(paired_gain(rows), abs=1e-5)
        nll = rows.groupby("condition").nll.mean()
        assert score["gain_P0"] == pytest.approx(nll["P0"] - nll["normal"], abs=1e-5)
        assert score["gain_shuffle"] == pytest.approx(nll["shuffle"] - nll["normal"], abs=1e-5)
        assert score["search_nll"] == pytest.approx(nll["normal"], abs=1e-5)
        np.testing.assert_allclose(score["episode_nll"], rows[rows.condition == "normal"].nll, atol=1e-4)

    def test_a_codec_that_carries_nothing_scores_no_gain_over_shuffle(self, mini):
        score = search_score(mini, make_codec(mini, encoder="constant"), EPISODES, SHORT)
        assert score["gain_shuffle"] == pytest.approx(0, abs=1e-6)
        assert score["score"] <= 1e-6


class TestExactSuccess:
    """The probability of a right answer, without sampling."""

    def test_it_is_the_sum_over_all_answers_that_the_verifier_accepts(self, mini):
        batch, frame = EPISODES[:3], mini.answer_frame(level("easy"))
        texts = [episode.message for episode in batch]
        every = list(itertools.product(range(3), repeat=4))
        wanted = torch.zeros(3)
        whole = torch.zeros(3)
        for values in every:
            rows = [replace(episode, solution=values) for episode in batch]
            ids_A = mini.answer_ids(level("easy"), torch.tensor([values]))[0]
            logits_BAW = mini.logits(mini.layout(rows, texts), None, len(frame.ids_A))
            chance_B = logits_BAW.log_softmax(-1)[:, range(len(ids_A)), ids_A].sum(1).exp()
            text = write_answer(level("easy"), values, "values")
            wanted += chance_B * torch.tensor([verify(e, text, "values").success for e in batch])
            whole += chance_B
        torch.testing.assert_close(success_probability(mini, batch, texts, None, "message"), wanted)
        assert all(0.9 < share <= 1.0001 for share in whole.tolist())

    def test_it_is_the_success_rate_of_sampling(self, mini):
        prefixes_BKD = make_codec(mini, k=20)(
            mini.encode_messages([e.message for e in EPISODES]), 20, lambda x: x
        ).prefix_BKD
        exact_B = success_probability(mini, EPISODES, 20, prefixes_BKD.detach(), "message")
        solved, times = 0, 60
        for seed in range(times):
            answers = mini.decode(EPISODES, 20, prefixes_BKD.detach(), "message", temperature=1.0, seed=seed)
            pairs = zip(EPISODES, answers, strict=True)
            solved += sum(verify(e, text, mini.style.answer).success for e, text in pairs)
        low, high = wilson(solved, times * len(EPISODES), 0.001)
        assert low < float(exact_B.mean()) < high

    def test_as_the_score_it_is_the_gain_over_no_message_and_a_wrong_one(self, mini):
        config = SHORT.model_copy(update={"score": "success"})
        codec = make_codec(mini, k=20)
        metrics, in_nats = search_score(mini, codec, EPISODES, config), search_score(mini, codec, EPISODES, SHORT)
        texts = [""] * len(EPISODES)
        without = float(success_probability(mini, EPISODES, texts, None, "message").mean())
        assert metrics["gain_P0"] == pytest.approx(metrics["search_success"] - without, abs=1e-5)
        assert metrics["score"] == min(metrics["gain_P0"], metrics["gain_shuffle"])
        assert metrics["episode_nll"] == in_nats["episode_nll"]
        assert "search_success" not in in_nats


class TestJobs:
    """What a checkpoint's evaluation is split into, so that each part is done once."""

    TRIAL = TrialConfig(
        codec=CodecConfig(k=4, width=32, layers=1),
        splits=Splits(train="100:400", search="1000:1008", confirm="2000:2008"),
        evaluation=EvaluationConfig(max_new_tokens=4, constant_samples=64, text_bytes=[8], scale_gates=[1.0]),
    )

    def test_every_condition_is_in_one_job_and_only_those_that_need_it_name_the_checkpoint(self, tmp_path):
        jobs = list(evaluation_jobs(self.TRIAL, "confirm", tmp_path / "epoch-01", tmp_path))
        assert [job.names for job in jobs if may_train(job)] == [("constant",)]
        assert sorted(sum((job.names for job in jobs), ())) == sorted(self.TRIAL.conditions_on("confirm"))
        for job in jobs:
            kinds = {get_condition(name).depends_on for name in job.names}
            assert len(kinds) == 1
            assert (job.folder is None) == (kinds == {"receiver"})

    def test_the_jobs_rows_are_one_evaluations_rows(self, mini, tmp_path):
        codec = make_codec(mini)
        codec.record |= {**TRAINED, "trial": self.TRIAL.model_dump()}
        codec.save(tmp_path / "c", {**TRAINED, "trial": self.TRIAL.model_dump()})
        parts = [run_evaluation(job) for job in evaluation_jobs(self.TRIAL, "confirm", tmp_path / "c", tmp_path)]
        rows = pd.concat(parts, ignore_index=True)
        checkpoint = CheckpointId("mine", 5, codec.digest, 7, '{"k": 4}')
        constant = trained_constant(mini, self.TRIAL, codec.config, tmp_path)
        batch = episodes(level("easy"), range(2000, 2008), "confirm")
        names, config = list(dict.fromkeys(rows.condition)), self.TRIAL.evaluation
        pd.testing.assert_frame_equal(
            rows, evaluate(mini, batch, "confirm", names, config, checkpoint, codec, constant)
        )


class Leaky(Receiver):
    """A receiver whose prompt holds a part of the message outside its place."""

    def prompt_ids(self, episode: Episode) -> tuple[list[int], list[int]]:
        before, after = super().prompt_ids(episode)
        return before, after + self.tokens(" ".join(episode.message.split()[:1]))


class TestLeaks:
    def test_a_prompt_that_holds_the_message_is_refused(self, mini):
        leaky = Leaky(mini.model, mini.tokenizer, mini.style_name, "leaky", mini.card)
        with pytest.raises(UserError, match="receiver leaky: its prompt style leaks the message"):
            check_no_leak(leaky, EPISODES)

    def test_even_with_a_single_episode_or_a_single_message(self, mini):
        leaky = Leaky(mini.model, mini.tokenizer, mini.style_name, "leaky", mini.card)
        for batch in (EPISODES[:1], [EPISODES[0]] * 3):
            with pytest.raises(UserError, match="leaks the message"):
                evaluate(leaky, batch, "search", ["P0"], SHORT)

    @pytest.mark.parametrize("receiver_name", ["tiny", "mini"])
    def test_the_receivers_styles_do_not_leak(self, request, receiver_name):
        check_no_leak(request.getfixturevalue(receiver_name), EPISODES)

    def test_with_the_slots_held_the_message_changes_nothing_bit_for_bit(self, mini):
        prefix = torch.randn(len(EPISODES), 4, mini.width, generator=torch.Generator().manual_seed(0))
        injection = Injection(None, list(prefix), "message")
        first, first_nll, _ = answer_episodes(mini, EPISODES, injection, SHORT)
        silent = [replace(e, message="x1 = 0") for e in EPISODES]
        again, again_nll, _ = answer_episodes(mini, silent, injection, SHORT)
        assert first == again
        assert torch.equal(first_nll, again_nll)

    def test_null_that_is_not_zeros_is_an_error(self, tiny):
        zeros = [torch.zeros(2, 3)] * 2
        check_null(Injection(None, zeros, "message"))
        with pytest.raises(RuntimeError, match="something other than zeros"):
            check_null(Injection(None, [*zeros, torch.full((2, 3), 1e-30)], "message"))
