"""Names of conditions: parameters come back out of the names that carry them, and each built-in name is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2ray.config import condition_names as names
from m2ray.config.condition_names import NAMES, TABLE_ORDER, has_parameter
from m2ray.evaluation.conditions import CONDITIONS, get_condition

COUNTS = {
    names.text_name: names.text_limit,
    names.facts_name: names.facts_count,
    names.tokens_name: names.tokens_count,
    names.drop_name: names.dropped_slot,
}
NUMBERS = {names.scale_gate_name: names.scale_gate_of, names.noise_name: names.noise_scale}
READERS = {**COUNTS, **NUMBERS}


@given(st.sampled_from(list(COUNTS)), st.integers(1, 10**18 - 1))
def test_a_count_comes_back_out_of_its_name_and_of_no_other(write, count):
    name = write(count)
    assert {read: read(name) for read in READERS.values() if read(name) is not None} == {COUNTS[write]: count}
    assert has_parameter(name)


@given(st.sampled_from(list(NUMBERS)), st.floats(1e-300, 1e6, allow_subnormal=False))
def test_a_number_comes_back_out_of_its_name_to_six_digits(write, number):
    name = write(number)
    (found,) = [read(name) for read in READERS.values() if read(name) is not None]
    assert math.isclose(found, number, rel_tol=1e-5)
    assert found == NUMBERS[write](name)


def test_a_closed_gate_is_a_condition_and_noise_without_a_norm_is_not():
    assert names.scale_gate_of(names.scale_gate_name(0)) == 0
    assert names.noise_scale("noise-0") is None


@pytest.mark.parametrize("prefix", ["text-", "facts-", "tokens-", "drop-", "noise-", "scale_gate="])
@pytest.mark.parametrize("parameter", ["", "-1", "1e999", "x", " 1", "٣", "1_0"])
def test_other_names_carry_nothing(prefix, parameter):
    assert not has_parameter(prefix + parameter)


@pytest.mark.parametrize("name", ["text-0", "facts-0", "tokens-1.5", "drop-0", "drop-01", "facts", "drop"])
def test_counts_are_whole_numbers_from_1(name):
    assert not has_parameter(name)


def test_every_built_in_condition_can_be_run_and_is_in_the_tables():
    assert list(CONDITIONS) == list(NAMES)
    assert sorted(TABLE_ORDER) == sorted(NAMES)
    for name in (*NAMES, *names.EXAMPLES):
        assert get_condition(name).inject
        assert has_parameter(name) == (name in names.EXAMPLES)
