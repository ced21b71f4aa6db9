"""A verdict as the reference report shows it: tables and lines, of counts and of rows."""

from __future__ import annotations

import math

import pandas as pd

from m2ray.config.gate_file import GateConfig
from m2ray.evaluation.rows import FAILED, outcomes
from m2ray.judging import statistics as stats
from m2ray.judging.gate import FAIL, NOT_APPLICABLE, PASS, Counts, Verdict, compare_to_bar, is_below, success_rate
from m2ray.util.tables import Table, print_table
from m2ray.util.text import percent


def primary_table(counts: Counts, k: int, gate: GateConfig) -> Table:
    """Condition, success rate, what is expected, status: the reference report's first table.

    Statuses: normal FAILs below its bar. Null and random are OK within 5 points of P0, slightly high or low where
    only the intervals still overlap, else FAIL. Shuffle is BACKWARDS above normal, OK below P0 (or at the gate's
    floor, where P0 is no higher), else FAIL.
    """
    bars = [c for c in gate.criteria if c.kind == "lower_bound" and c.condition == "normal" and c.applies(k)]
    below = [c for c in gate.criteria if c.kind == "below" and (c.condition, c.against) == ("shuffle", "P0")]
    floor = max((c.floor for c in below), default=0.0)
    shares = {name: success_rate(count) for name, count in counts.items()}
    table = [["Condition", "Success Rate", "Expected", "Status"]]
    for name in ("normal", "null", "random", "shuffle"):
        if name not in counts or "P0" not in counts:
            continue
        near = f"~{100 * shares['P0']:.0f}%"
        expected, status = near, ""
        if name == "normal":
            known = [c.bar(shares) for c in bars if {*c.above, *c.share_of} <= set(shares)]
            expected, status = NOT_APPLICABLE, NOT_APPLICABLE
            if known:
                expected = f"> {100 * max(known):.0f}%"
                status = "OK" if stats.wilson(*counts[name], gate.alpha).low >= max(known) else FAIL
        elif name == "shuffle":
            expected = f"<= {100 * floor:.0f}%" if shares["P0"] <= floor else f"< {100 * shares['P0']:.0f}%"
            status = "OK" if is_below(shares[name], shares["P0"], floor) else FAIL
            status = "BACKWARDS" if shares[name] > shares.get("normal", 1.0) else status
        else:
            off = shares[name] - shares["P0"]
            apart = not stats.wilson(*counts[name], gate.alpha).overlaps(stats.wilson(*counts["P0"], gate.alpha))
            status = "OK" if abs(off) <= 0.05 + 1e-9 else f"Slightly {'high' if off > 0 else 'low'}"
            status = FAIL if apart else status
        table.append([name.capitalize(), format_count(counts[name]), expected, status])
    return table


def summary_table(counts: Counts, alpha: float = stats.ALPHA) -> Table:
    """Condition, success rate, confidence interval: the reference report's second table."""
    order = ["normal", "null", "random", "shuffle", "P0", "P1", "constant", "mean", "matched", "identity"]
    names = [name for name in order if name in counts] + sorted(
        name for name in counts if name not in order and not name.startswith("scale_gate=") and name != FAILED
    )
    table = [["Condition", "Success Rate", f"{100 * (1 - alpha):.0f}% CI"]]
    for name in names:
        low, high = stats.wilson(*counts[name], alpha)
        label = {"P0": "P0 baseline", "P1": "P1 full text"}.get(name, name[0].upper() + name[1:])
        table.append([label, percent(success_rate(counts[name])), f"[{percent(low)}, {percent(high)}]"])
    return table


def format_count(count: tuple[int, int]) -> str:
    """`22.0% (11/50)`."""
    return f"{percent(success_rate(count))} ({count[0]}/{count[1]})"


