"""Kill processes of a small sweep at random moments, resume it, and compare its rows with an undisturbed run's.

    python tests/fuzz/chaos.py [--rounds N] [--seed S] [--first KIND] [--out FILE]

A sweep on the embedded receiver and a local Ray runs once undisturbed. Then, in each round, one of its processes
is killed, the kinds in `TARGETS` taking turns, and the same command runs again with `--resume` until it ends with
exit code 0. Rows, leaderboard and repeated work are compared with the undisturbed run; exits 1 on any difference.
Run it in a checkout that is not edited meanwhile: a sweep does not resume after its code has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
import yaml
from tabulate import tabulate

from m2ray.cli.runner import DONE
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.util.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from sweeps import Process

SPACE: dict[str, Any] = {
    "name": "chaos",
    "trial": {
        "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2020"},
        "codec": {"k": 8, "width": 32, "layers": 1},
        "training": {"epochs": 2, "epoch_samples": 64, "batch_size": 16, "warmup": 0},
        "evaluation": {
            "conditions": ["normal", "null", "random", "shuffle", "P0", "P1", "identity"],
            "text_bytes": [16],
            "scale_gates": [1.0],
        },
    },
    "points": {"segments": {}, "last-token": {"set": {"codec.encoder": "last_token", "codec.place": "before"}}},
    "judge": {"select": 0, "confirm": 0, "diagnose": 0},
    "resources": {"retries": 1},
}
# Kinds of kills: part of the command line of the process, empty for all processes, and the signal.
TARGETS: dict[str, tuple[str, signal.Signals]] = {
    "driver": ("m2ray.sweep", signal.SIGKILL),
    "training worker": ("ray::ImplicitFunc", signal.SIGKILL),
    "evaluator": ("ray::Evaluator", signal.SIGKILL),
    "GCS": ("gcs_server", signal.SIGKILL),
    "raylet": ("raylet/raylet", signal.SIGKILL),
    "all at once": ("", signal.SIGKILL),
    "notice": ("m2ray.sweep", signal.SIGTERM),  # as a machine of a cloud sends it before it goes away
    "Ctrl-C": ("m2ray.sweep", signal.SIGINT),
}
TRIES, LIMIT_S = 6, 1200.0
JOB = [
    "config",
    "seed",
    "checkpoint",
    "split",
    "decoding",
    "k",
    "place",
]  # the rows of an evaluation job share these


@dataclass
class Round:
    """Effect of one kill."""

    target: str
    at: str
    exits: list[int]
    lost: int
    doubled: int
    repeated: int
    same_leaderboard: bool
    seconds: float
    stderr: list[str]


class Run(Process):
    """One run of the small sweep in a results folder; it resumes what the folder holds."""

    def __init__(self, results: Path) -> None:
        argv = [results.parent / "space.yaml", "--results", results]
        if (results / "chaos" / "sweep.yaml").is_file():
            argv.append("--resume")
        # A driver that has lost Ray gives up after ten seconds instead of a minute.
        env = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        with (results / "stdout").open("w") as out, (results / "stderr").open("w") as err:
            super().__init__(*argv, env=env, stdout=out, stderr=err)

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until something has happened or the run has ended; return True if it has happened."""
        deadline = time.monotonic() + LIMIT_S
        while self.popen.poll() is None and time.monotonic() < deadline:
            if happened():
                return True
            time.sleep(0.02)
        return False

    def send(self, number: signal.Signals, command: str) -> bool:
        """Signal the first process with `command` in its command line, or all; return True if there was one."""
        processes = self.processes(command)
        for process in processes[:1] if command else processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return bool(processes)

    def end(self) -> int:
        """Wait until it ends, kill what is left of it, and return its exit code."""
        self.wait_for(lambda: False)
        self.kill()
        return self.popen.returncode


