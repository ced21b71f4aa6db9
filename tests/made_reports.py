"""Results folders and report pages from made-up rows."""

import json

import pandas as pd
from made_rows import GOOD, make_rows

from m2ray.config.axis import Axis
from m2ray.config.gate_file import load_gate
from m2ray.evaluation.rows import KEY, RowStore, failure_row, write_rows
from m2ray.reporting.answers import sampled_answers
from m2ray.reporting.build import config_sections
from m2ray.reporting.document import Figure
from m2ray.reporting.figures.judged_runs import runs_to_draw
from m2ray.reporting.figures.search import EndedTrial
from m2ray.reporting.html import Page, write_page
from m2ray.reporting.leaderboard import judge_runs, make_leaderboard

BAD = {**GOOD, "normal": 0.32, "shuffle": 0.34}
# Normal keeps 0.75 of the text's gain, and as much as the text of three of four facts.
CARRIES = {
    **GOOD,
    **{"constant": 0.3, "mean": 0.3, "init": 0.35, "near": 0.2, "tokens-4": 0.5},
    **{"facts-1": 0.4, "facts-2": 0.55, "facts-3": 0.7, "facts-4": 0.9},
}
PRIMES = {**CARRIES, "normal": 0.32}
GATES = {"scale_gate=0": 0.3, "scale_gate=0.5": 0.6, "scale_gate=1": 0.75}
RAW_AXES = {
    "codec.encoder": {"choice": ["segments", "memory"]},
    "codec.k": {"choice": [4, 8, 16]},
    "training.lr": {"loguniform": [1e-4, 1e-2]},
    "codec.lora_rank": {"int": [2, 10], "when": {"codec.encoder": ["memory"]}},
}
AXES = {key: Axis.model_validate(axis) for key, axis in RAW_AXES.items()}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`</style>&amp;{{ 7 * 7 }}"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


def with_nll(rows, gain):
    """Return rows with an NLL that is `gain` nats lower with the right message than with none."""
    nll = rows.condition.map({"normal": 0.5 - gain, "shuffle": 0.9}).fillna(0.5)
    return rows.assign(nll=nll)


def run_rows(config, shares=GOOD, gain=0.2, seed=0, k=4, splits=("search", "confirm"), params=None, n=200):
    """Return the rows of a training run on some splits."""
    params = json.dumps(params or {"training.lr": 0.001, "codec.encoder": "segments"})
    frames = [
        make_rows({**shares, **GATES}, config, seed, k, split=split, n=60 if split == "search" else n)
        for split in splits
    ]
    rows = with_nll(pd.concat(frames, ignore_index=True), gain)
    return rows.assign(params=rows.config.map(lambda name: params if name else ""))


def content_rows(config, shares=CARRIES, seeds=(0, 1, 2), **settings):
    """Return rows with every condition of the gate `content`; `shares` are those of all seeds, or one for each."""
    by_seed = shares if isinstance(shares, list) else [shares] * len(seeds)
    parts = [run_rows(config, of, seed=seed, n=400, **settings) for seed, of in zip(seeds, by_seed, strict=True)]
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(KEY, ignore_index=True)
    return rows.assign(facts=rows.condition.map({"normal": "1111", "shuffle": "1-10", "P0": "0-01"}).fillna(""))


def results_folder(folder, *parts):
    """Write the rows into a results folder and return it."""
    write_rows(folder / "rows.parquet", pd.concat(parts, ignore_index=True))
    return folder


def searched(scores, chosen=None):
    """Return ended trials with these scores."""
    return [EndedTrial(f"c{i}", (chosen or {}).get(i, {"codec.k": 4}), score) for i, score in enumerate(scores)]


def write_made_page(folder, about=None, figures=(), left_out=(), gate=None):
    """Write the report page of a folder's rows, judged by the reference gate or another, without drawing figures.

    Returns its text, the leaderboard and the sections of its configurations.
    """
    rows, gate = RowStore(folder).read(), gate or load_gate("reference")
    runs = judge_runs(rows, gate)
    leaderboard = make_leaderboard(rows, runs, gate)
    sections = config_sections(folder, runs, leaderboard, gate, about or {})
    answers = sampled_answers(runs_to_draw(runs, leaderboard))
    write_page(folder, Page(about or {}, leaderboard, gate, sections, figures, left_out, answers=answers))
    return (folder / "report.html").read_text(), leaderboard, sections


def hostile_page(folder):
    """Write a page with every kind of leaderboard line, and with `EVIL` wherever a file can hold text."""
    results_folder(
        folder,
        run_rows("winner", gain=0.3),
        run_rows("winner", gain=0.29, seed=1),
        run_rows("loser", BAD, gain=0.01, params={"codec.encoder": EVIL}),
        run_rows("early", gain=-0.1, splits=("search",)),
        failure_row("broken", 8, "easy", EVIL),
    )
    (folder / "confirm-looks.log").write_text(f"2026-01-01 {EVIL}\n")
    (folder / "diagnoses" / "loser-seed-0").mkdir(parents=True)
    failed = {"about": {"config": "loser", "seed": 0}, "failed": EVIL}
    (folder / "diagnoses" / "loser-seed-0" / "diagnosis.json").write_text(json.dumps(failed))
    (folder / "figures").mkdir()
    (folder / "figures" / "one.svg").write_text(SVG)
    about = {
        "command": EVIL,
        "date": EVIL,
        "receiver": {"name": EVIL, "digest": "r"},
        "packages": {EVIL: EVIL},
        "space": {"about": EVIL},
        "changes": [{"date": EVIL, "key": EVIL, "before": EVIL, "now": EVIL}],
    }
    figures = [Figure(f"One {EVIL}", "figures/one.svg"), Figure("Gone", "figures/gone.svg")]
    return write_made_page(folder, about, figures, [f"Two: {EVIL}"])
