"""Estimate how often the whole pipeline passes codecs that carry nothing, by simulating sweeps on real rows.

The rows of a real sweep hold B's answers when its slots carry no content: no slots, zeros, noise, a trained
constant, the mean prefix, Gaussians. A simulated configuration answers each episode as one of these conditions did
in that same episode, and each configuration mixes them in other proportions. So some configurations prime B well
and some badly, and some episodes are easy, but it makes no difference whether the message is the right one.

Each simulated sweep resamples the episodes of every split with replacement and then runs the pipeline's own
functions: rank on search, choose on select, judge once on confirm, by every gate in the package, Holm-corrected.
For comparison, naive readings of the same outcomes: the best of all trainings on one split, judged on that split.

Shapes: C configurations, S training seeds, Q content-free conditions, P real columns of them, E episodes of a real
split, N resampled episodes, T trainings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m2ray.config.gate_file import REFERENCE, GateConfig, load_gate
from m2ray.config.space import Judge
from m2ray.judging import statistics as stats
from m2ray.judging.gate import judge, judge_counts
from m2ray.judging.holm import holm_corrected
from m2ray.judging.selection import best_configs, gain
from m2ray.util.errors import UserError
from m2ray.util.tables import Table

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]

CONTENT_FREE = ("P0", "null", "constant", "random", "mean", "matched")
NEEDED = ("P0", "P1", "identity", "null", "random")
SPLITS = ("search", "select", "confirm")
CONFIGURATIONS = (1, 8, 64)
SMALL = 50  # episodes a split, as in the reference attempt; simulated beside the real number
CONCENTRATION = (
    0.3  # of the Dirichlet that proportions are drawn from: most configurations are mostly one condition
)

# Readings that trust one number of the best training, by its outcomes with a message and without one.
NAIVE: dict[str, Callable[[Bools, Bools], bool]] = {
    "CI_low(normal) >= 30 %": lambda normal_N, p0_N: stats.wilson(int(normal_N.sum()), len(normal_N)).low >= 0.3,
    "normal >= 30 %": lambda normal_N, p0_N: bool(normal_N.mean() >= 0.3),
    "normal > P0, McNemar p <= 0.05": lambda normal_N, p0_N: stats.mcnemar(normal_N, p0_N).p_greater <= 0.05,
}


# --- real outcomes -------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """Outcomes under one condition; k is 0 where they do not depend on it."""

    condition: str
    k: int
    success_E: Bools
    nll_E: Floats
    answer_E: NDArray[np.object_]


def read_columns(rows: pd.DataFrame, split: str) -> list[Column]:
    """Return the outcomes on a split, of each training those of its last checkpoint.

    Raises:
        UserError: a condition or episodes are missing, or rows are of several receivers, tasks or decodings.
    """
    part = rows[rows.split == split]
    part = part[part.step == part.groupby(["config", "seed"]).step.transform("max")]
    if missing := [name for name in NEEDED if not (part.condition == name).any()]:
        raise UserError(f"rows: split {split}, condition {missing[0]}: missing; give the rows of a finished sweep")
    if len(part[["receiver", "task", "decoding"]].drop_duplicates()) > 1:
        raise UserError(f"rows: split {split}: of several receivers, tasks or decodings; give those of one sweep")
    columns = []
    for (condition, k, *_), group in part.groupby(["condition", "k", "place", "config", "seed"]):
        if group.episode.nunique() != part.episode.nunique():
            raise UserError(
                f"rows: split {split}, condition {condition}: lacks episodes; evaluate all conditions on the same"
            )
        outcomes = (group.sort_values("episode")[name].to_numpy() for name in ("success", "nll", "answer"))
        columns.append(Column(str(condition), int(k), *outcomes))
    return columns


def judgeable_slots(columns: Sequence[Column]) -> list[int]:
    """Return the numbers of slots that can be judged: those with outcomes of both zeros and noise."""
    null, noise = ({c.k for c in columns if c.condition == name} for name in ("null", "random"))
    return sorted(null & noise)


# --- simulated outcomes --------------------------------------------------------------------------------------


class SimulatedSplit(NamedTuple):
    """A resampled split: its episodes, and the outcomes of all trainings on them."""

    picks_N: NDArray[np.int64]  # indices into the real episodes
    normal_CSN: Bools
    shuffle_CSN: Bools
    gains: dict[str, list[float]]  # by configuration, one for each training seed


def simulate_split(
    columns: Sequence[Column], shares_CQ: Floats, seeds: int, n: int, generator: np.random.Generator
) -> SimulatedSplit:
    """Resample a split's episodes, and draw every training's outcomes with its own and with a wrong message.

    Both are drawn from the same content-free columns of the same episode, in the configuration's proportions: the
    message makes no difference, and easy episodes are easy for all trainings.
    """
    free = [column for column in columns if column.condition in CONTENT_FREE]
    kinds = [column.condition for column in free]
    weights_CP = np.stack([shares_CQ[:, CONTENT_FREE.index(kind)] / kinds.count(kind) for kind in kinds], axis=1)
    bounds_CP = (weights_CP / weights_CP.sum(axis=1, keepdims=True)).cumsum(axis=1)
    picks_N = generator.integers(len(free[0].success_E), size=n)
    success_PE, nll_PE = np.stack([c.success_E for c in free]), np.stack([c.nll_E for c in free])

    def draw_outcomes() -> tuple[Bools, Floats]:
        uniform_CSN1 = generator.random((len(shares_CQ), seeds, n, 1))
        column_CSN = (uniform_CSN1 > bounds_CP[:, None, None, :-1]).sum(axis=-1)
        return success_PE[column_CSN, picks_N], nll_PE[column_CSN, picks_N]

    normal_CSN, normal_nll_CSN = draw_outcomes()
    shuffle_CSN, shuffle_nll_CSN = draw_outcomes()
    p0_nll_N = next(column for column in columns if column.condition == "P0").nll_E[picks_N]
    gains = {
        config_name(c): [gain(normal_nll_CSN[c, s], shuffle_nll_CSN[c, s], p0_nll_N) for s in range(seeds)]
        for c in range(len(shares_CQ))
    }
    return SimulatedSplit(picks_N, normal_CSN, shuffle_CSN, gains)


def config_name(configuration: int) -> str:
    """Return a simulated configuration's name."""
    return f"c{configuration:04d}"


