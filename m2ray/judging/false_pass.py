"""How often the whole pipeline passes codecs that carry nothing: simulated sweeps on real rows.

python -m m2ray.false_pass results/NAME --out results/false-pass     # two minutes on one core

The rows of a real sweep hold what the receiver answers when its slots carry nothing: no slots, zeros, noise, a
trained constant, the mean prefix, Gaussians. A simulated configuration answers each episode as one of these did
that very episode, in proportions of its own: some prime the receiver well, some badly, some episodes are easy, but
whether the message is the right one makes no difference. Each simulated sweep resamples the episodes of every
split with replacement and then runs the pipeline's own functions: rank on search, choose on select, judge once on
confirm, by every gate in the package, Holm-corrected. Beside it stand the naive readings of the same outcomes: the
best of all trainings on one split, read on that split.

Shapes: C configurations, S training seeds, Q content-free conditions, P real columns of them, E episodes played,
N episodes resampled.
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
from m2ray.judging.gate import holm_corrected, judge, judge_counts
from m2ray.judging.selection import best_configs, gain
from m2ray.util.errors import UserError
from m2ray.util.tables import Table

Bools: TypeAlias = NDArray[np.bool_]


Floats: TypeAlias = NDArray[np.float64]


CONTENT_FREE = ("P0", "null", "constant", "random", "mean", "matched")


NEEDED = ("P0", "P1", "identity", "null", "random")


SPLITS = ("search", "select", "confirm")


CONFIGURATIONS = (1, 8, 64)


SMALL = 50  # episodes of each split: the reference attempt's, beside those of the rows


CONCENTRATION = 0.3  # of the Dirichlet that proportions are drawn from: most configurations are mostly one thing


# What a reader who trusts one number makes of the best training: its outcomes and those without a message.
NAIVE: dict[str, Callable[[Bools, Bools], bool]] = {
    "CI_low(normal) >= 30 %": lambda normal_N, p0_N: stats.wilson(int(normal_N.sum()), len(normal_N)).low >= 0.3,
    "normal >= 30 %": lambda normal_N, p0_N: bool(normal_N.mean() >= 0.3),
    "normal > P0, McNemar p <= 0.05": lambda normal_N, p0_N: stats.mcnemar(normal_N, p0_N).p_greater <= 0.05,
}


class Column(NamedTuple):
    """Outcomes of a real split under one condition; k = 0 where it depends on none."""

    condition: str
    k: int
    success_E: Bools
    nll_E: Floats
    answer_E: NDArray[np.object_]


class Drawn(NamedTuple):
    """A simulated split: which episodes it holds, and the outcomes of all trainings on them."""

    picks_N: NDArray[np.int64]
    normal_CSN: Bools
    shuffle_CSN: Bools
    gains: dict[str, list[float]]  # by configuration, of each training seed


def columns_of(rows: pd.DataFrame, split: str) -> list[Column]:
    """What was played on a split, of each training the last checkpoint.

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
            raise UserError(f"rows: split {split}, condition {condition}: lacks episodes; play all on the same")
        outcomes = (group.sort_values("episode")[name].to_numpy() for name in ("success", "nll", "answer"))
        columns.append(Column(str(condition), int(k), *outcomes))
    return columns


