"""Every sentence of a diagnosis follows from its figures."""

import json
from dataclasses import replace

import pytest
from made_diagnoses import estimate, healthy_diagnosis, with_gap, without_gain

from m2ray.diagnosis.findings import Diagnosis, Gap, Norms, Success, to_plain
from m2ray.diagnosis.probes import SimilarityMap
from m2ray.diagnosis.report import root_cause, tables
from m2ray.judging.statistics import Estimate


def names(d: Diagnosis) -> list[str]:
    return [finding.name for finding in d.findings]


def test_a_codec_that_carries_and_is_read_is_healthy():
    assert names(healthy_diagnosis()) == ["healthy", "kept"]
    sentence = healthy_diagnosis().findings[0].sentence
    assert "80.0% (800/1000) solved with it, 35.0% (350/1000) without, 95.0% (950/1000) with the text" in sentence
    assert "retention 0.75" in sentence
    assert names(replace(healthy_diagnosis(), retention=estimate(0.9))) == ["healthy"]


@pytest.mark.parametrize(
    ("facts", "content"),
    [(0.94, "holds the message"), (0.67, "holds a part of the message"), (0.51, "holds nothing of the message")],
)
def test_a_prefix_that_is_not_read_says_so_with_what_it_holds(facts, content):
    finding = with_gap(without_gain(healthy_diagnosis(facts)), shuffle=estimate(0.001)).findings[0]
    assert finding.name == "unread"
    assert finding.sentence.startswith(
        f"The prefix {content}: probe {100 * facts:.1f}% (chance 50%); the receiver does"
    )
    assert "shuffle gap +0.001 nats [-0.009, +0.011] per digit, where the text is worth 0.300" in finding.sentence


def test_a_wrong_message_that_hurts_is_not_a_right_one_that_helps():
    assert names(without_gain(healthy_diagnosis()))[0] == "wrong_hurts"
    assert names(with_gap(without_gain(healthy_diagnosis()), shuffle=estimate(-0.05)))[0] == "backwards"
    assert names(with_gap(without_gain(healthy_diagnosis()), shuffle=estimate(0.03, 0.02)))[0] == "hardly_read"


def test_a_receiver_that_does_not_use_the_text_is_named_first():
    lost = replace(healthy_diagnosis(), success=healthy_diagnosis().success | {"P1": Success(340, 1000, 0.4)})
    assert names(lost)[0] == "deaf"
    assert names(replace(healthy_diagnosis(), nll=healthy_diagnosis().nll | {"P1": (0.36, 0.0)}))[0] == "deaf"


def test_success_that_nats_do_not_show_is_named():
    assert "overconfident" in names(healthy_diagnosis(p0=0.02))
    assert "overconfident" not in names(healthy_diagnosis(p0=0.25))
    assert "overconfident" not in names(without_gain(healthy_diagnosis(p0=0.02)))


@pytest.mark.parametrize(
    ("stage", "place"),
    [("pooled", "at the pooled state"), ("latent", "in the encoder"), ("prefix", "at bottleneck and calibration")],
)
def test_the_stage_at_which_the_message_is_lost_is_named(stage, place):
    d = without_gain(healthy_diagnosis())
    late = d.path[d.path.index(stage) :]
    d = replace(d, probes=d.probes | {name: d.probes[name]._replace(facts=estimate(0.66)) for name in late})
    found = {finding.name: finding.sentence for finding in d.findings}
    assert [name for name in found if name.startswith("lost")] == [f"lost_{stage}"]
    assert found[f"lost_{stage}"].startswith(
        f"The message is lost {place}: probes are right about its facts 95.0%"
    )
    assert "kept" not in found


def test_a_pooled_state_that_the_encoder_does_not_read_loses_nothing():
    d = replace(without_gain(healthy_diagnosis()), path=("tokens", "latent", "prefix"))
    d = replace(d, probes=d.probes | {"pooled": d.probes["pooled"]._replace(facts=estimate(0.55))})
    assert "lost_pooled" not in names(d)


def test_collapse_scale_memory_priming_format_and_capacity_have_their_sentences():
    d = without_gain(healthy_diagnosis())
    flat = SimilarityMap(0.99, 0.9, 1.3, 0.1, 0.0)
    assert "collapsed" in names(replace(d, maps=d.maps | {"prefix": flat}))
    assert "norm" in names(replace(d, norms=Norms(12.0, 10.0, 14.0, 12.0)))
    assert "norm" in names(replace(d, norms=Norms(0.1, 0.1, 0.1, 0.1)))
    assert "memorised" in names(with_gap(d, shuffle=estimate(0.001)))
    assert "memorised" not in names(d)
    primed = replace(d, success=d.success | {"constant": Success(360, 1000, 0.35)})
    assert "priming" in names(replace(primed, ahead=d.ahead | {"constant": estimate(-0.005, 0.03)}))
    assert "priming" not in names(replace(primed, ahead=d.ahead | {"constant": estimate(0.3, 0.03)}))
    shaped = d.gaps | {"null": Gap(estimate(0.01), estimate(0.5))}
    assert "format" in names(replace(d, gaps=shaped))


