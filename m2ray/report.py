"""Leaderboard, attempt reports and pictures, from rows and nothing else.

`python -m m2ray.report results/NAME` rebuilds all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from m2ray import gate as judging
from m2ray import stats
from m2ray.command import DONE, Parser, UserError, run
from m2ray.gate import GateConfig, Verdict, load_gate, percent
from m2ray.rows import FAILED, RowStore, judged_rows, outcomes, paired_gain
from m2ray.state import write_atomic

SPLITS = ("confirm", "select", "search")  # most telling first
NOT_CONFIRMED, FAILED_RUN = "not confirmed", "failed"
SHOWN = ("normal", "null", "random", "shuffle", "P0", "P1", "constant", "matched")


class Attempt:
    """One configuration and training seed, on the most telling split it was played on."""

    def __init__(self, rows: pd.DataFrame, config: str, seed: int) -> None:
        own = rows[(rows.config == config) & (rows.seed == seed)]
        self.config, self.seed = config, seed
        self.split = next((s for s in SPLITS if (own.split == s).any()), str(own.split.iloc[0]))
        self.rows = judged_rows(rows, config, seed, self.split)
        self.k = int(own.k.iloc[0])
        self.checkpoint = str(self.rows[self.rows.config != ""].checkpoint.iloc[0])
        self.params: dict[str, Any] = json.loads(own.params.iloc[0] or "{}")
        self.score = math.nan
        if (own.split == "search").any():
            self.score = paired_gain(judged_rows(rows, config, seed, "search"))


def attempts_of(rows: pd.DataFrame) -> list[Attempt]:
    """Every (configuration, seed) that has outcomes."""
    played = rows[(rows.config != "") & (rows.condition != FAILED)]
    cells = played[["config", "seed"]].drop_duplicates().sort_values(["config", "seed"])
    return [Attempt(rows, config, seed) for config, seed in cells.itertuples(index=False, name=None)]


def judged(attempts: Sequence[Attempt], gate: GateConfig) -> dict[str, Verdict]:
    """Verdicts by checkpoint; those of one split are Holm-corrected together."""
    verdicts: dict[str, Verdict] = {}
    for split in {attempt.split for attempt in attempts}:
        group = [attempt for attempt in attempts if attempt.split == split]
        corrected = judging.holm([judging.judge(attempt.rows, gate) for attempt in group], gate.alpha)
        verdicts |= {attempt.checkpoint: verdict for attempt, verdict in zip(group, corrected, strict=True)}
    return verdicts


def leaderboard(rows: pd.DataFrame, gate: GateConfig) -> pd.DataFrame:
    """One line a configuration and training seed; passes first, then by search score.

    A verdict of PASS or FAIL is given on the confirm split only.
    """
    attempts = attempts_of(rows)
    verdicts = judged(attempts, gate)
    ranking = sorted((a.score for a in attempts if not math.isnan(a.score)), reverse=True)
    lines = []
    for attempt in attempts:
        verdict = verdicts[attempt.checkpoint]
        counts = verdict.counts
        n = counts["normal"][1]
        low, high = stats.wilson(*counts["normal"], gate.alpha)
        kept = verdict.retention or stats.Estimate(math.nan, math.nan, math.nan)
        confirmed = attempt.split == "confirm"
        place = ranking.index(attempt.score) + 1 if attempt.score in ranking else 0
        reason = verdict.reason
        if not confirmed:
            reason = (
                f"not selected: score {attempt.score:+.3f} nats, {place} of {len(ranking)} on search; " + reason
            )
        line: dict[str, Any] = {"config": attempt.config, "seed": attempt.seed, "k": attempt.k}
        line |= attempt.params
        line |= {"split": attempt.split, "n": n, "score": round(attempt.score, 4)}
        line |= {"normal_ci_low": round(low, 4), "normal_ci_high": round(high, 4)}
        line |= {name: round(judging.share(counts[name]), 4) if name in counts else math.nan for name in SHOWN}
        line |= {
            "retention": round(kept.value, 4),
            "retention_ci_low": round(kept.low, 4),
            "retention_ci_high": round(kept.high, 4),
            "gate1": verdict.gate("gate1"),
            "gate2": verdict.gate("gate2"),
            "verdict": verdict.verdict if confirmed else NOT_CONFIRMED,
            "reason": reason,
            "checkpoint": attempt.checkpoint,
        }
        lines.append(line)
    for failed in rows[rows.condition == FAILED].drop_duplicates("config", keep="last").itertuples():
        lines.append({"config": failed.config, "k": failed.k, "verdict": FAILED_RUN, "reason": failed.answer})
    if not lines:
        raise UserError("rows: no configuration has any outcome; run the sweep first")
    board = pd.DataFrame(lines)
    order = {judging.PASS: 0, judging.FAIL: 1, NOT_CONFIRMED: 2, FAILED_RUN: 3}
    keys = pd.DataFrame(
        {"rank": board.verdict.map(order), "score": -board.get("score", 0.0), "config": board.config}
    )
    return board.loc[keys.sort_values(["rank", "score", "config"], kind="stable").index].reset_index(drop=True)


def cells(board: pd.DataFrame) -> list[dict[str, str]]:
    """The board for people: shares in percent, the interval of normal, figures that are missing left blank."""

    def share(value: Any) -> str:
        return "" if pd.isna(value) else f"{100 * value:.1f}"

    shown = []
    for line in board.to_dict("records"):
        failed = line["verdict"] == FAILED_RUN
        interval = "" if failed else f"[{share(line['normal_ci_low'])}, {share(line['normal_ci_high'])}]"
        kept = line.get("retention")
        shown.append(
            {
                "config": str(line["config"]),
                "seed": "" if failed else str(int(line["seed"])),
                "k": str(int(line["k"])),
                "split": "" if failed else str(line["split"]),
                "n": "" if failed else str(int(line["n"])),
                "normal %": share(line.get("normal")),
                "95 % CI": interval,
                **{f"{name}": share(line.get(name)) for name in ("null", "random", "shuffle", "P0", "P1")},
                "constant": share(line.get("constant")),
                "retention": "" if pd.isna(kept) else f"{kept:.2f}",
                "score": "" if pd.isna(line.get("score")) else f"{line['score']:+.3f}",
                "verdict": str(line["verdict"]),
            }
        )
    return shown


def reasons(board: pd.DataFrame) -> list[str]:
    """A sentence for every line of the board."""
    return [f"{line.config}: {line.verdict}: {line.reason}" for line in board.itertuples()]


def board_text(board: pd.DataFrame, style: str) -> str:
    """The board as a table in one of tabulate's styles."""
    from tabulate import tabulate

    return tabulate(cells(board), headers="keys", tablefmt=style, disable_numparse=True)


