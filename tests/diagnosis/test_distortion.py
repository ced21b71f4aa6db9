"""Rate and distortion: bits counted right, schemes that lose less with more bits, the command end to end."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import vq

from m2ray.cli.distortion import main
from m2ray.codec.checkpoints import trial_of
from m2ray.codec.codec import Codec, load_codec
from m2ray.config.trial import CodecConfig, TrialConfig
from m2ray.diagnosis.distortion import FACTS, TEXT, Transmission, comparison_sentence, summarize
from m2ray.diagnosis.measure import decode_success
from m2ray.diagnosis.transmission import UNCHANGED, coded, rounded, split_parts, transmission_schemes, vq_bits
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.receiver.loading import load_receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

untimed = settings(deadline=None, max_examples=30)


def prefixes(count, k=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Slots and dimensions of very different ranges, as prefixes have them.
    return torch.randn(count, k, width, generator=generator) * torch.logspace(-2, 2, k * width).reshape(k, width)


# --- bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "groups", "codebook", "bits"), [(4, 1, 512, 36), (8, 4, 256, 256), (1, 1, 2, 1), (16, 2, 65536, 512)]
)
def test_vq_sends_k_times_groups_times_log2_of_the_codebook(k, groups, codebook, bits):
    config = CodecConfig(k=k, bottleneck="vq", groups=groups, codebook=codebook)
    assert vq_bits(config) == bits


@pytest.mark.parametrize("name", ["easy", "medium", "lookup", "lookup-6x10"])
def test_possible_facts_are_all_that_a_constraint_can_state(name):
    drawn = episodes(level(name), range(4000), "train")
    seen = {constraint.fact() for e in drawn for constraint in e.sender + e.receiver}
    assert len(seen) == level(name).possible_facts


def test_the_schemes_of_a_continuous_prefix_have_the_bits_they_state():
    codec = Codec(CodecConfig(k=4, width=8, layers=1), load_receiver("mini"))
    fit = prefixes(40, 4, 128)  # messages
    schemes = {(scheme.scheme, scheme.setting): scheme for scheme in transmission_schemes(codec, fit)}
    assert schemes["slot", "4 codes of 16"].bits == 4 * 4
    assert schemes["whole prefix", "a code of 16"].bits == 4
    assert schemes["quarter slot", "16 codes of 16"].bits == 16 * 4
    assert schemes["entry", "512 of 3 bits"].bits == 4 * 128 * 3
    assert schemes[UNCHANGED, "512 of 32 bits"].bits == 4 * 128 * 32
    # There would be fewer than two messages a code.
    assert not any(setting.endswith("of 64") for _, setting in schemes)
    for scheme in schemes.values():
        arrived = scheme.restore(fit)
        assert arrived.shape == fit.shape
        # No more different prefixes arrive than the bits can tell apart.
        assert len(arrived.flatten(1).unique(dim=0)) <= 2.0 ** min(scheme.bits, 60)


def test_a_vq_codec_is_sent_unchanged():
    codec = Codec(CodecConfig(k=4, width=8, layers=1, bottleneck="vq", codebook=64), load_receiver("mini"))
    (scheme,) = transmission_schemes(codec, prefixes(40, 4, 128))
    assert (scheme.scheme, scheme.setting, scheme.bits) == ("VQ", "4 codes of 64", 24)
    sent = prefixes(5, 4, 128, seed=1)
    assert torch.equal(scheme.restore(sent), sent)


# --- schemes -------------------------------------------------------------------------------------------------


@untimed
@given(st.integers(0, 10_000), st.integers(1, 15))
def test_rounding_errs_by_half_a_step_at_the_most_within_the_fitted_range(seed, bits):
    fit = prefixes(50, seed=seed)
    span = fit.amax(0) - fit.amin(0)
    error = (rounded(fit, bits)(fit) - fit).abs()
    assert (error <= span / 2**bits / 2 + 1e-5 * fit.abs().amax(0)).all()


@untimed
@given(st.integers(0, 10_000))
def test_rounding_errs_less_with_each_bit_on_messages_of_its_own(seed):
    fit, sent = prefixes(200, seed=seed), prefixes(100, seed=seed + 1)
    sent = torch.maximum(torch.minimum(sent, fit.amax(0)), fit.amin(0))
    errors = [float((rounded(fit, bits)(sent) - sent).square().mean()) for bits in (1, 2, 3, 4, 6, 8)]
    assert all(more > less for more, less in pairwise(errors))


def test_rounding_clips_beyond_the_fitted_range_and_keeps_what_never_varies():
    fit = torch.tensor([[[0.0, 5.0]], [[1.0, 5.0]]])
    arrived = rounded(fit, 2)(torch.tensor([[[9.0, 5.0]], [[-9.0, 5.0]], [[0.3, 5.0]]]))
    assert arrived[:, 0, 0].tolist() == pytest.approx([0.875, 0.125, 0.375])
    assert arrived[:, 0, 1].tolist() == [5.0] * 3


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_more_codes_lose_less_of_the_messages_that_fit_them(seed):
    fit = prefixes(256, k=2, seed=seed)
    errors = [float((coded(fit, 2, codes)(fit) - fit).square().mean()) for codes in (1, 2, 16, 128)]
    assert all(more > less for more, less in pairwise(errors))


def test_each_part_arrives_as_the_nearest_code_of_its_own_book():
    fit, sent = prefixes(300, k=2), prefixes(20, k=2, seed=1)
    restore = coded(fit, 4, 8)
    arrived, known = split_parts(restore(sent), 4).numpy(), split_parts(restore(fit), 4).numpy()
    for part, received, book in zip(split_parts(sent, 4).numpy(), arrived, known, strict=True):
        codes = np.unique(book, axis=0)
        assert len(codes) <= 8
        nearest, _ = vq(part, codes)
        assert np.array_equal(codes[nearest], received)


def test_codes_are_the_same_each_time_and_never_those_of_the_sent_messages():
    fit, sent = prefixes(100), prefixes(30, seed=1)
    alone = coded(fit, 3, 4)(sent[:1])
    assert torch.equal(coded(fit, 3, 4)(sent)[:1], alone)


# --- what it shows -------------------------------------------------------------------------------------------


def sent(sender, scheme, bits, solved, n=200):
    order = np.random.default_rng(0).permutation(n)
    return Transmission(sender, scheme, f"{bits} bits", bits, (order < solved).tolist())


SENT = [
    sent("a", "slot", 8, 90),
    sent("a", "slot", 30, 91),
    sent("a", "entry", 400, 120),
    sent("a", UNCHANGED, 9000, 121),
    sent(TEXT, "cut", 0, 60),
    sent(TEXT, "cut", 8, 60),
    sent(TEXT, "cut", 24, 91),
    sent(TEXT, "cut", 29, 70),
    sent(TEXT, "cut", 300, 190),
    sent(FACTS, "fixed code", 6.4, 80),
    sent(FACTS, "fixed code", 25.6, 190),
]


def test_a_codec_is_compared_with_the_best_text_of_at_most_its_bits_on_the_same_episodes():
    table = summarize(SENT)
    own = table[table.sender == "a"].set_index("bits")
    assert own.text.to_dict() == {8: "8 bits", 30: "24 bits", 400: "300 bits", 9000: "300 bits"}
    assert own.lead[8] == pytest.approx(0.15)
    assert own.lead_low[8] > 0
    assert (own.lead[30], own.lead_low[30], own.lead_high[30]) == (0, 0, 0)
    assert own.lead_high[400] < 0
    assert table[table.sender != "a"].lead.isna().all()


def test_the_sentence_says_where_the_codec_beats_text_and_where_not():
    assert comparison_sentence(summarize(SENT), "a") == (
        "a: at 8 bits it beats text (+15 points); at 30 bits it cannot be told from text (+0 points); "
        "at 400 bits it loses to text (-35 points); A's facts in a fixed code of 25.6 bits solve 95.0%, "
        "it at most 45.0%."
    )


# --- the command ---------------------------------------------------------------------------------------------


def save_untrained(folder, config="untrained", **codec):
    """A codec as it starts: on the embedding manifold, so that it carries something."""
    trial = TrialConfig.model_validate(
        {
            "codec": {"width": 16, "layers": 1, **codec},
            "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16},
            "losses": {"ce": {}, **({"commitment": {}} if "bottleneck" in codec else {})},
        }
    )
    torch.manual_seed(0)
    made = Codec(trial.codec, load_receiver("mini"))
    made.save(folder, {"config": config, "seed": 0, "step": 0, "params": {}, "trial": trial.model_dump()})
    return folder


def test_the_command_end_to_end(tmp_path, capsys):
    folders = [
        save_untrained(tmp_path / "a", k=16),
        save_untrained(tmp_path / "b", config="vq", k=8, bottleneck="vq", codebook=16),
    ]
    out = tmp_path / "out"
    assert main([*map(str, folders), "--seeds", "3000000:3000008", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        *("distortion.md", "distortion.csv", "distortion.png", "distortion.svg", "outcomes.parquet")
    }
    table, outcomes = pd.read_csv(out / "distortion.csv"), pd.read_parquet(out / "outcomes.parquet")
    assert set(table.n) == {8}
    assert outcomes.episode.nunique() == 8
    keys = ["sender", "scheme", "setting", "bits"]
    shares = outcomes.groupby(keys).success.mean()
    assert table.set_index(keys).success.to_dict() == pytest.approx(shares.to_dict())
    assert ((table.ci_low <= table.success) & (table.success <= table.ci_high)).all()
    codecs = [name for name in table.sender.unique() if name not in (TEXT, FACTS)]
    assert codecs == ["untrained, seed 0, step 0", "vq, seed 0, step 0"]
    assert table[table.sender == codecs[1]].bits.tolist() == [8 * math.log2(16)]
    page = (out / "distortion.md").read_text()
    for name in codecs:
        assert f"- {name}: at " in page
        assert f"- {name}: at " in printed
    # More bits than the text has: its rival is all of it, which is P1.
    whole = table[(table.sender == codecs[0]) & (table.scheme == UNCHANGED)].iloc[0]
    assert whole.text == "all of it"
    assert table[table.sender == FACTS].success.iloc[-1] == table[table.setting == whole.text].success.iloc[0]


def test_a_prefix_rounded_to_16_bits_solves_what_it_solves_unchanged(tmp_path):
    receiver, folder = load_receiver("mini"), save_untrained(tmp_path / "a", k=16)
    trial, codec = trial_of(folder), load_codec(folder, receiver)
    drawn = episodes(level("easy"), range(3_000_000, 3_000_040), "search")
    prefix = ConditionInputs(receiver, drawn, codec, None, 40).prefixes_EKD
    solved = [
        decode_success(receiver, trial, drawn, Injection(None, list(arrived), "message"))[0]
        for arrived in (prefix, rounded(prefix, 16)(prefix), coded(prefix, 1, 2)(prefix))
    ]
    assert solved[0] == solved[1]
    assert sum(solved[2]) < sum(solved[0])


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["A", "--seeds", "5:1"], "--episodes: '5:1' is not a range of seeds"),
        (["A", "--messages", "1"], "--messages 1: too few"),
        (["A", "A2"], "CHECKPOINT: two are of the same configuration, seed and step"),
        (["A", "OTHER"], "OTHER: of another receiver, task or evaluation"),
        (["NONE"], "NONE: no config.json"),
    ],
)
def test_bad_input_is_named(argv, error, tmp_path):
    save_untrained(tmp_path / "A", k=4)
    save_untrained(tmp_path / "A2", k=4)
    other = save_untrained(tmp_path / "OTHER", config="other", k=4) / "config.json"
    other.write_text(other.read_text().replace('"level": "easy"', '"level": "medium"'))
    argv = [str(tmp_path / word) if word.isupper() or word == "A2" else word for word in argv]
    with pytest.raises(UserError, match=error):
        main([*argv, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; choose another folder"):
        main([str(tmp_path), "--out", str(tmp_path / "file" / "x")])
