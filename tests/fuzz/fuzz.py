"""Run malformed input through every command, and check the exit code and the error message.

    python tests/fuzz/fuzz.py [--cases N] [--seed S] [--only TEXT] [--out FILE]

Each case must end with exit code 2 and one line that states the fix. Prints a table and exits 1 on any fault.
Each case runs in a process of its own, forked from one that has imported everything and loaded the receiver, on a
copy of valid input (`fuzz_input.py`) that the case damages (`fuzz_cases.py`).
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
from fuzz_cases import POOL, cases
from fuzz_input import Case, make_input
from tabulate import tabulate

from m2ray.cli import diagnose, evaluate, gate, report, sweep, train
from m2ray.cli.runner import BAD_INPUT, run_command
from m2ray.reporting.figures import judged_runs as figures
from m2ray.util.files import write_json

COMMANDS = {
    "sweep": sweep.main,
    "train": train.main,
    "evaluate": evaluate.main,
    "gate": gate.main,
    "diagnose": diagnose.main,
    "report": report.main,
}
LIMIT_S = 60.0  # for one case
MAX_CHARACTERS = 700  # of an error message
# An error message states the fault, and then the fix with one of these verbs.
FIX_VERBS = (
    "add|change|check|choose|evaluate|fetch|fill|fix|free|give|install|keep|leave|lower|make|move|name|put|raise|"
    "remake|remove|restore|resume|run|save|see|set|shorten|start|use|write"
)
FIX = re.compile(rf"did you mean|[;,:] (or )?(then )?({FIX_VERBS})\b")
# Words of a library or of the interpreter that do not belong in an error message.
RAW = re.compile(
    r"Traceback|NoneType|Input should|object has no|<class|Errno|pydantic|trust_remote_code|\bint\(\)"
)


@dataclass(frozen=True)
class Outcome:
    """Exit code and error message of a case, and the faults in them."""

    name: str
    argv: str
    code: int
    line: str
    faults: list[str]
    seconds: float


def snapshot(folder: Path) -> dict[str, str]:
    """Return a digest of every file in a folder; for large and special files, mode and size."""
    files = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        small = path.is_file() and not path.is_symlink() and status.st_size < 1_000_000
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{status.st_mode} {status.st_size}"
        files[str(path.relative_to(folder))] = digest
    return files


def run_child(case: Case, folder: Path, output: Path) -> None:
    """Run the command in this forked process and end the process."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
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


def run_case(case: Case, valid_input: Path, scratch: Path) -> Outcome:
    """Run a case and check what it prints and writes."""
    folder, output, start = scratch / "work", scratch / "output", time.monotonic()
    shutil.rmtree(scratch, ignore_errors=True)
    output.mkdir(parents=True)
    shutil.copytree(valid_input, folder, symlinks=True)
    case.damage(folder)
    before = snapshot(folder)
    pid = os.fork()
    if pid == 0:
        run_child(case, folder, output)
    code = wait_for_exit(pid)
    out, err = ((output / name).read_text(errors="replace") for name in ("out", "err"))
    after = snapshot(folder)
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    line = err.removeprefix("error: ").removesuffix("\n")
    checks = {
        f"exit code {code}": code != BAD_INPUT,
        f"{len(err.splitlines())} lines on stderr": len(err.splitlines()) != 1 or not err.startswith("error: "),
        "prints to stdout": bool(out),
        f"writes {', '.join(written[:3])}": bool(written),
        "names no fix": FIX.search(line) is None,
        f"raw words {RAW.findall(line)[:2]}": RAW.search(line) is not None,
        f"{len(line)} characters": len(line) > MAX_CHARACTERS,
        "unprintable characters": not line.replace("\n", "").isprintable(),
    }
    faults = [fault for fault, found in checks.items() if found]
    return Outcome(case.name, " ".join(case.argv)[:200], code, line[-2000:], faults, time.monotonic() - start)


def wait_for_exit(pid: int) -> int:
    """Return a child's exit code once it has ended; kill it after `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_cases(count: int, seed: int, only: str) -> list[Outcome]:
    """Run the cases and print those with a fault."""
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        valid_input = Path(folder) / "input"
        make_input(valid_input)
        for case in cases(count, seed):
            if only not in case.name and only not in " ".join(case.argv):
                continue
            outcome = run_case(case, valid_input, Path(folder) / "case")
            outcomes.append(outcome)
            if outcome.faults:
                details = f"  {'; '.join(outcome.faults)}\n  {outcome.line[-300:]}"
                print(f"{case.name[:80]} | {outcome.argv}\n{details}", flush=True)
    return outcomes


def main(argv: Sequence[str]) -> int:
    """Run the cases; print a line for each fault, and a table."""
    parser = argparse.ArgumentParser(description="Malformed input to every command.")
    parser.add_argument("--cases", type=int, default=POOL)
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated cases, and of the sample")
    parser.add_argument("--only", default="", help="only cases with this in their name or arguments")
    parser.add_argument("--out", type=Path, help="JSON file for each case with its message and faults")
    args = parser.parse_args(argv)
    start = time.monotonic()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    assert figures  # imported so that every fork has matplotlib's list of fonts
    outcomes = run_cases(args.cases, args.seed, args.only)
    faulty = [outcome for outcome in outcomes if outcome.faults]
    total, faults = (Counter(outcome.argv.split()[0] for outcome in some) for some in (outcomes, faulty))
    table = [[name, total[name], faults[name]] for name in COMMANDS] + [["all", len(outcomes), len(faulty)]]
    print(tabulate(table, headers=["command", "cases", "faults"], tablefmt="github"))
    print(f"{time.monotonic() - start:.0f} s")
    if args.out is not None:
        totals = {"cases": len(outcomes), "faults": len(faulty), "seed": args.seed}
        write_json(args.out, {**totals, "outcomes": [asdict(outcome) for outcome in outcomes]})
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