def draw(columns: Sequence[Column], shares_CQ: Floats, seeds: int, n: int, dice: np.random.Generator) -> Drawn:
    """Resample a split's episodes, and give every training outcomes under its own and under a wrong message.

    Both come from the same content-free columns of the same episode, in the configuration's proportions: what the
    message says makes no difference, and easy episodes stay easy for all.
    """
    free = [column for column in columns if column.condition in CONTENT_FREE]
    kinds = [column.condition for column in free]
    weights_CP = np.stack([shares_CQ[:, CONTENT_FREE.index(kind)] / kinds.count(kind) for kind in kinds], axis=1)
    bounds_CP = (weights_CP / weights_CP.sum(axis=1, keepdims=True)).cumsum(axis=1)
    picks_N = dice.integers(len(free[0].success_E), size=n)
    success_PE, nll_PE = np.stack([c.success_E for c in free]), np.stack([c.nll_E for c in free])

    def play() -> tuple[Bools, Floats]:
        at_CSN1 = dice.random((len(shares_CQ), seeds, n, 1))
        who_CSN = (at_CSN1 > bounds_CP[:, None, None, :-1]).sum(axis=-1)
        return success_PE[who_CSN, picks_N], nll_PE[who_CSN, picks_N]

    (normal_CSN, nll_CSN), (shuffle_CSN, wrong_CSN) = play(), play()
    p0_N = next(column for column in columns if column.condition == "P0").nll_E[picks_N]
    gains = {
        name_of(c): [gain(nll_CSN[c, s], wrong_CSN[c, s], p0_N) for s in range(seeds)]
        for c in range(len(shares_CQ))
    }
    return Drawn(picks_N, normal_CSN, shuffle_CSN, gains)


def name_of(configuration: int) -> str:
    """A simulated configuration's name."""
    return f"c{configuration:04d}"


def slots_of(columns: Sequence[Column]) -> list[int]:
    """The k of which zeros and noise were played: those that can be judged."""
    null, noise = ({c.k for c in columns if c.condition == name} for name in ("null", "random"))
    return sorted(null & noise)


def played(columns: Sequence[Column], drawn: Drawn, configuration: int, seed: int, k: int) -> dict[str, Column]:
    """What a training with k slots is judged by: simulated for what depends on its message, else resampled."""
    found = {}
    for name in sorted({c.condition for c in columns}):
        if own := [c for c in columns if c.condition == name and c.k in (0, k)]:
            one, at_N = own[configuration % len(own)], drawn.picks_N
            found[name] = Column(name, k, one.success_E[at_N], one.nll_E[at_N], one.answer_E[at_N])
    for name, outcome_CSN in (("normal", drawn.normal_CSN), ("shuffle", drawn.shuffle_CSN)):
        success_N = outcome_CSN[configuration, seed]
        found[name] = Column(name, k, success_N, np.zeros(len(success_N)), np.full(len(success_N), ""))
    return found


def rows_of(trained: dict[str, Column], gate: GateConfig) -> pd.DataFrame:
    """The rows that a gate judges a training by."""
    names = dict.fromkeys(name for criterion in gate.criteria for name in criterion.conditions if name in trained)
    frames = [
        pd.DataFrame({"condition": name, "success": trained[name].success_E, "answer": trained[name].answer_E})
        for name in names
    ]
    rows = pd.concat([frame.assign(episode=range(len(frame))) for frame in frames], ignore_index=True)
    return rows.assign(config="simulated", k=next(iter(trained.values())).k)


def hopeless(trained: dict[str, Column], k: int, gate: GateConfig) -> bool:
    """Whether a training fails by what costs little to look at: tests before any correction, and bare counts."""
    for criterion in gate.criteria:
        if criterion.kind == "mcnemar" and criterion.applies(k):
            pair = (trained[name].success_E for name in criterion.conditions)
            if stats.mcnemar(*pair).p_greater > gate.alpha:
                return True
    counts = {name: (int(c.success_E.sum()), len(c.success_E)) for name, c in trained.items()}
    return not judge_counts(counts, k, gate).passed


def anything_passes(trainings: Sequence[dict[str, Column]], k: int, gate: GateConfig) -> bool:
    """Whether a gate passes any of the trainings judged together."""
    if all(hopeless(trained, k, gate) for trained in trainings):
        return False
    verdicts = [judge(rows_of(trained, gate), gate) for trained in trainings]
    return any(verdict.passed for verdict in holm_corrected(verdicts, gate.alpha))


