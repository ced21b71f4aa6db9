"""Kills at random moments of a small sweep: is a row lost or doubled, is anything repeated, is the board equal?

`python tests/fuzz/chaos.py [--rounds N] [--seed S] [--first KIND] [--out FILE]`. A sweep on the embedded receiver
and a local Ray runs once undisturbed. Then, a round each, a process of it is killed, in turn of each kind in
`TARGETS`, and the same command is given again with `--resume` until it ends with 0. Rows, board and what was
repeated are held against the undisturbed run; exits 1 where anything differs. Run it from a checkout that nobody
edits meanwhile: a sweep whose code has changed is not resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import yaml
from marked import marked
from tabulate import tabulate

from m2ray.cli.runner import DONE
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.util.files import write_json

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
# What is killed: by which its command line is known, and with what.
TARGETS: dict[str, tuple[str, signal.Signals]] = {
    "driver": ("m2ray.sweep", signal.SIGKILL),
    "training worker": ("ray::ImplicitFunc", signal.SIGKILL),
    "evaluator": ("ray::Evaluator", signal.SIGKILL),
    "GCS": ("gcs_server", signal.SIGKILL),
    "raylet": ("raylet/raylet", signal.SIGKILL),
    "all at once": ("", signal.SIGKILL),
    "notice": ("m2ray.sweep", signal.SIGTERM),
    "Ctrl-C": ("m2ray.sweep", signal.SIGINT),
}
TRIES, LIMIT_S = 6, 1200.0
JOB = ["config", "seed", "checkpoint", "split", "decoding", "k", "place"]  # one evaluation job's rows share these


@dataclass
class Round:
    """What one kill did."""

    target: str
    at: str
    exits: list[int]
    lost: int
    doubled: int
    repeated: int
    same_board: bool
    seconds: float
    said: list[str]


class Run:
    """`python -m m2ray.sweep` on the small space with everything that it starts, told apart by its environment."""

    def __init__(self, where: Path, resume: bool) -> None:
        self.mark = f"M2RAY_CHAOS={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        command = [sys.executable, "-m", "m2ray.sweep", str(where.parent / "space.yaml"), "--results", str(where)]
        # A driver whose Ray is gone gives up after ten seconds instead of a minute.
        more = {name: value, "OMP_NUM_THREADS": "1", "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        with (where / "stdout").open("w") as out, (where / "stderr").open("w") as err:
            self.popen = subprocess.Popen(
                [*command, "--resume"] if resume else command,
                stdout=out,
                stderr=err,
                env={**os.environ, **more},
                start_new_session=True,
            )

    def processes(self, known_by: str) -> list[int]:
        """Those of its processes, the youngest last, whose command line begins with some words."""
        found = []
        for folder in marked(self.mark):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if known_by in " ".join(words[:3]):  # further ones name sockets of other processes
                    found.append(int(folder.name))
        return sorted(found)

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Until it ends or something has happened; whether that has happened."""
        deadline = time.monotonic() + LIMIT_S
        while self.popen.poll() is None and time.monotonic() < deadline:
            if until():
                return True
            time.sleep(0.02)
        return False

    def kill(self, known_by: str, number: signal.Signals) -> bool:
        """Signal the first process that is known so, or all of them; whether there was one."""
        pids = self.processes(known_by)
        for pid in pids if not known_by else pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)

    def end(self) -> int:
        """Wait for its end and see to it that nothing is left; the exit code."""
        self.wait()
        while self.popen.poll() is None or self.processes(""):
            self.kill("", signal.SIGKILL)
            time.sleep(0.1)
        return self.popen.returncode


def started(where: Path) -> Run:
    """The sweep, gone on with where it had begun."""
    return Run(where, resume=(where / "chaos" / "sweep.yaml").is_file())


def starved(where: Path) -> bool:
    """Whether the last run found the machine too busy to start Ray on: nothing was disturbed then."""
    return "no local cluster starts" in (where / "stderr").read_text()


def rows_on_disk(folder: Path) -> tuple[pd.DataFrame, int]:
    """The rows of a sweep, and how many more its one file of them holds than there are keys."""
    store = RowStore(folder)
    rows, merged = store.read(), store.whole.is_file() and not store.parts.exists()
    return rows, pq.read_metadata(store.whole).num_rows - len(rows) if merged else 0


def jobs_in(rows: pd.DataFrame) -> int:
    """Evaluation jobs whose rows are there."""
    return len(rows[JOB].drop_duplicates())


def evaluated(where: Path) -> int:
    """Evaluation jobs that the last run says it has done."""
    return (where / "stdout").read_text().count("] evaluated ")


def finished(folder: Path) -> dict[str, int]:
    """When each finished training wrote its last checkpoint."""
    journal = folder / "trials.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    names = [json.loads(line)["config"] for line in lines if '"ended"' in line and line.endswith("}")]
    last = f"epoch-{SPACE['trial']['training']['epochs']:02d}"
    files = {name: folder / "checkpoints" / name / "seed-0" / last / "config.json" for name in names}
    return {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}