def scale_gate_table(counts: Counts) -> Table:
    """Success against scale_gate."""
    curve = sorted(
        (float(name.partition("=")[2]), count) for name, count in counts.items() if name.startswith("scale_gate=")
    )
    if not curve:
        return []
    peak = max(success_rate(count) for _, count in curve)
    rows = [
        [f"{gate:.2f}", format_count(count), "Peak" if success_rate(count) == peak else ""]
        for gate, count in curve
    ]
    return [["scale_gate", "Success Rate", "Notes"], *rows]


def communication_matters(rows: pd.DataFrame) -> tuple[int, int, int]:
    """The communication-matters subset: (solved by normal, failed by null, all episodes)."""
    normal, null = outcomes(rows, ["normal", "null"])
    return int((normal & ~null).sum()), int((~null).sum()), len(null)


def bar_lines(verdict: Verdict, gate: GateConfig) -> list[str]:
    """The criterion on normal in the reference report's words, and what this n can and cannot show."""
    shares = {name: success_rate(count) for name, count in verdict.counts.items()}
    titles = {"gate1": "Gate 1", "gate2": "Gate 2", "validity": "Validity", "semantic": "Semantic"}
    lines = []
    for c in gate.criteria:
        if c.kind != "lower_bound" or c.condition != "normal" or not c.applies(verdict.k):
            continue
        bar, n = c.bar(shares), verdict.counts["normal"][1]
        low = stats.wilson(*verdict.counts["normal"], gate.alpha).low
        needed = stats.successes_needed(n, bar, gate.alpha)
        detectable = stats.minimum_detectable_rate(n, bar, alpha=gate.alpha)
        outcome = PASS if low >= bar else FAIL
        lines += [
            f"{titles[c.gate]} Criterion: CI_low >= {percent(bar)}",
            f"Result: CI_low = {compare_to_bar(low, bar)} -> {outcome}",
            f"Needed at n = {n}: {needed if needed is not None else 'more than all'} successes"
            + (f" ({percent(needed / n)})" if needed is not None else ""),
            f"Power: a true rate of {percent(detectable)} or more clears the bar with a chance of 80%"
            if not math.isnan(detectable)
            else "Power: no true rate clears the bar at this n",
        ]
    return lines


def retention_line(kept: stats.Estimate) -> str:
    """Retention with its interval, or why it has none."""
    if math.isnan(kept.value):
        return "not defined: P1 does not beat P0"
    if math.isnan(kept.low):
        return f"{kept.value:.2f}, no bounded interval: that of P1 - P0 touches 0"
    return f"{kept.value:.2f} [{kept.low:.2f}, {kept.high:.2f}]"


def print_verdict(verdict: Verdict, gate: GateConfig, rows: pd.DataFrame | None, title: str) -> None:
    """The verdict tables of the reference report; from rows also what counts cannot give."""
    print(f"# {title}")
    print_table(primary_table(verdict.counts, verdict.k, gate), "Primary Metrics")
    print_table(summary_table(verdict.counts, gate.alpha), "Statistical Summary")
    print("\n" + "\n".join(bar_lines(verdict, gate)))
    if rows is not None:
        if curve := scale_gate_table(verdict.counts):
            print_table(curve, "Gate Sweep Results")
        if {"normal", "null"} <= set(verdict.counts):
            solved, hard, n = communication_matters(rows)
            print(f"\nCommunication-Matters Subset\n\n- Episodes where Null fails: {hard}/{n}")
            if hard:
                print(f"- Normal success on Null-failing episodes: {percent(solved / hard)} ({solved}/{hard})")
        if verdict.retention is not None:
            print(f"\nRetention (normal - P0) / (P1 - P0): {retention_line(verdict.retention)}")
    table = [["Gate", "Criterion", "Finding", "Status"]]
    table += [[f.gate, f.name, f.sentence, PASS if f.passed else FAIL] for f in verdict.findings]
    print_table(table, "Criteria")
    print(f"\nVerdict: {verdict.verdict} - {verdict.reason}\n")
