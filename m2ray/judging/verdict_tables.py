"""Tables and lines of a verdict, in the form of the reference report."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from m2ray.config.condition_names import TABLE_ORDER, scale_gate_of
from m2ray.config.gate_file import Criterion, GateConfig, reference_gate
from m2ray.evaluation.row_selection import outcomes
from m2ray.evaluation.rows import FAILED
from m2ray.judging import statistics as stats
from m2ray.judging.arms import Arms, Counts, success_rate
from m2ray.judging.criteria import compare_to_bar, is_below
from m2ray.judging.gate import JudgedConfiguration
from m2ray.judging.row_arms import RowArms
from m2ray.judging.verdict import FAIL, NOT_APPLICABLE, PASS, UNTESTABLE, Verdict
from m2ray.util.tables import Table, print_table
from m2ray.util.text import percent


def primary_table(counts: Counts, k: int, gate: GateConfig) -> Table:
    """Return the reference report's first table: condition, success rate, what is expected, and status.

    Statuses: normal FAILs below its bar. Null and random are OK within 5 points of P0, `slightly high` or
    `slightly low` where only the intervals overlap, else FAIL. Shuffle is BACKWARDS above normal, OK below P0,
    untestable where P0 is at the gate's floor and shuffle is not above it, else FAIL.
    """
    table = [["Condition", "Success Rate", "Expected", "Status"]]
    for name in ("normal", "null", "random", "shuffle"):
        if name not in counts or "P0" not in counts:
            continue
        if name == "normal":
            expected, status = _normal_status(counts, k, gate)
        elif name == "shuffle":
            expected, status = _shuffle_status(counts, gate)
        else:
            expected, status = _idle_status(name, counts, gate.alpha)
        table.append([name.capitalize(), format_count(counts[name]), expected, status])
    return table


def _normal_status(counts: Counts, k: int, gate: GateConfig) -> tuple[str, str]:
    """Return expectation and status of normal: its lower bound reaches the highest bar that can be computed."""
    rates = {name: success_rate(count) for name, count in counts.items()}
    bars = [c.bar(rates) for c in _normal_criteria(gate, k) if {*c.above, *c.share_of} <= set(rates)]
    if not bars:
        return NOT_APPLICABLE, NOT_APPLICABLE
    low = stats.wilson(*counts["normal"], gate.alpha).low
    return f"> {100 * max(bars):.0f}%", "OK" if low >= max(bars) else FAIL


def _shuffle_status(counts: Counts, gate: GateConfig) -> tuple[str, str]:
    """Return expectation and status of shuffle: below P0, and never above normal."""
    below = [c for c in gate.criteria if c.kind == "below" and (c.condition, c.against) == ("shuffle", "P0")]
    floor = max((c.floor for c in below), default=0.0)
    rate, p0 = success_rate(counts["shuffle"]), success_rate(counts["P0"])
    expected = f"<= {100 * floor:.0f}%" if p0 <= floor else f"< {100 * p0:.0f}%"
    if "normal" in counts and rate > success_rate(counts["normal"]):
        return expected, "BACKWARDS"
    if not is_below(rate, p0, floor):
        return expected, FAIL
    return expected, UNTESTABLE if p0 <= floor else "OK"


def _idle_status(name: str, counts: Counts, alpha: float) -> tuple[str, str]:
    """Return expectation and status of null or random: about P0."""
    p0 = success_rate(counts["P0"])
    expected, difference = f"~{100 * p0:.0f}%", success_rate(counts[name]) - p0
    if not stats.wilson(*counts[name], alpha).overlaps(stats.wilson(*counts["P0"], alpha)):
        return expected, FAIL
    if abs(difference) <= 0.05 + 1e-9:
        return expected, "OK"
    return expected, f"Slightly {'high' if difference > 0 else 'low'}"


def _normal_criteria(gate: GateConfig, k: int) -> list[Criterion]:
    """Return the criteria that set a bar for normal."""
    return [c for c in gate.criteria if c.kind == "lower_bound" and c.condition == "normal" and c.applies(k)]


def summary_table(
    counts: Counts, alpha: float = stats.ALPHA, intervals: Mapping[str, stats.Interval] | None = None
) -> Table:
    """Return the reference report's second table: condition, success rate and confidence interval.

    Args:
        counts: Successes and n by condition.
        alpha: Level of the intervals.
        intervals: Intervals of episodes in clusters, by condition, instead of Wilson's.
    """
    names = [name for name in TABLE_ORDER if name in counts] + sorted(
        name for name in counts if name not in TABLE_ORDER and scale_gate_of(name) is None and name != FAILED
    )
    table = [["Condition", "Success Rate", f"{100 * (1 - alpha):.0f}% CI"]]
    for name in names:
        low, high = (intervals or {}).get(name) or stats.wilson(*counts[name], alpha)
        label = {"P0": "P0 baseline", "P1": "P1 full text"}.get(name, name[0].upper() + name[1:])
        table.append([label, percent(success_rate(counts[name])), f"[{percent(low)}, {percent(high)}]"])
    return table


def format_count(count: tuple[int, int]) -> str:
    """Return `22.0% (11/50)`."""
    return f"{percent(success_rate(count))} ({count[0]}/{count[1]})"


def scale_gate_curve(counts: Counts) -> list[tuple[float, tuple[int, int]]]:
    """Return the counts under each scale_gate, by scale."""
    return sorted((gate, count) for name, count in counts.items() if (gate := scale_gate_of(name)) is not None)


def scale_gate_table(counts: Counts) -> Table:
    """Return success against scale_gate, the best marked; an empty table if scale_gate was not varied."""
    curve = scale_gate_curve(counts)
    if not curve:
        return []
    peak = max(success_rate(count) for _, count in curve)
    rows = [
        [f"{gate:.2f}", format_count(count), "Peak" if success_rate(count) == peak else ""]
        for gate, count in curve
    ]
    return [["scale_gate", "Success Rate", "Notes"], *rows]


def communication_matters(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Return the size of the communication-matters subset, the episodes that null fails.

    Returns:
        Episodes of the subset that normal solves, episodes of the subset, all episodes.
    """
    normal, null = (column.astype(bool) for column in outcomes(rows, ["normal", "null"]))
    return int((normal & ~null).sum()), int((~null).sum()), len(null)


