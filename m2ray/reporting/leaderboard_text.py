"""The leaderboard for people: its lines as text, the reason for each verdict, and a legend."""

from __future__ import annotations

from typing import Any

import pandas as pd
from tabulate import tabulate

from m2ray.config.gate_file import GateConfig
from m2ray.judging import statistics as stats

DISPLAYED = ("null", "shuffle", "near", "P0", "constant", "init", "tokens", "P1")


def display_cells(leaderboard: pd.DataFrame) -> list[dict[str, str]]:
    """Return the leaderboard's lines for display, by column; rates in percent, missing values as empty text."""

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
                "split": text(line["split"]),
                "n": text(line["n"]),
                "normal %": rate(line["normal"]),
                "95 % CI": f"[{low}, {high}]" if low else "",
                **{name: rate(line[name]) for name in DISPLAYED},
                "retention": text(line["retention"], "{:.2f}"),
                "score": text(line["score"], "{:+.3f}"),
                "verdict": str(line["verdict"]),
            }
        )
    return lines


def reasons(leaderboard: pd.DataFrame) -> list[str]:
    """Return `config: verdict: reason` for each line; those of single training seeds name the seed."""
    has_several = leaderboard.duplicated("config", keep=False) & leaderboard.seed.notna()
    return [
        f"{line.config}{f', seed {line.seed}' if several else ''}: {line.verdict}: {line.reason}"
        for line, several in zip(leaderboard.itertuples(), has_several, strict=True)
    ]


def leaderboard_text(leaderboard: pd.DataFrame, style: str) -> str:
    """Return the leaderboard as a text table in one of tabulate's styles."""
    return tabulate(display_cells(leaderboard), headers="keys", tablefmt=style, disable_numparse=True)


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """Print the leaderboard and its reasons."""
    print("\n" + leaderboard_text(leaderboard, "simple") + "\n")
    print("\n".join(reasons(leaderboard)))


def legend(leaderboard: pd.DataFrame, gate: GateConfig) -> list[str]:
    """Return paragraphs that explain the columns, the verdicts, and what differences n can detect."""
    lines = [
        "Success rates are in percent of n episodes, with a 95 % interval: Wilson's for one training seed, of the "
        "clustered mean for several. A line with several seeds is the configuration's, over all of them. `score` "
        "is the search objective on the search split: how many nats per answer value the right message gains over "
        "no message or over a wrong one, whichever is less. `retention` is (normal - P0) / (P1 - P0). `constant` "
        "is the best prefix without content: what priming alone can reach. `init` is the same codec untrained, "
        "`near` the right message with one fact changed, `tokens` its first k token embeddings.",
        f"Verdicts are given on the confirm split only, by gate `{gate.name}`; all configurations judged there "
        "are Holm-corrected together. PASS means that B solves more episodes with the right message than without "
        "one or with a wrong one, by the gate's margins, on messages never seen in training. It does not mean that "
        "the codec beats text, or that it works with another receiver or task.",
    ]
    if gate.grades:
        lines.append(
            f"PART: it does, and keeps less than {100 * gate.grades.part_below:.0f} % of the text's gain, or may. "
            f"WHOLE: it does, and is not worse than the full text by more than "
            f"{100 * gate.grades.whole_within:.0f} points. INVALID SETTING: receiver, task or n cannot show "
            "anything, for the reason given."
        )
    if gate.lets_through:
        lines.append(f"Gate `{gate.name}` is known to pass {'; '.join(gate.lets_through)}.")
    if leaderboard.n.notna().any():
        n, discordant = int(leaderboard.n.max()), 0.3
        difference = 100 * stats.minimum_detectable_difference(n, discordant)
        lines.append(
            f"At n = {n}, a paired difference of {difference:.1f} points is detected with 80 % power (one-sided "
            f"McNemar, 5 % before Holm, {100 * discordant:.0f} % of episodes discordant); a lower bound of 30 % "
            f"needs {stats.successes_needed(n, 0.3)} successes."
        )
    return lines
