"""Malformed input to every command: is each refused with exit code 2 and one line that names the fix?

`python tests/fuzz/fuzz.py [--cases N] [--seed S] [--only TEXT] [--out FILE]` prints a table and exits 1 on any fault.
Each case runs in a process of its own, forked from one that has everything imported and the receiver loaded, on a
copy of a bench of sound input (`fuzz_bench.py`) that something was done to (`fuzz_cases.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fuzz_bench import Case, make_bench
from fuzz_cases import POOL, cases
from tabulate import tabulate

from m2ray.cli import diagnose, evaluate, gate, report, sweep, train
from m2ray.cli.runner import BAD_INPUT, run_command
from m2ray.reporting import figures
from m2ray.util.files import write_json

COMMANDS = {
    "sweep": sweep.main,
    "train": train.main,
    "evaluate": evaluate.main,
    "gate": gate.main,
    "diagnose": diagnose.main,
    "report": report.main,
}
LIMIT_S, LONGEST = 60.0, 700
# What a user can do about it, somewhere behind what is wrong.
FIX = re.compile(
    r"did you mean|[;,:] (or )?(then )?(use|write|give|add|remove|keep|set|fix|remake|restore|check|choose|start|"
    r"lower|raise|shorten|move|fetch|see|evaluate|run|install|name|put|go on|make|fill|free|save|leave|change)\b"
)
# Words of a library or of the interpreter, not of a message that was meant for people.
RAW = re.compile(
    r"Traceback|NoneType|Input should|object has no|<class|Errno|pydantic|trust_remote_code|\bint\(\)"
)


@dataclass(frozen=True)
class Outcome:
    """What a command made of a case, and what is wrong with that; empty where nothing is."""

    name: str
    argv: str
    code: int
    line: str
    faults: list[str]
    seconds: float


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder, by content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        small = path.is_file() and not path.is_symlink() and about.st_size < 1_000_000
        said = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{about.st_mode} {about.st_size}"
        found[str(path.relative_to(folder))] = said
    return found


def child(case: Case, folder: Path, said: Path) -> None:
    """The command, in a process that is its own; never returns."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    sys.argv = [f"m2ray.{case.argv[0]}", *case.argv[1:]]
    code = 1
    try:
        run_command(COMMANDS[case.argv[0]])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempt(case: Case, bench: Path, room: Path) -> Outcome:
    """Run one case and look at what it says and leaves."""
    folder, said, began = room / "work", room / "said", time.monotonic()
    shutil.rmtree(room, ignore_errors=True)
    said.mkdir(parents=True)
    shutil.copytree(bench, folder, symlinks=True)
    case.plant(folder)
    before = snapshot(folder)
    pid = os.fork()
    if pid == 0:
        child(case, folder, said)
    code = ended(pid)
    out, err = ((said / name).read_text(errors="replace") for name in ("out", "err"))
    after = snapshot(folder)
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    line = err.removeprefix("error: ").removesuffix("\n")
    wrong = {
        f"exit code {code}": code != BAD_INPUT,
        f"{len(err.splitlines())} lines on stderr": len(err.splitlines()) != 1 or not err.startswith("error: "),
        "says something on stdout": bool(out),
        f"writes {', '.join(written[:3])}": bool(written),
        "names no fix": FIX.search(line) is None,
        f"raw words {RAW.findall(line)[:2]}": RAW.search(line) is not None,
        f"{len(line)} characters": len(line) > LONGEST,
        "unprintable characters": not line.replace("\n", "").isprintable(),
    }
    faults = [fault for fault, holds in wrong.items() if holds]
    return Outcome(case.name, " ".join(case.argv)[:200], code, line[-2000:], faults, time.monotonic() - began)


def ended(pid: int) -> int:
    """A child's exit code, once it has ended; one that hangs is killed."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(argv: Sequence[str]) -> int:
    """Run the cases, print a line a fault and a table."""
    parser = argparse.ArgumentParser(description="Malformed input to every command.")
    parser.add_argument("--cases", type=int, default=POOL)
    parser.add_argument("--seed", type=int, default=0, help="of the generated cases, and of the draw")
    parser.add_argument("--only", default="", help="cases whose name or arguments hold this")
    parser.add_argument("--out", type=Path, help="JSON: each case with its line and faults")
    args = parser.parse_args(argv)
    began = time.monotonic()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    assert figures  # imported so that every fork has matplotlib's list of fonts
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Path(scratch) / "bench"
        make_bench(bench)
        for case in cases(args.cases, args.seed):
            if args.only in case.name or args.only in " ".join(case.argv):
                outcome = attempt(case, bench, Path(scratch) / "room")
                outcomes.append(outcome)
                if outcome.faults:
                    said = f"  {'; '.join(outcome.faults)}\n  {outcome.line[-300:]}"
                    print(f"{case.name[:80]} | {outcome.argv}\n{said}", flush=True)
    faulty = [outcome for outcome in outcomes if outcome.faults]
    asked, wrong = (Counter(o.argv.split()[0] for o in some) for some in (outcomes, faulty))
    table = [[name, asked[name], wrong[name]] for name in COMMANDS] + [["all", len(outcomes), len(faulty)]]
    print(tabulate(table, headers=["command", "cases", "faults"], tablefmt="github"))
    print(f"{time.monotonic() - began:.0f} s")
    if args.out is not None:
        whole = {"cases": len(outcomes), "faults": len(faulty), "seed": args.seed}
        write_json(args.out, {**whole, "outcomes": [asdict(outcome) for outcome in outcomes]})
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