def bar_lines(counts: Counts, k: int, gate: GateConfig) -> list[str]:
    """Return the criterion on normal in the reference report's words, and what success rates n can detect."""
    rates = {name: success_rate(count) for name, count in counts.items()}
    titles = {"gate1": "Gate 1", "gate2": "Gate 2", "validity": "Validity", "semantic": "Semantic"}
    lines = []
    for criterion in _normal_criteria(gate, k):
        if not {*criterion.conditions} <= set(rates):
            continue
        bar, n = criterion.bar(rates), counts["normal"][1]
        low = stats.wilson(*counts["normal"], gate.alpha).low
        needed = stats.successes_needed(n, bar, gate.alpha)
        detectable = stats.minimum_detectable_rate(n, bar, alpha=gate.alpha)
        outcome = PASS if low >= bar else FAIL
        lines += [
            f"{titles[criterion.gate]} Criterion: CI_low >= {percent(bar)}",
            f"Result: CI_low = {compare_to_bar(low, bar)} -> {outcome}",
            f"Needed at n = {n}: {needed if needed is not None else 'more than all'} successes"
            + (f" ({percent(needed / n)})" if needed is not None else ""),
            f"Power: a true rate of {percent(detectable)} or more clears the bar with a chance of 80%"
            if not math.isnan(detectable)
            else "Power: no true rate clears the bar at this n",
        ]
    return lines


def retention_line(retention: stats.Estimate) -> str:
    """Return retention with its interval, or why it has none."""
    if math.isnan(retention.value):
        return "not defined: P1 does not beat P0"
    if math.isnan(retention.low):
        return f"{retention.value:.2f}, no bounded interval: that of P1 - P0 touches 0"
    return f"{retention.value:.2f} [{retention.low:.2f}, {retention.high:.2f}]"