def failed_to_start_ray(results: Path) -> bool:
    """Return True if the machine was too busy for the last run to start Ray: then nothing was killed."""
    return "no local cluster starts" in (results / "stderr").read_text()


def read_rows(folder: Path) -> tuple[pd.DataFrame, int]:
    """Return the rows of a sweep, and how many rows its single file has beyond one for each key."""
    store = RowStore(folder)
    rows, merged = store.read(), store.whole.is_file() and not store.parts.exists()
    return rows, pq.read_metadata(store.whole).num_rows - len(rows) if merged else 0


def count_jobs(rows: pd.DataFrame) -> int:
    """Return the number of evaluation jobs that the rows are of; `constant` is a job of its own."""
    return len(rows[JOB].assign(constant=rows.condition == "constant").drop_duplicates())


def count_evaluated(results: Path) -> int:
    """Return the number of evaluation jobs that the last run printed as done."""
    return (results / "stdout").read_text().count("] evaluated ")


def last_checkpoint_times(folder: Path) -> dict[str, int]:
    """Return when each training that has ended wrote its last checkpoint, in nanoseconds."""
    journal = folder / "trials.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    names = [json.loads(line)["config"] for line in lines if '"ended"' in line and line.endswith("}")]
    last = f"epoch-{SPACE['trial']['training']['epochs']:02d}"
    files = {name: folder / "checkpoints" / name / "seed-0" / last / "config.json" for name in names}
    return {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}


def milestones(folder: Path) -> dict[str, Callable[[], bool]]:
    """Return milestones that a sweep passes in this order; a kill follows one of them after a random delay."""
    return {
        "start": lambda: True,
        "sweep.yaml": (folder / "sweep.yaml").is_file,
        "first epoch": lambda: any(folder.glob("checkpoints/*/seed-0/epoch-01/config.json")),
        "first rows": lambda: any(folder.glob("rows/*.parquet")),
        "both trained": lambda: len(list(folder.glob("checkpoints/*/seed-0/epoch-02/config.json"))) == 2,
    }


def run_and_kill(results: Path, target: str, milestone: str, delay: float) -> tuple[bool, int]:
    """Run the sweep and kill a process of it some seconds after a milestone.

    Returns:
        True if there was a process to kill, and the exit code.
    """
    run, (command, number) = Run(results), TARGETS[target]
    run.wait_for(milestones(results / "chaos")[milestone])
    due = time.monotonic() + delay
    run.wait_for(lambda: time.monotonic() > due)
    killed = run.wait_for(lambda: run.send(number, command))
    return killed, run.end()


def run_round(
    target: str, results: Path, expected: pd.DataFrame, leaderboard: bytes, generator: random.Random
) -> Round | None:
    """Run the sweep, kill a process, and resume it until it ends with exit code 0.

    Args:
        target: Key of `TARGETS`.
        results: Empty results folder.
        expected: Rows of the undisturbed run.
        leaderboard: Content of the undisturbed run's leaderboard.csv.
        generator: Draws the moment.

    Returns:
        None if no process was left to kill when the moment came.
    """
    folder, start = results / "chaos", time.monotonic()
    names = list(milestones(folder))
    # Trainers and evaluators exist only after the start, and trainers only until all is trained.
    milestone = generator.choice({"training worker": names[1:3], "evaluator": names[1:]}.get(target, names))
    delay = generator.uniform(0.0, 3.0)
    for _ in range(TRIES):
        killed, code = run_and_kill(results, target, milestone, delay)
        if killed or not failed_to_start_ray(results):
            break
    if not killed:
        return None
    exits, stderr, repeated = [code], [(results / "stderr").read_text()[-500:]], 0
    while exits[-1] != DONE and len(exits) < TRIES:
        rows_before, trained_before = read_rows(folder)[0], last_checkpoint_times(folder)
        exits.append(Run(results).end())
        stderr.append((results / "stderr").read_text()[-500:])
        trained = last_checkpoint_times(folder)
        repeated += sum(trained.get(config) != at for config, at in trained_before.items())
        repeated += max(0, count_jobs(rows_before) + count_evaluated(results) - count_jobs(expected))
    rows, doubled = read_rows(folder)
    merged = rows.merge(expected, on=KEY, how="outer", indicator=True)["_merge"]
    file = folder / "leaderboard.csv"
    return Round(
        target=target,
        at=f"{milestone} + {delay:.1f} s",
        exits=exits,
        lost=int((merged == "right_only").sum()),
        doubled=doubled + int((merged == "left_only").sum()),
        repeated=repeated,
        same_leaderboard=file.is_file() and file.read_bytes() == leaderboard and rows.equals(expected),
        seconds=round(time.monotonic() - start, 1),
        stderr=stderr,
    )