def training_outcomes(
    columns: Sequence[Column], simulated: SimulatedSplit, configuration: int, seed: int, k: int
) -> dict[str, Column]:
    """Return a training's outcomes by condition, as if it had k slots.

    Normal and shuffle are simulated. All other conditions are resampled from the real columns; where there are
    several for one condition and k, configurations take turns.
    """
    outcomes = {}
    for name in sorted({c.condition for c in columns}):
        if candidates := [c for c in columns if c.condition == name and c.k in (0, k)]:
            column, picks_N = candidates[configuration % len(candidates)], simulated.picks_N
            outcomes[name] = Column(
                name, k, column.success_E[picks_N], column.nll_E[picks_N], column.answer_E[picks_N]
            )
    for name, success_CSN in (("normal", simulated.normal_CSN), ("shuffle", simulated.shuffle_CSN)):
        success_N = success_CSN[configuration, seed]
        outcomes[name] = Column(name, k, success_N, np.zeros(len(success_N)), np.full(len(success_N), ""))
    return outcomes


# --- judging -------------------------------------------------------------------------------------------------


def gate_rows(outcomes: dict[str, Column], gate: GateConfig) -> pd.DataFrame:
    """Return a training's outcomes as the rows that a gate needs."""
    names = [name for name in gate.conditions if name in outcomes]
    frames = [
        pd.DataFrame({"condition": name, "success": outcomes[name].success_E, "answer": outcomes[name].answer_E})
        for name in names
    ]
    rows = pd.concat([frame.assign(episode=range(len(frame))) for frame in frames], ignore_index=True)
    return rows.assign(config="simulated", k=next(iter(outcomes.values())).k)


def fails_quick_checks(outcomes: dict[str, Column], k: int, gate: GateConfig) -> bool:
    """Return whether a training fails by what is cheap to compute: uncorrected tests, and bare counts.

    Such a training fails the whole gate as well, so the gate need not be applied.
    """
    for criterion in gate.criteria:
        if criterion.kind == "mcnemar" and criterion.applies(k):
            pair = (outcomes[name].success_E for name in criterion.conditions)
            if stats.mcnemar(*pair).p_greater > gate.alpha:
                return True
    counts = {name: (int(c.success_E.sum()), len(c.success_E)) for name, c in outcomes.items()}
    return not judge_counts(counts, k, gate).passed


def anything_passes(trainings: Sequence[dict[str, Column]], k: int, gate: GateConfig) -> bool:
    """Return whether a gate passes any of the trainings that are judged together."""
    if all(fails_quick_checks(outcomes, k, gate) for outcomes in trainings):
        return False
    verdicts = [judge(gate_rows(outcomes, gate), gate) for outcomes in trainings]
    return any(verdict.passed for verdict in holm_corrected(verdicts, gate.alpha))


