"""Estimate how often the gate passes codecs that it must not pass, and how often it finds those that it must.

A simulated world states the success rate of every condition, such as "an untrained codec": right 60 %, untrained
60 %, wrong 16 %, no message 37 %. Every configuration of a simulated sweep is of that world. Outcomes of the same
episode are alike under all conditions, as some episodes are easy: each is a threshold on a normal variable of
which the share `ALIKE` belongs to the episode (a Gaussian copula). Training seeds of a configuration differ by
`SPREAD`.

A sweep ranks its configurations on search, chooses on select, and judges the winners once on confirm with the
engine's own functions, Holm-corrected. The naive reading of the same trainings: the best of all of them on one
split passes if it beats no message there (McNemar, 5 %).

Shapes: C configurations, S training seeds, E episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from m2ray.config.gate_file import GateConfig
from m2ray.config.space import Judge
from m2ray.judging import statistics as stats
from m2ray.judging.arms import ScoreArms
from m2ray.judging.contrasts import Floats
from m2ray.judging.gate import holm_levels, joint_p_value, judge_arms
from m2ray.judging.selection import best_configs
from m2ray.judging.verdict import FAIL, PART, PASSES
from m2ray.util.tables import Table

ALIKE = 0.5  # share of an outcome's variable that belongs to the episode
SPREAD = 0.02  # standard deviation of a training seed's rates
OWN = ("normal", "shuffle", "near", "init", "mean")  # conditions that each training has outcomes of its own under
SEARCH_EPISODES = 200
P1 = 0.95

Rates = dict[str, float]  # success rates by condition


class World(NamedTuple):
    """A kind of codec: its rates, given P0; and whether it may get the verdict PART."""

    name: str
    rates: Callable[[float], Rates]
    may_be_part: bool = False


def _rates(p0: float, **other: float) -> Rates:
    """Return rates where all content-free conditions are as no message, and a wrong message costs 15 points."""
    wrong = max(0.02, p0 - 0.15)
    free = dict.fromkeys(("P0", "null", "constant", "mean", "init", "normal"), p0)
    return {**free, "P1": P1, "shuffle": wrong, "near": wrong, **other}


# What must not pass. The first three are what other gates have let through.
NULLS = (
    World("primes as well as a trained constant", lambda p0: _rates(p0, normal=p0 + 0.3, constant=p0 + 0.3)),
    World("no better than untrained", lambda p0: _rates(p0, normal=p0 + 0.28, init=p0 + 0.28)),
    World("one fact of four", lambda p0: _rates(p0, normal=p0 + (P1 - p0) / 3), may_be_part=True),
    World(
        "right and wrong message alike",
        lambda p0: _rates(p0, normal=p0 + 0.25, shuffle=p0 + 0.25, near=p0 + 0.25),
    ),
    World("wrong hurts, right does not help", lambda p0: _rates(p0)),
    World("all at the margin", lambda p0: _rates(p0, normal=p0 + 0.10)),
    World(
        "at the margin of no message alone",
        lambda p0: _rates(p0, normal=p0 + 0.10, constant=p0 - 0.1, mean=p0 - 0.1, init=p0 - 0.1, null=p0 - 0.03),
    ),
)


# --- outcomes ------------------------------------------------------------------------------------------------


def draw_outcomes(
    rates: Mapping[str, float], configurations: int, seeds: int, n: int, rng: np.random.Generator
) -> list[dict[str, Floats]]:
    """Return each configuration's outcomes on a split, by condition [S, E], or [1, E] where it shares them."""
    episode_E = rng.standard_normal(n)

    def draw(rate: float, rows: int, spread: float) -> Floats:
        rates_S1 = np.clip(rate + spread * rng.standard_normal((rows, 1)), 1e-4, 1 - 1e-4)
        noise_SE = rng.standard_normal((rows, n))
        variable_SE = np.sqrt(ALIKE) * episode_E + np.sqrt(1 - ALIKE) * noise_SE
        return (variable_SE < scipy.stats.norm.ppf(rates_S1)).astype(float)

    shared = {name: draw(rate, 1, 0.0) for name, rate in rates.items() if name not in OWN}
    return [
        shared | {name: draw(rate, seeds, SPREAD) for name, rate in rates.items() if name in OWN}
        for _ in range(configurations)
    ]


