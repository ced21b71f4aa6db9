"""Names of conditions: parameters come back out of the names that carry them, and each built-in name is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2ray.config.condition_names import (
    NAMES,
    TABLE_ORDER,
    scale_gate_name,
    scale_gate_of,
    text_limit,
    text_name,
)
from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.conditions import CONDITIONS, get_condition


@given(st.integers(1, 10**18 - 1))
def test_a_limit_comes_back_out_of_its_name(limit):
    assert text_limit(text_name(limit)) == limit
    assert scale_gate_of(text_name(limit)) is None


@given(st.floats(0, 1e6, allow_subnormal=False))
def test_a_scale_comes_back_out_of_its_name_to_six_digits(gate):
    found = scale_gate_of(scale_gate_name(gate))
    assert found is not None
    assert math.isclose(found, gate, rel_tol=1e-5)
    assert text_limit(scale_gate_name(gate)) is None


@pytest.mark.parametrize(
    "name", ["text-0", "text-", "text-1e3", "scale_gate=", "scale_gate=-1", "scale_gate=1e999"]
)
def test_other_names_carry_nothing(name):
    assert text_limit(name) is None
    assert scale_gate_of(name) is None


def test_every_built_in_condition_can_be_run_and_is_in_the_tables():
    assert list(CONDITIONS) == list(NAMES)
    assert sorted(TABLE_ORDER) == sorted(NAMES)
    for name in EvaluationConfig().condition_names:
        assert get_condition(name).inject