def judges(gate: GateConfig, k: int) -> bool:
    """Return whether a gate has a criterion for codecs of k slots."""
    return any(criterion.applies(k) for criterion in gate.criteria)


def tests_alone(gate: GateConfig) -> GateConfig:
    """Return a gate without its bars, which keep content-free codecs out only where B alone is weak."""
    semantic = [criterion for criterion in gate.criteria if criterion.gate == "semantic"]
    return gate.model_copy(update={"name": f"{gate.name}, its tests alone", "criteria": semantic})


# --- simulated sweeps ----------------------------------------------------------------------------------------


def simulate_sweep(
    splits: dict[str, list[Column]],
    gates: Sequence[GateConfig],
    configurations: int,
    seeds: int,
    largest: int,
    generator: np.random.Generator,
) -> dict[str, bool]:
    """Simulate one sweep, and return whether anything passes, by reading: each gate at each k, and the naive ones.

    Args:
        splits: Real columns by split.
        gates: Gates, which all judge the same winners.
        configurations: Number of configurations that are tried.
        seeds: Training seeds of each.
        largest: Largest number of episodes in a split.
        generator: Source of randomness.
    """
    shares_CQ = generator.dirichlet(np.full(len(CONTENT_FREE), CONCENTRATION), size=configurations)
    simulated = {
        name: simulate_split(columns, shares_CQ, seeds, min(largest, len(columns[0].success_E)), generator)
        for name, columns in splits.items()
    }
    search, select, confirm = (simulated[name] for name in SPLITS)
    chosen = best_configs(search.gains, Judge().select)
    winners = best_configs({name: select.gains[name] for name in chosen}, Judge().confirm)
    judged = [(c, s) for c in range(configurations) if config_name(c) in winners for s in range(seeds)]
    passes: dict[str, bool] = {}
    for k in judgeable_slots(splits["confirm"]):
        trainings = [training_outcomes(splits["confirm"], confirm, c, s, k) for c, s in judged]
        passes |= {
            f"gate {gate.name}, k = {k}": anything_passes(trainings, k, gate) for gate in gates if judges(gate, k)
        }
    normal_TN = confirm.normal_CSN.reshape(-1, len(confirm.picks_N))
    best_N = normal_TN[normal_TN.sum(axis=1).argmax()]
    p0_N = next(c for c in splits["confirm"] if c.condition == "P0").success_E[confirm.picks_N]
    return passes | {f"naive: {name}": holds(best_N, p0_N) for name, holds in NAIVE.items()}


class PassRate(NamedTuple):
    """The share of simulated sweeps of one size in which one reading passes something."""

    n: int
    configurations: int
    reading: str
    passed: int
    sweeps: int
    rate: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.ci_low:.1f}, {100 * self.ci_high:.1f}]"


def pass_rates(splits: dict[str, list[Column]], sweeps: int, seeds: int, draws: int) -> list[PassRate]:
    """Simulate sweeps of every size and number of configurations, and return the pass rate of every reading.

    Args:
        splits: Real columns by split.
        sweeps: Simulated sweeps of each size.
        seeds: Training seeds of each configuration.
        draws: Seed of the simulation.
    """
    gates = [load_gate(file) for file in sorted(REFERENCE.parent.glob("*.yaml"))]
    gates += [tests_alone(gate) for gate in gates]
    whole = len(splits["confirm"][0].success_E)
    rates = []
    for largest in dict.fromkeys((min(SMALL, whole), whole)):
        for configurations in CONFIGURATIONS:
            generator = np.random.default_rng([draws, largest, configurations])
            started = time.monotonic()
            passes = [
                simulate_sweep(splits, gates, configurations, seeds, largest, generator) for _ in range(sweeps)
            ]
            for reading in passes[0]:
                passed = sum(sweep[reading] for sweep in passes)
                interval = stats.wilson(passed, sweeps)
                rates.append(
                    PassRate(largest, configurations, reading, passed, sweeps, passed / sweeps, *interval)
                )
            seconds = time.monotonic() - started
            print(
                f"n = {largest}, {configurations} configurations: {sweeps} sweeps in {seconds:.0f} s", flush=True
            )
    return rates


def pass_rate_table(rates: Sequence[PassRate]) -> Table:
    """Return a table with a row for each reading and n, and a column for each number of configurations."""
    rows: dict[tuple[str, int], list[str]] = {}
    for rate in rates:
        rows.setdefault((rate.reading, rate.n), []).append(str(rate))
    head = ["Reading", "n", *(f"{c} configuration{'s' * (c > 1)}" for c in CONFIGURATIONS)]
    return [head, *([reading, str(n), *cells] for (reading, n), cells in rows.items())]
