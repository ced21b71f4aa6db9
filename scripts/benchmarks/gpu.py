"""The suite for a machine with one GPU: one command per step, most valuable first, each at most nine minutes.

    python scripts/benchmarks/gpu.py STEP --out FOLDER [--minutes 8.5] [--device cpu --tiny]

1. tests        pytest -m gpu: what only a GPU runs, against float32 on the CPU
2. sweep        the default sweep through Ray, trials and evaluators sharing the GPU
3. shape-3b     Qwen2.5-3B's size with random weights, bfloat16, k = 8: training and evaluation over the peer and
                over the attempt's loop, share of the matmul rate, memory
   packs-0.5b   Qwen2.5-0.5B's size: eight codecs in one process, in eight processes, one after another
4. attempt-1.5b attempt-02 as it was on Qwen2.5-Coder-1.5B, level easy, judged on 50 and on 1,000 episodes
   recipe-1.5b  the recipe on the same receiver and level
   recipe-0.5b  the published recipe for Qwen2.5-Coder-0.5B, three training seeds
5. adapt        scripts/adapt_and_sweep.py for SmolLM2-135M

Each step writes FOLDER/STEP.json, and the state of all steps into FOLDER/steps.md. It exits with 0 (done), 75
(time is up: the same command continues) or 1 (failed). Steps 4 and 5 need fetched receivers. `--device cpu --tiny`
rehearses a step on random receivers and few samples.
A bare machine needs the wheels of the other dependencies in pyproject.toml, and those of setuptools and wheel to
build one of them. On a machine with the same Python: `pip download '.[test]' setuptools wheel -d wheels`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_steps import STEPS, Run, Unfinished

from m2ray.util.files import write_json
from m2ray.util.tables import markdown

UNFINISHED, FAILED = 75, 1


def describe_machine(device: str) -> dict[str, Any]:
    """Return the hardware and the versions that a step ran on."""
    import torch  # the steps run in processes of their own, and `--help` need not wait

    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    packages = {each: metadata.version(each) for each in ("torch", "transformers", "ray", "numpy")}
    return {"device": name, "cpus": os.cpu_count(), "python": platform.python_version(), "packages": packages}


def run_step(step: Callable[[Run], dict[str, Any]], run: Run, file: Path, name: str) -> int:
    """Run a step and write its file; return the exit code."""
    start, code, error, figures = time.monotonic(), 0, "", dict[str, Any]()
    before = json.loads(file.read_text()) if file.is_file() else {}
    try:
        figures = step(run)
    except Unfinished as unfinished:
        code, error = UNFINISHED, str(unfinished)
    except Exception as failure:  # whatever it is, the file says so
        code, error = FAILED, f"{type(failure).__name__}: {failure}"
    seconds = time.monotonic() - start
    earlier = before.get("seconds", []) if before.get("state") == "unfinished" else []
    state = {0: "rehearsed" if run.tiny else "measured", UNFINISHED: "unfinished", FAILED: "failed"}[code]
    record = {
        "step": name,
        "state": state,
        "error": error,
        "seconds": [*earlier, round(seconds, 1)],  # of each call
        "machine": describe_machine(run.device),
        "figures": figures,
    }
    write_json(file, record)
    (file.parent / "steps.md").write_text(steps_page(file.parent))
    print(json.dumps(record, indent=1))
    return code


def steps_page(folder: Path) -> str:
    """Return a page with the state of every step in a folder: what was measured, rehearsed, or neither."""
    table = [["step", "state", "seconds of each call", "device", "Python", "torch", "transformers"]]
    for name in STEPS:
        file = folder / f"{name}.json"
        if not file.is_file():
            table.append([name, "unmeasured", *[""] * 5])
            continue
        record = json.loads(file.read_text())
        state = "unmeasured, rehearsed" if record["state"] == "rehearsed" else record["state"]
        machine = record["machine"]
        versions = [machine["packages"][package] for package in ("torch", "transformers")]
        seconds = ", ".join(f"{each:.0f}" for each in record["seconds"])
        table.append([name, state, seconds, machine["device"], machine["python"], *versions])
    about = (
        "`python scripts/benchmarks/gpu.py STEP --out FOLDER`, one call for each step. A rehearsal, with "
        "`--device cpu --tiny`, has random receivers and few samples: it shows only that the step runs."
    )
    return f"# The suite for one GPU\n\n{about}\n\n{markdown(table)}\n"


def main() -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for STEP.json and for what a step continues from"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="time after which a step stops to be continued")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse with random receivers and few samples")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args.out.resolve(), args.device, args.tiny, time.monotonic() + 60 * args.minutes)
    return run_step(STEPS[args.step], run, args.out / f"{args.step}.json", args.step)


if __name__ == "__main__":
    sys.exit(main())