def print_verdict(verdict: Verdict, gate: GateConfig, arms: RowArms, title: str) -> None:
    """Print one training seed's verdict in the tables of the reference report, whatever the gate.

    A system without slots has none of these tables: its success rates are printed.
    """
    if verdict.k is None:
        print(f"# {title}")
        print_table(rates_table(arms, gate.alpha), "Success")
    else:
        print_counts(verdict.counts, verdict.k, title, gate.name, arms.intervals(reference_gate().alpha))
        if curve := scale_gate_table(verdict.counts):
            print_table(curve, "Gate Sweep Results")
        if {"normal", "null"} <= set(verdict.counts) and arms.binary:
            solved, hard, n = communication_matters(arms.rows)
            print(f"\nCommunication-Matters Subset\n\n- Episodes where Null fails: {hard}/{n}")
            if hard:
                print(f"- Normal success on Null-failing episodes: {percent(solved / hard)} ({solved}/{hard})")
    if verdict.retention is not None:
        print(f"\nRetention (normal - P0) / (P1 - P0): {retention_line(verdict.retention)}")
    print_decision(verdict, gate)


def print_counts(
    counts: Counts, k: int, title: str, judge: str, intervals: Mapping[str, stats.Interval] | None = None
) -> None:
    """Print the tables of the reference report that counts are enough for.

    Args:
        counts: Successes and n by condition.
        k: Number of slots.
        title: The title.
        judge: The name of the gate that decides.
        intervals: Intervals by condition, of scores and of episodes in clusters; Wilson's for bare counts.
    """
    reference = reference_gate()
    print(f"# {title}")
    print_table(primary_table(counts, k, reference), "Primary Metrics")
    print_table(summary_table(counts, reference.alpha, intervals), "Statistical Summary")
    print("\n" + "\n".join(bar_lines(counts, k, reference)))
    if judge != reference.name:
        print(f"\nThese statuses and results are those of gate reference; gate {judge} decides below.")


def print_configuration(judged: JudgedConfiguration, gate: GateConfig, title: str) -> None:
    """Print the verdict of a configuration over several training seeds, and that of each seed below it."""
    print(f"# {title}")
    print_table(rates_table(judged.arms, gate.alpha), f"Success over {len(judged.seeds)} training seeds")
    print_decision(judged.verdict, gate)
    for seed, verdict in judged.seeds.items():
        print(f"- seed {seed}: {verdict.verdict} - {verdict.reason}")
    print()


def rates_table(arms: Arms, alpha: float) -> Table:
    """Return mean success over training seeds and its interval, per condition."""
    names = [name for name in TABLE_ORDER if name in arms.counts]
    names += sorted(name for name in arms.counts if name not in names and name != FAILED)
    table = [["Condition", "Success Rate", f"{100 * (1 - alpha):.0f}% CI"]]
    for name in names:
        low, high = arms.interval(name, alpha)
        table.append([name, percent(arms.rate(name)), f"[{percent(low)}, {percent(high)}]"])
    return table


def criteria_table(verdict: Verdict) -> Table:
    """Return the finding and the status of each criterion."""
    table = [["Gate", "Criterion", "Finding", "Status"]]
    for result in verdict.results:
        status = result.status if result.decides or result.status == UNTESTABLE else "for information"
        table.append([result.gate, result.name, result.sentence, status])
    return table


def print_decision(verdict: Verdict, gate: GateConfig) -> None:
    """Print the criteria, how much is carried, and the verdict with what it does not cover."""
    print_table(criteria_table(verdict), "Criteria")
    if verdict.amounts:
        print("\nAmount\n\n" + "\n".join(f"- {amount.sentence}" for amount in verdict.amounts))
    if gate.lets_through:
        print(f"\nGate {gate.name} is known to pass {'; '.join(gate.lets_through)}. Judge by gate content.")
    caveats = f" ({verdict.caveats})" if verdict.caveats else ""
    print(f"\nVerdict: {verdict.verdict} - {verdict.reason}{caveats}\n")