def moments(folder: Path) -> dict[str, Callable[[], bool]]:
    """Marks that a sweep passes one after the other; a kill falls a random time behind one of them."""
    return {
        "start": lambda: True,
        "sweep.yaml": (folder / "sweep.yaml").is_file,
        "first epoch": lambda: any(folder.glob("checkpoints/*/seed-0/epoch-01/config.json")),
        "first rows": lambda: any(folder.glob("rows/*.parquet")),
        "both trained": lambda: len(list(folder.glob("checkpoints/*/seed-0/epoch-02/config.json"))) == 2,
    }


def strike(where: Path, name: str, mark: str, delay: float) -> tuple[bool, int]:
    """Run the sweep, kill something of it some seconds behind a mark: whether it was there, the exit code."""
    run, (known_by, number) = started(where), TARGETS[name]
    run.wait(moments(where / "chaos")[mark])
    due = time.monotonic() + delay
    run.wait(lambda: time.monotonic() > due)
    hit = run.wait(lambda: run.kill(known_by, number))
    return hit, run.end()


def disturb(name: str, where: Path, whole: pd.DataFrame, board: bytes, dice: random.Random) -> Round | None:
    """One round: a run, a kill, and the same command again until it ends well.

    None where there was nothing left to kill when the moment came.
    """
    folder, began = where / "chaos", time.monotonic()
    marks = list(moments(folder))
    # A trainer or an evaluator works only behind the start, and a trainer has gone when all is trained.
    mark = dice.choice({"training worker": marks[1:3], "evaluator": marks[1:]}.get(name, marks))
    delay = dice.uniform(0.0, 3.0)
    for _ in range(TRIES):
        hit, code = strike(where, name, mark, delay)
        if hit or not starved(where):
            break
    if not hit:
        return None
    exits, repeated, said = [code], 0, [(where / "stderr").read_text()[-500:]]
    while exits[-1] != DONE and len(exits) < TRIES:
        before, trained = rows_on_disk(folder)[0], finished(folder)
        exits.append(started(where).end())
        said.append((where / "stderr").read_text()[-500:])
        after = finished(folder)
        repeated += sum(after.get(config) != trained[config] for config in trained)
        repeated += max(0, jobs_in(before) + evaluated(where) - jobs_in(whole))
    rows, doubled = rows_on_disk(folder)
    merged = rows.merge(whole, on=KEY, how="outer", indicator=True)
    lost = int((merged["_merge"] == "right_only").sum())
    leaderboard = folder / "leaderboard.csv"
    return Round(
        target=name,
        at=f"{mark} + {delay:.1f} s",
        exits=exits,
        lost=lost,
        doubled=doubled + int((merged["_merge"] == "left_only").sum()),
        repeated=repeated,
        same_board=leaderboard.is_file() and leaderboard.read_bytes() == board and rows.equals(whole),
        seconds=round(time.monotonic() - began, 1),
        said=said,
    )


def main(argv: Sequence[str]) -> int:
    """Run the rounds, print a line a round and the totals."""
    parser = argparse.ArgumentParser(description="Kills at random moments of a small sweep.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--first", choices=list(TARGETS), default="driver", help="which kind of kill begins")
    parser.add_argument("--out", type=Path, help="JSON: every round")
    args = parser.parse_args(argv)
    # A shell that starts this in the background has it ignore Ctrl-C, and the sweeps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dice, rounds = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "space.yaml").write_text(yaml.safe_dump(SPACE))
        (root / "whole").mkdir()
        began = time.monotonic()
        for _ in range(TRIES):
            if not (code := started(root / "whole").end()) or not starved(root / "whole"):
                break
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {(root / 'whole' / 'stderr').read_text()}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        whole, _ = rows_on_disk(root / "whole" / "chaos")
        board = (root / "whole" / "chaos" / "leaderboard.csv").read_bytes()
        names = list(TARGETS)
        for number in range(args.rounds):
            name = names[(names.index(args.first) + number) % len(names)]
            made = None
            for again in range(TRIES):
                where = root / f"round-{number:02d}-{again}"
                where.mkdir()
                if made := disturb(name, where, whole, board, dice):
                    break
            if made is None:
                raise RuntimeError(f"{name}: {TRIES} sweeps had ended before there was one to kill")
            rounds.append(made)
            print(f"{number + 1}: {asdict(rounds[-1]) | {'said': ''}}", flush=True)
    table = [[r.target, r.at, r.exits, r.lost, r.doubled, r.repeated, r.same_board, r.seconds] for r in rounds]
    headers = ["killed", "at", "exit codes", "rows lost", "doubled", "repeated", "board equal", "s"]
    print(tabulate(table, headers=headers, tablefmt="github"))
    total = Counter({key: sum(getattr(r, key) for r in rounds) for key in ("lost", "doubled", "repeated")})
    equal = sum(r.same_board for r in rounds)
    print(
        f"{len(rounds)} rounds: {total['lost']} rows lost, {total['doubled']} doubled, {total['repeated']} cells "
        f"repeated, {equal} of {len(rounds)} boards equal"
    )
    if args.out is not None:
        whole_ = {"rounds": len(rounds), **total, "boards_equal": equal, "seed": args.seed}
        write_json(args.out, {**whole_, "each": [asdict(r) for r in rounds]})
    return int(any(total.values()) or equal < len(rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