def gains(
    rates: Mapping[str, float], configurations: int, seeds: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Return each configuration's score on a search or select split, one per training seed.

    The score is the gain in successes of the right message over a wrong one and over none, whichever is less.
    """
    drawn = draw_outcomes(
        {name: rates[name] for name in ("normal", "shuffle", "P0")}, configurations, seeds, SEARCH_EPISODES, rng
    )
    return {
        f"c{number:02d}": [
            float(
                min(
                    arms["normal"][s].mean() - arms[other][s if other == "shuffle" else 0].mean()
                    for other in ("shuffle", "P0")
                )
            )
            for s in range(seeds)
        ]
        for number, arms in enumerate(drawn)
    }


# --- sweeps --------------------------------------------------------------------------------------------------


def simulate_sweep(
    rates: Mapping[str, float],
    configurations: int,
    seeds: int,
    n: int,
    gate: GateConfig,
    rng: np.random.Generator,
) -> tuple[list[str], bool]:
    """Simulate one sweep.

    Returns:
        The verdicts of the winners on confirm, and whether the naive reading passes the best training. A winner
        that fails by its tests alone is not judged further: FAIL stands for INVALID SETTING as well.
    """
    chosen = best_configs(gains(rates, configurations, seeds, rng), Judge().select)
    winners = best_configs(gains(rates, len(chosen), seeds, rng), Judge().confirm)
    confirm = draw_outcomes(rates, len(winners), seeds, n, rng)
    arms = [ScoreArms(own, range(seeds)) for own in confirm]
    p_values = [joint_p_value(own, None, gate) for own in arms]
    verdicts = [
        judge_arms(own, None, gate, level, "simulation", len(arms)).verdict if p_value <= level else FAIL
        for own, p_value, level in zip(arms, p_values, holm_levels(p_values, gate.alpha), strict=True)
    ]
    looked = draw_outcomes({name: rates[name] for name in ("normal", "P0")}, configurations, seeds, n, rng)
    best_E = max((row_E for own in looked for row_E in own["normal"]), key=lambda row_E: float(row_E.sum()))
    return verdicts, stats.mcnemar(best_E, looked[0]["P0"][0]).p_greater <= stats.ALPHA


class PassRate(NamedTuple):
    """The share of simulated sweeps in which a reading passes something."""

    world: str
    p0: float
    n: int
    configurations: int
    seeds: int
    reading: str
    passed: int
    sweeps: int

    @property
    def text(self) -> str:
        """The share in percent, with its 95 % Wilson interval."""
        interval = stats.wilson(self.passed, self.sweeps)
        return f"{100 * self.passed / self.sweeps:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def false_pass_rates(
    gate: GateConfig,
    sweeps: int,
    seed: int,
    configurations: Sequence[int] = (1, 8, 64),
    seeds: int = 3,
    n: int = 500,
    p0s: Sequence[float] = (0.2, 0.37),
) -> list[PassRate]:
    """Simulate sweeps of every world that must not pass, and return the rates of false passes.

    A pass is PASS or WHOLE; PART counts as well where the world carries nothing at all.
    """
    rates = []
    for number, world in enumerate(NULLS):
        for p0 in p0s:
            started = time.monotonic()
            for count in configurations:
                rng = np.random.default_rng([seed, number, round(100 * p0), count])
                drawn = [simulate_sweep(world.rates(p0), count, seeds, n, gate, rng) for _ in range(sweeps)]
                allowed = PASSES if world.may_be_part else (*PASSES, PART)
                passed = sum(any(verdict in allowed for verdict in verdicts) for verdicts, _ in drawn)
                naive = sum(naive for _, naive in drawn)
                about = (world.name, p0, n, count, seeds)
                rates += [
                    PassRate(*about, f"gate {gate.name}", passed, sweeps),
                    PassRate(*about, "naive", naive, sweeps),
                ]
            print(f"{world.name}, P0 = {p0}: {time.monotonic() - started:.0f} s", flush=True)
    return rates


def power_rates(
    gate: GateConfig,
    sweeps: int,
    seed: int,
    excess: Sequence[float] = (0.10, 0.20, 0.40),
    ns: Sequence[int] = (300, 500, 1000),
    p0s: Sequence[float] = (0.2, 0.37),
) -> list[PassRate]:
    """Return how often a codec above the margin is found: PART or better, for one and for three training seeds.

    Args:
        gate: The gate.
        sweeps: Simulated codecs of each kind.
        seed: Seed of the simulation.
        excess: Gains over no message beyond the margin of 10 points, as shares.
        ns: Numbers of episodes.
        p0s: Success rates without a message.
    """
    rates = []
    for over in excess:
        for p0 in p0s:
            for n in ns:
                for seeds in (1, 3):
                    rng = np.random.default_rng([seed, round(100 * over), round(100 * p0), n, seeds])
                    world = _rates(p0, normal=p0 + 0.10 + over)
                    found = [simulate_sweep(world, 1, seeds, n, gate, rng)[0][0] for _ in range(sweeps)]
                    about = (f"P0 + {100 * (0.1 + over):.0f} points", p0, n, 1, seeds)
                    rates.append(
                        PassRate(
                            *about, "PART or better", sum(verdict in (*PASSES, PART) for verdict in found), sweeps
                        )
                    )
                    rates.append(
                        PassRate(*about, "PASS or WHOLE", sum(verdict in PASSES for verdict in found), sweeps)
                    )
    return rates


def false_pass_table(rates: Sequence[PassRate]) -> Table:
    """Return a table: a line per world, P0 and reading, a column per number of configurations."""
    counts = list(dict.fromkeys(rate.configurations for rate in rates))
    lines: dict[tuple[str, str, str], list[str]] = {}
    for rate in rates:
        lines.setdefault((rate.world, f"{100 * rate.p0:.0f}%", rate.reading), []).append(rate.text)
    head = ["Codecs", "P0", "Reading", *(f"{c} configuration{'s' * (c > 1)}" for c in counts)]
    return [head, *([*key, *cells] for key, cells in lines.items())]


def power_table(rates: Sequence[PassRate]) -> Table:
    """Return a table with a line for each codec, P0, number of seeds and verdict, and a column for each n."""
    ns = list(dict.fromkeys(rate.n for rate in rates))
    lines: dict[tuple[str, ...], list[str]] = {}
    for rate in rates:
        key = (rate.world, f"{100 * rate.p0:.0f}%", str(rate.seeds), rate.reading)
        lines.setdefault(key, []).append(rate.text)
    return [["Codec", "P0", "Seeds", "Verdict", *(f"n = {n}" for n in ns)], *([*k, *c] for k, c in lines.items())]