def print_board(board: pd.DataFrame) -> None:
    """The board and its reasons on the terminal."""
    print("\n" + board_text(board, "simple") + "\n")
    print("\n".join(reasons(board)))


def legend(board: pd.DataFrame, gate: GateConfig) -> list[str]:
    """What the columns mean, and what this many episodes can show."""
    n = int(board.n.max())
    discordant = 0.3
    found = 100 * stats.minimum_detectable_difference(n, discordant)
    return [
        "Success in percent of n episodes; the interval is Wilson's, 95 %. `score` is what the searcher saw: nats "
        "per answer value that the right message is worth over no message or a wrong one, whichever is less, on "
        "the search split. `retention` is (normal - P0) / (P1 - P0). `constant` is the best content-free prefix: "
        "what mere priming can reach.",
        f"PASS and FAIL are given on the confirm split only, by gate `{gate.name}`, with the tests Holm-corrected "
        "over all configurations judged there. PASS: B solves more with this message than without or with a "
        "wrong one, by the margins of the gate, on messages never seen in training. It does not say that the "
        "codec beats text, nor that it works on another receiver or task.",
        f"At n = {n}, a paired difference of {found:.1f} points is found with a chance of 80 % (one-sided McNemar, "
        f"5 %, {100 * discordant:.0f} % of episodes discordant); a lower bound of 30 % takes "
        f"{stats.successes_needed(n, 0.3)} successes.",
    ]


def read_about(folder: Path) -> dict[str, Any]:
    """sweep.yaml, for where rows came from; rows alone decide everything else."""
    file = folder / "sweep.yaml"
    about: dict[str, Any] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return about


def provenance(about: dict[str, Any]) -> list[str]:
    """Where the rows came from, as lines."""
    if not about:
        return []
    receiver = about.get("receiver", {})
    return [
        f"Command: `{about.get('command')}`",
        f"Date: {about.get('date')}; machine: {about.get('machine')}; commit: {about.get('git')}",
        f"Receiver: {receiver.get('name')} (digest {receiver.get('digest')})",
    ]


def looks(folder: Path) -> list[str]:
    """Later looks at the confirm split, which every report must own up to."""
    file = folder / "confirm-looks.log"
    return [f"Looked at confirm again: {line}" for line in file.read_text().splitlines()] if file.is_file() else []


def markdown(table: judging.Table) -> str:
    """A table in Markdown."""
    from tabulate import tabulate

    return tabulate(table[1:], headers=table[0], tablefmt="github", disable_numparse=True)