def simulate(
    splits: dict[str, list[Column]],
    gates: Sequence[GateConfig],
    configurations: int,
    seeds: int,
    largest: int,
    dice: np.random.Generator,
) -> dict[str, bool]:
    """One sweep: whether anything passes, by gate and k, and what the naive readings say.

    Args:
        splits: Real columns by split.
        gates: Each judges the same winners.
        configurations: How many are tried.
        seeds: Training seeds of each.
        largest: Episodes of a split at the most.
        dice: Randomness.
    """
    shares_CQ = dice.dirichlet(np.full(len(CONTENT_FREE), CONCENTRATION), size=configurations)
    drawn = {
        name: draw(columns, shares_CQ, seeds, min(largest, len(columns[0].success_E)), dice)
        for name, columns in splits.items()
    }
    search, select, confirm = (drawn[name] for name in SPLITS)
    chosen = best_configs(search.gains, Judge().select)
    winners = best_configs({name: select.gains[name] for name in chosen}, Judge().confirm)
    judged = [(c, s) for c in range(configurations) if name_of(c) in winners for s in range(seeds)]
    found: dict[str, bool] = {}
    for k in slots_of(splits["confirm"]):
        trainings = [played(splits["confirm"], confirm, c, s, k) for c, s in judged]
        found |= {
            f"gate {gate.name}, k = {k}": anything_passes(trainings, k, gate) for gate in gates if judges(gate, k)
        }
    trainings_TN = confirm.normal_CSN.reshape(-1, len(confirm.picks_N))
    best_N = trainings_TN[trainings_TN.sum(axis=1).argmax()]
    p0_N = next(c for c in splits["confirm"] if c.condition == "P0").success_E[confirm.picks_N]
    return found | {f"naive: {name}": read(best_N, p0_N) for name, read in NAIVE.items()}


def judges(gate: GateConfig, k: int) -> bool:
    """Whether a gate has a criterion for codecs of k slots."""
    return any(criterion.applies(k) for criterion in gate.criteria)


def tests_alone(gate: GateConfig) -> GateConfig:
    """A gate without its bars, which keep idle codecs out only where the receiver alone is weak."""
    semantic = [criterion for criterion in gate.criteria if criterion.gate == "semantic"]
    return gate.model_copy(update={"name": f"{gate.name}, its tests alone", "criteria": semantic})


class Line(NamedTuple):
    """How often one reading passes something, over simulated sweeps of one size."""

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


def lines_of(splits: dict[str, list[Column]], sweeps: int, seeds: int, draws: int) -> list[Line]:
    """Simulate every size and number of configurations: one line a reading, with its rate and interval."""
    gates = [load_gate(file) for file in sorted(REFERENCE.parent.glob("*.yaml"))]
    gates += [tests_alone(gate) for gate in gates]
    whole = len(splits["confirm"][0].success_E)
    lines = []
    for largest in dict.fromkeys((min(SMALL, whole), whole)):
        for configurations in CONFIGURATIONS:
            dice = np.random.default_rng([draws, largest, configurations])
            started = time.monotonic()
            found = [simulate(splits, gates, configurations, seeds, largest, dice) for _ in range(sweeps)]
            for reading in found[0]:
                passed = sum(sweep[reading] for sweep in found)
                interval = stats.wilson(passed, sweeps)
                lines.append(Line(largest, configurations, reading, passed, sweeps, passed / sweeps, *interval))
            seconds = time.monotonic() - started
            print(
                f"n = {largest}, {configurations} configurations: {sweeps} sweeps in {seconds:.0f} s", flush=True
            )
    return lines


def table(lines: Sequence[Line]) -> Table:
    """A row a reading and n, a column a number of configurations."""
    rows: dict[tuple[str, int], list[str]] = {}
    for line in lines:
        rows.setdefault((line.reading, line.n), []).append(str(line))
    head = ["Reading", "n", *(f"{c} configuration{'s' * (c > 1)}" for c in CONFIGURATIONS)]
    return [head, *([reading, str(n), *cells] for (reading, n), cells in rows.items())]