@pytest.mark.parametrize(
    ("free", "own", "name", "answer"),
    [
        ((31, 32), 300, "capacity_suffices", "yes"),
        ((12, 32), 300, "capacity_limits", "not shown"),
        ((9, 10), 300, "capacity_suffices", "yes"),
        ((1, 10), 300, "capacity_limits", "not shown"),
        ((2, 3), 300, "capacity_unknown", "too few episodes to tell"),
        ((9, 9), 300, "capacity_unknown", "too few episodes to tell"),
        ((2, 3), 800, "capacity_suffices", "yes"),  # 0.8 of the 950 that the text solves
        ((12, 32), 760, "capacity_suffices", "yes"),
        ((12, 32), 759, "capacity_limits", "not shown"),
    ],
)
def test_k_vectors_suffice_where_free_ones_or_the_codec_nearly_reach_the_text(free, own, name, answer):
    d = healthy_diagnosis()
    d = replace(d, success=d.success | {"free": Success(*free, 0.1), "normal": Success(own, 1000, 0.1)})
    assert [found for found in names(d) if found.startswith("capacity")] == [name]
    assert answers(d)["Could so many vectors carry it?"] == answer


@pytest.mark.parametrize(
    ("facts", "retention", "answer"),
    [(0.95, 0.5, "yes"), (0.67, 0.5, "in part"), (0.51, 0.5, "in part"), (0.67, 0.85, "yes"), (0.51, 0.85, "yes")],
)
def test_a_codec_that_works_is_never_said_to_hold_nothing(facts, retention, answer):
    d = replace(healthy_diagnosis(facts), retention=estimate(retention))
    assert "healthy" in names(d)
    assert answers(d)["Does the prefix still hold the message?"] == answer


def test_a_prefix_that_is_lost_in_part_and_still_helps_holds_the_message_in_part():
    d = healthy_diagnosis()
    d = replace(
        d, retention=estimate(0.5), probes=d.probes | {"prefix": d.probes["prefix"]._replace(facts=estimate(0.6))}
    )
    assert {"healthy", "lost_prefix"} <= set(names(d))
    assert answers(d)["Does the prefix still hold the message?"] == "in part: lost at the prefix"


def test_a_prefix_that_is_not_read_holds_a_part_or_nothing():
    for facts, answer in ((0.67, "in part"), (0.51, "no: linear probes read nothing of it")):
        d = with_gap(without_gain(healthy_diagnosis(facts)), shuffle=estimate(0.001))
        assert answers(d)["Does the prefix still hold the message?"] == answer


def test_a_little_help_is_neither_yes_nor_no():
    d = without_gain(healthy_diagnosis())
    assert answers(d)["Does it help B?"] == "no"
    assert answers(replace(d, ahead=d.ahead | {"P0": estimate(0.05, 0.03)}))["Does it help B?"] == "hardly"


def test_every_figure_is_in_the_tables_and_plain_in_json():
    d = replace(healthy_diagnosis(), retention=Estimate(0.5, float("nan"), float("nan")))
    whole = json.loads(json.dumps(d.json(), allow_nan=False))
    assert whole["retention"] == {"value": 0.5, "low": None, "high": None}
    assert whole["probes"]["prefix"]["facts"]["value"] == 0.95
    assert whole["findings"][0]["name"] == "healthy"
    assert to_plain((1.23456789, [float("nan")])) == [1.234568, [None]]
    cells = [cell for table in tables(d).values() for row in table for cell in row]
    for cell in ("95.0 [94.0, 96.0]", "+0.500 nats [+0.490, +0.510]", "80.0% (800/1000)", "20.0", "1.50"):
        assert cell in cells


def answers(d: Diagnosis) -> dict[str, str]:
    return {question: answer for question, _, answer in root_cause(d)[1:]}


def test_the_root_cause_of_a_codec_that_is_read_is_nowhere():
    healthy = replace(healthy_diagnosis(), success=healthy_diagnosis().success | {"free": Success(32, 32, 0.0)})
    assert set(answers(healthy).values()) == {"yes"}
    assert len(answers(healthy)) == 9


def test_the_root_cause_is_where_the_message_stops():
    d = with_gap(without_gain(healthy_diagnosis(0.67)), shuffle=estimate(0.001), null=estimate(-0.01))
    late = {name: d.probes[name]._replace(facts=estimate(0.55)) for name in ("latent", "prefix")}
    d = replace(d, probes=d.probes | late)
    found = answers(d)
    assert found["Does the message as text help B?"] == "yes"
    assert found["Does the prefix still hold the message?"] == "no: lost at the latent"
    assert found["Do prefixes of different messages differ?"] == "yes"
    assert (found["Does B read it?"], found["Does it help B?"]) == ("no", "no")
    assert found["Is its gain over zeros content rather than form?"] == "no gain"
    flat = SimilarityMap(0.99, 0.9, 1.3, 0.1, 0.0)
    alike = replace(d, maps=d.maps | {"prefix": flat}, norms=Norms(12.0, 10.0, 14.0, 12.0))
    assert answers(alike)["Do prefixes of different messages differ?"] == "no"
    assert answers(alike)["Is its scale one that B knows?"] == "no"
    assert (
        answers(with_gap(without_gain(healthy_diagnosis()), shuffle=estimate(-0.05)))["Does B read it?"]
        == "backwards"
    )