def attempt_report(attempt: Attempt, verdict: Verdict, gate: GateConfig, board_line: pd.Series) -> str:
    """One training seed of a configuration in the shape of the reference report."""
    parts = [
        f"## Training seed {attempt.seed}, split {attempt.split}, k = {attempt.k}",
        f"**Status:** {board_line.verdict}: {board_line.reason}",
        "### Primary metrics\n\n" + markdown(judging.primary_table(verdict.counts, attempt.k, gate)),
        "### Statistical summary\n\n" + markdown(judging.summary_table(verdict.counts, gate.alpha)),
        "\n".join(f"- {line}" for line in judging.bar_lines(verdict, gate)),
    ]
    if curve := judging.gate_curve(verdict.counts):
        parts.append("### Gate sweep results\n\n" + markdown(curve))
    solved, hard, n = judging.matters(attempt.rows)
    subset = f"- Episodes where null fails: {hard}/{n}\n"
    if hard:
        subset += f"- Normal success on null-failing episodes: {percent(solved / hard)} ({solved}/{hard})"
    parts.append("### Communication-matters subset\n\n" + subset)
    if verdict.retention is not None:
        kept = verdict.retention
        parts.append(
            f"### Retention\n\n{kept.value:.2f} [{kept.low:.2f}, {kept.high:.2f}], paired bootstrap, 95 %"
        )
    normal, p0 = outcomes(attempt.rows, ["normal", "P0"], "nll")
    parts.append(
        "### Nats per answer value\n\n"
        f"normal {normal.mean():.3f}, P0 {p0.mean():.3f}; score on search {attempt.score:+.3f}"
    )
    if verdict.backwards:
        parts.append(
            "### Critical finding: shuffle > normal\n\nA wrong message does better than the right one: the prefix "
            "does not carry what the message says."
        )
    decisions = [["Gate", "Criterion", "Finding", "Decision"]]
    decisions += [
        [f.gate, f.name, f.sentence, judging.PASS if f.passed else judging.FAIL] for f in verdict.findings
    ]
    parts.append("### Decision log\n\n" + markdown(decisions))
    parts.append(f"### Artifacts\n\n- checkpoint digest `{attempt.checkpoint}`")
    return "\n\n".join(parts)


def build(folder: Path, gate: GateConfig | None = None) -> pd.DataFrame:
    """Write leaderboard, attempt reports and pictures of a results folder; returns the leaderboard.

    Raises:
        UserError: no rows there.
    """
    from m2ray import figures

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give results/NAME of a sweep")
    gate = gate or load_gate()
    rows = RowStore(folder).read()
    if rows.empty:
        raise UserError(f"{folder}: holds no rows; run the sweep, or check the folder")
    board = leaderboard(rows, gate)
    about = read_about(folder)
    write_atomic(folder / "leaderboard.csv", board.to_csv(index=False).encode())
    text = [f"# {folder.name}", *provenance(about), *looks(folder), board_text(board, "github")]
    text += ["\n".join(f"- {line}" for line in reasons(board)), *legend(board, gate)]
    write_atomic(folder / "leaderboard.md", ("\n\n".join(text) + "\n").encode())
    attempts = attempts_of(rows)
    verdicts = judged(attempts, gate)
    for config in sorted({attempt.config for attempt in attempts}):
        mine = [attempt for attempt in attempts if attempt.config == config]
        params = [["Parameter", "Value"], ["k", str(mine[0].k)]]
        params += [[key, str(value)] for key, value in mine[0].params.items()]
        report = [f"# {config}", *provenance(about), "## Configuration\n\n" + markdown(params)]
        for attempt in mine:
            line = board[(board.config == config) & (board.seed == attempt.seed)].iloc[0]
            report.append(attempt_report(attempt, verdicts[attempt.checkpoint], gate, line))
        write_atomic(folder / "attempts" / f"{config}.md", ("\n\n".join(report) + "\n").encode())
    figures.draw_all(folder / "figures", attempts, board)
    return board


def wilson_table(rows: pd.DataFrame) -> str:
    """Success per condition with its interval, for rows of one checkpoint."""
    return markdown(judging.summary_table(judging.counts_of(rows)))


def main(argv: Sequence[str]) -> int:
    """Rebuild every table and picture of a results folder."""
    parser = Parser(prog="python -m m2ray.report", description="Rebuild every table and picture from rows.")
    parser.add_argument("folder", type=Path, help="results/NAME")
    parser.add_argument("--gate", type=Path, help="gate YAML; default: the reference's")
    args = parser.parse_args(argv)
    print_board(build(args.folder, load_gate(args.gate)))
    print(f"\nwritten: {args.folder}/leaderboard.csv, leaderboard.md, attempts/, figures/")
    return DONE


if __name__ == "__main__":
    run(main)
