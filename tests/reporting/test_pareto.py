"""The figure of success against bytes."""

from made_reports import CARRIES, content_rows

from m2ray.config.gate_file import load_gate
from m2ray.reporting.figures.pareto import SizedSuccess, draw_pareto, front, sized_successes
from m2ray.reporting.leaderboard import judge_runs

PARAMS = {"bytes": 2048.0, "numbers": 512, "text_bytes": 40.5, "prefill_saved": 1}


def runs_of(params):
    shares = {**CARRIES, "text-16": 0.4, "text-64": 0.9, "bits-8": 0.74, "bits-2": 0.5}
    return judge_runs(content_rows("mine", shares, seeds=(0,), params=params), load_gate(None))


def test_codecs_text_and_rounded_numbers_have_their_sizes():
    sizes = {(point.sender, point.sent): point.bytes for point in sized_successes(runs_of(PARAMS))}
    assert sizes == {
        ("mine", "normal"): 2048,
        ("mine", "bits-8"): 512,
        ("mine", "bits-2"): 128,
        ("text", "P1"): 40.5,
        ("text", "text-16"): 16,
        ("text", "text-64"): 40.5,  # no message is longer
    }


def test_runs_of_unknown_size_are_left_out():
    assert sized_successes(runs_of({"codec.encoder": "segments"})) == []


def test_the_front_holds_what_no_smaller_message_reaches():
    points = [
        SizedSuccess("a", str(size), size, solved, 10) for size, solved in ((8, 3), (4, 3), (16, 2), (32, 9))
    ]
    assert [(point.bytes, point.solved) for point in front(points)] == [(4, 3), (32, 9)]


def test_it_is_drawn_with_a_legend_of_all_senders():
    figure = draw_pareto(runs_of(PARAMS), {})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"mine", "text", "best for its size"} <= set(labels)
