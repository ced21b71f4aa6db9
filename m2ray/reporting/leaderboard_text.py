"""The leaderboard for people: its lines as text, the reason for each verdict, and a legend."""

from __future__ import annotations

import itertools
import re
import string
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd
from tabulate import tabulate

from m2ray.config.gate_file import GateConfig
from m2ray.judging import statistics as stats
from m2ray.reporting.leaderboard import UNITS, seed_lines
from m2ray.util.tables import terminal_text, terminal_width

SAMPLED_NAME = re.compile(r".+-(k\d+)-[0-9a-f]{8}(?:-\d+)?")  # of a sampled configuration: `plan.config_name`
# Columns that a narrow terminal goes without, the first to go first; all are in leaderboard.md.
DROPPED_FIRST = (
    *("null", "init", "tokens", "constant", "near", "split", "messages", "groups", "score", "k"),
    *("P1", "P0", "shuffle", "n", "seed", "retention", "95 % CI"),
)
DISPLAYED = ("null", "shuffle", "near", "P0", "constant", "init", "tokens", "P1")
MEANINGS = {  # of columns that are left out if no line has a value
    "constant": "`constant` is the best prefix without content: what priming alone can reach.",
    "near": "`near` is the right message with one fact changed.",
    "init": "`init` is the same codec untrained.",
    "tokens": "`tokens` is the text of the message's first k tokens, as their embeddings.",
}


def display_cells(leaderboard: pd.DataFrame) -> list[dict[str, str]]:
    """Return the leaderboard's lines for display, by column; rates in percent, missing values as empty text.

    `seed` is a training seed, or on a configuration's own line all of its seeds.
    """
    conditions = [name for name in DISPLAYED if name not in MEANINGS or _has_values(leaderboard, name)]

    repeated, sized = repeated_units(leaderboard), _has_sizes(leaderboard)

    def text(value: Any, form: str = "{}") -> str:
        return "" if pd.isna(value) else form.format(value)

    def rate(value: Any) -> str:
        return "" if pd.isna(value) else f"{100 * value:.1f}"

    lines = []
    for line in leaderboard.to_dict("records"):
        low, high = rate(line["normal_ci_low"]), rate(line["normal_ci_high"])
        lines.append(
            {
                "config": str(line["config"]),
                "seed": text(line["seed"]) or text(line["seeds"]),
                "k": text(line["k"]),
                **({"bytes": text(line["bytes"], "{:,.0f}")} if sized else {}),
                "split": text(line["split"]),
                "n": text(line["n"]),
                **{name: text(line[name]) for name in repeated},
                "normal %": rate(line["normal"]),
                "95 % CI": f"[{low}, {high}]" if low else "",
                **{name: rate(line[name]) for name in conditions},
                "retention": text(line["retention"], "{:.2f}"),
                "score": text(line["score"], "{:+.3f}"),
                "verdict": str(line["verdict"]),
            }
        )
    return lines


def repeated_units(leaderboard: pd.DataFrame) -> list[str]:
    """Return which of `UNITS` are fewer than the episodes on any line."""
    return [name for name in UNITS if _has_values(leaderboard, name) and (leaderboard[name] < leaderboard.n).any()]


def _has_sizes(leaderboard: pd.DataFrame) -> bool:
    return _has_values(leaderboard, "bytes") and pd.api.types.is_numeric_dtype(leaderboard["bytes"])


def _has_values(leaderboard: pd.DataFrame, name: str) -> bool:
    return name in leaderboard and bool(leaderboard[name].notna().any())


def reasons(leaderboard: pd.DataFrame) -> list[str]:
    """Return `config: verdict: reason` for each line; those of single training seeds name the seed."""
    return [
        f"{line.config}{f', seed {line.seed}' if is_seed else ''}: {line.verdict}: {line.reason}"
        for line, is_seed in zip(leaderboard.itertuples(), seed_lines(leaderboard), strict=True)
    ]


def leaderboard_text(leaderboard: pd.DataFrame, style: str) -> str:
    """Return the leaderboard as a text table in one of tabulate's styles."""
    return tabulate(display_cells(leaderboard), headers="keys", tablefmt=style, disable_numparse=True)


