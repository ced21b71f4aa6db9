"""scripts/choose_layers.py: which layers carry a message as it is."""

import importlib
import sys
from pathlib import Path

import pytest

from m2ray.util.errors import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
choose_layers = importlib.import_module("choose_layers")

METHODS = ROOT / "search_spaces" / "methods.yaml"


def test_keys_and_values_of_the_first_layers_carry_what_the_text_does() -> None:
    """On mini, layers 0 to 2 are as good as text, and the layers after them carry next to nothing."""
    table = choose_layers.layer_table(METHODS, "kvcomm", ["0-2", "2,3"], None, 60)
    cost = {row[0]: [float(cell) for cell in row[1:]] for row in table[1:]}
    assert cost["0-2"][0] == pytest.approx(cost["text"][0], abs=0.02)
    assert cost["text"][0] + 0.15 < cost["2,3"][0] < cost["2,3"][2]
    assert all(wrong > right for right, wrong, _ in cost.values())


def test_slots_can_be_more_than_the_points_own() -> None:
    """One hidden state of the last token carries nothing; those of all tokens carry the message."""
    one, every = (float(choose_layers.layer_table(METHODS, "activation", ["0"], k, 60)[2][1]) for k in (None, 24))
    assert every < one - 0.1


@pytest.mark.parametrize(
    ("point", "layers", "k", "n", "message"),
    [
        ("nope", "1", None, 8, "points: no nope; there are recipe"),
        ("gist", "1", None, 8, "points.gist: it trains"),
        ("kvcomm", "x", None, 8, "'x': not layers"),
        ("kvcomm", "2-1", None, 8, "'2-1': not layers"),
        ("kvcomm", "0-", None, 8, "'0-': not layers"),
        ("kvcomm", "0-99999999999", None, 8, "'0-99999999999': not layers"),
        ("kvcomm", "9", None, 8, "receiver mini has layers 0 to 3"),
        ("kvcomm", "1", 0, 8, "codec.k: 0 is below 1"),
        ("kvcomm", "1", None, 1, "--n 1: at least two messages"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    point: str, layers: str, k: int | None, n: int, message: str
) -> None:
    """A point that trains has no layers to compare before training."""
    with pytest.raises(UserError, match=message) as error:
        choose_layers.layer_table(METHODS, point, [layers], k, n)
    assert "\n" not in str(error.value)
