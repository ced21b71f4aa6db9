"""The simulation of false passes: its worlds are what they say, and the gate keeps them out."""

import numpy as np
import pytest

from m2ray.config.gate_file import load_gate
from m2ray.judging import false_pass
from m2ray.judging.false_pass import NULLS, PassRate, draw_outcomes, simulate_sweep
from m2ray.judging.verdict import PART, PASSES

GATE = load_gate()


def test_outcomes_have_the_rates_and_episodes_are_alike():
    rates = {"P0": 0.37, "normal": 0.65}
    (arms,) = draw_outcomes(rates, 1, 3, 20_000, np.random.default_rng(0))
    assert arms["P0"].shape == (1, 20_000)
    assert arms["normal"].shape == (3, 20_000)
    for name, rate in rates.items():
        assert arms[name].mean() == pytest.approx(rate, abs=0.04)
    both = np.corrcoef(arms["P0"][0], arms["normal"][0])[0, 1]
    assert 0.2 < both < 0.5


@pytest.mark.parametrize("world", NULLS, ids=lambda world: world.name)
@pytest.mark.parametrize("p0", [0.2, 0.37])
def test_rates_of_a_world_are_shares(world, p0):
    rates = world.rates(p0)
    assert all(0 < rate < 1 for rate in rates.values())
    assert rates["normal"] < rates["P1"]


@pytest.mark.parametrize("world", NULLS, ids=lambda world: world.name)
def test_what_carries_nothing_does_not_pass(world):
    rng, sweeps = np.random.default_rng(0), 25
    allowed = PASSES if world.may_be_part else (*PASSES, PART)
    passed = 0
    for _ in range(sweeps):
        verdicts, _ = simulate_sweep(world.rates(0.37), 8, 3, 300, GATE, rng)
        passed += any(verdict in allowed for verdict in verdicts)
    assert passed <= 5  # 5 % of 25 is 1.25; more than 5 would have a chance below 0.1 %


def test_one_fact_of_four_is_found_to_be_a_part():
    rates = next(world for world in NULLS if world.may_be_part).rates(0.37)
    verdicts = [simulate_sweep(rates, 1, 3, 1000, GATE, np.random.default_rng(i))[0][0] for i in range(10)]
    assert verdicts.count(PART) >= 5
    assert not any(verdict in PASSES for verdict in verdicts)


def test_a_good_codec_passes():
    rates = false_pass._rates(0.37, normal=0.85)
    verdicts = [simulate_sweep(rates, 1, 3, 500, GATE, np.random.default_rng(i))[0][0] for i in range(10)]
    assert all(verdict in PASSES for verdict in verdicts)


def test_the_same_seed_gives_the_same_sweep():
    rates = NULLS[0].rates(0.2)
    first, second = (simulate_sweep(rates, 8, 2, 100, GATE, np.random.default_rng(7)) for _ in range(2))
    assert first == second


def test_the_tables_hold_every_rate():
    readings = ("gate", "naive")
    rates = [PassRate("w", 0.2, 300, count, 3, reading, 1, 40) for count in (1, 8) for reading in readings]
    table = false_pass.false_pass_table(rates)
    assert table[0] == ["Codecs", "P0", "Reading", "1 configuration", "8 configurations"]
    assert [row[:3] for row in table[1:]] == [["w", "20%", "gate"], ["w", "20%", "naive"]]
    assert table[1][3].startswith("2.5 % [")
    power = [PassRate("w", 0.2, n, 1, 1, "PASS", 40, 40) for n in (300, 500)]
    assert false_pass.power_table(power)[0][-2:] == ["n = 300", "n = 500"]