def short_names(leaderboard: pd.DataFrame) -> dict[str, str]:
    """Return short names of sampled configurations, by name: `k16-a` for the first with 16 slots on the board."""
    taken, names = set(leaderboard.config), {}
    for config in dict.fromkeys(leaderboard.config):
        if match := SAMPLED_NAME.fullmatch(config):
            free = (f"{match[1]}-{letters}" for letters in _letters() if f"{match[1]}-{letters}" not in taken)
            names[config] = next(free)
            taken.add(names[config])
    return names


def _letters() -> Iterator[str]:
    """Yield a to z, then aa to zz, and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """Print the leaderboard, no wider than the terminal, and its reasons."""
    width, short = terminal_width(), short_names(leaderboard)
    lines = display_cells(leaderboard)
    cells = [
        [short.get(text, text) if name == "config" else text for name, text in line.items()] for line in lines
    ]
    print("\n" + terminal_text([list(lines[0]), *cells], DROPPED_FIRST) + "\n")
    for config, line in zip(leaderboard.config, reasons(leaderboard), strict=True):
        text = f"{short[config]} = {line}" if config in short else line
        print(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False) if width else text)


def legend(leaderboard: pd.DataFrame, gate: GateConfig) -> list[str]:
    """Return paragraphs that explain the columns, the verdicts, and what differences n can detect."""
    lines = [_explain_columns(leaderboard), *_explain_verdicts(gate)]
    if leaderboard.n.notna().any():
        n, discordant = int(leaderboard.n.max()), 0.3
        difference = 100 * stats.minimum_detectable_difference(n, discordant)
        lines.append(
            f"At n = {n}, a paired difference of {difference:.1f} points is detected with 80 % power (one-sided "
            f"McNemar, 5 % before Holm, {100 * discordant:.0f} % of episodes discordant); a lower bound of 30 % "
            f"needs {stats.successes_needed(n, 0.3)} successes."
        )
    return lines


def _explain_columns(leaderboard: pd.DataFrame) -> str:
    sentences = [
        "Success rates are in percent of n episodes, with a 95 % interval: Wilson's for one training seed, that "
        "of the mean over episodes and seeds for several. A line with several seeds is the configuration's, and "
        "its seeds are below it. `score` is the search objective on the search split: how many nats per answer "
        "value the right message gains over no message or over a wrong one, whichever is less. `retention` is "
        "(normal - P0) / (P1 - P0)."
    ]
    if "groups" in repeated_units(leaderboard):
        sentences.append(
            "`groups` is how many groups the n episodes belong to; intervals and tests count groups, not episodes."
        )
    if "messages" in repeated_units(leaderboard):
        sentences.append(
            "`messages` is how many different messages the n episodes have; where many repeat, intervals and "
            "tests count messages, not episodes, and the reason says so."
        )
    if _has_sizes(leaderboard):
        sentences.append(
            "`bytes` is what the codec sends for a message: its codes, or its vectors in the receiver's precision."
        )
    sentences += [meaning for name, meaning in MEANINGS.items() if _has_values(leaderboard, name)]
    return " ".join(sentences)


def _explain_verdicts(gate: GateConfig) -> list[str]:
    over_seeds = "" if gate.grades else " A configuration passes if each of its training seeds does."
    lines = [
        f"Verdicts are given on the confirm split only, by gate `{gate.name}`; all configurations judged there "
        "are Holm-corrected together. PASS means that B solves more episodes with the right message than without "
        "one or with a wrong one, by the gate's margins, on messages never seen in training. It does not mean "
        f"that the codec beats text, or that it works with another receiver or task.{over_seeds}"
    ]
    if gate.grades:
        lines.append(
            "PART: all criteria hold, but the lower bound of retention is below "
            f"{gate.grades.part_below:g}. WHOLE: all hold, and `normal` is shown to be at most "
            f"{100 * gate.grades.whole_within:g} points below P1. INVALID SETTING: receiver, task or n cannot "
            "show anything, for the reason given; it is not a finding about the codec."
        )
    if gate.lets_through:
        lines.append(f"Gate `{gate.name}` is known to pass {'; '.join(gate.lets_through)}.")
    return lines