def run_undisturbed(results: Path) -> tuple[pd.DataFrame, bytes]:
    """Run the sweep to its end; return its rows and the content of its leaderboard.csv.

    Raises:
        RuntimeError: It failed.
    """
    results.mkdir()
    start = time.monotonic()
    for _ in range(TRIES):
        code = Run(results).end()
        if code == DONE or not failed_to_start_ray(results):
            break
    if code != DONE:
        raise RuntimeError(f"the undisturbed run ended with {code}: {(results / 'stderr').read_text()}")
    print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
    return read_rows(results / "chaos")[0], (results / "chaos" / "leaderboard.csv").read_bytes()


def run_rounds(count: int, first: str, generator: random.Random) -> list[Round]:
    """Run the rounds and print a line for each.

    Raises:
        RuntimeError: Sweeps kept ending before there was a process to kill.
    """
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "space.yaml").write_text(yaml.safe_dump(SPACE))
        expected, leaderboard = run_undisturbed(root / "undisturbed")
        targets = list(TARGETS)
        for number in range(count):
            target = targets[(targets.index(first) + number) % len(targets)]
            for attempt in range(TRIES):
                results = root / f"round-{number:02d}-{attempt}"
                results.mkdir()
                if result := run_round(target, results, expected, leaderboard, generator):
                    break
            else:
                raise RuntimeError(f"{target}: {TRIES} sweeps ended before there was a process to kill")
            rounds.append(result)
            print(f"{number + 1}: {asdict(result) | {'stderr': ''}}", flush=True)
    return rounds


def main(argv: Sequence[str]) -> int:
    """Run the rounds and print a table and the totals."""
    parser = argparse.ArgumentParser(description="Kill processes of a small sweep at random moments.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--first", choices=list(TARGETS), default="driver", help="kind of the first kill")
    parser.add_argument("--out", type=Path, help="JSON file for every round")
    args = parser.parse_args(argv)
    # A shell makes its background processes ignore Ctrl-C, and the sweeps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rounds = run_rounds(args.rounds, args.first, random.Random(args.seed))
    table = [
        [r.target, r.at, r.exits, r.lost, r.doubled, r.repeated, r.same_leaderboard, r.seconds] for r in rounds
    ]
    headers = ["killed", "at", "exit codes", "rows lost", "doubled", "repeated", "leaderboard equal", "s"]
    print(tabulate(table, headers=headers, tablefmt="github"))
    total = Counter({key: sum(getattr(r, key) for r in rounds) for key in ("lost", "doubled", "repeated")})
    equal = sum(r.same_leaderboard for r in rounds)
    print(
        f"{len(rounds)} rounds: {total['lost']} rows lost, {total['doubled']} doubled, {total['repeated']} "
        f"trainings and jobs repeated, {equal} of {len(rounds)} leaderboards equal"
    )
    if args.out is not None:
        totals = {"rounds": len(rounds), **total, "leaderboards_equal": equal, "seed": args.seed}
        write_json(args.out, {**totals, "each": [asdict(r) for r in rounds]})
    return int(any(total.values()) or equal < len(rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
