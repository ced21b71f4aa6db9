"""Teach a pretrained receiver the text task, freeze it, then train and judge codecs on it.

    python scripts/adapt_and_sweep.py --base qwen2.5-coder-0.5b --out results/adapted-qwen --minutes 9

Stages: `adapt` (LoRA, see python -m m2ray.train_receiver), `g0` (the message must help as text: P1 and P1 - P0 on
held-out episodes), `sweep` (m2ray.sweep on the merged receiver), `publish` (the best codec as a folder). Each
stage saves its state: the same command again resumes, and repeats no work. With --minutes the script stops at the
next step after that time with exit code 75; run the same command again. `result.json` holds all figures; its
verdict is `unfinished` until the last stage is done.

--out is the results folder of the sweep (rows.parquet, leaderboard.csv). The published codec is in `best-kN/`, the
adapter in `adapter/`. The merged receiver, in `checkpoints/receiver/`, is large and need not be kept: where it is
missing, the same command makes it again from base and adapter.

Exit codes: 0 passed; 1 the receiver did not reach G0, or the codec does not pass; 2 bad input; 3 a part of the
sweep failed; 75 out of time, run the same command again; 130 and 143 stopped by Ctrl-C or SIGTERM, as for every
command.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from m2ray.cli import sweep
from m2ray.cli.receivers import train_receiver
from m2ray.cli.runner import DONE, NOT_PASSED, SOME_FAILED, Parser, run_command
from m2ray.codec.model_card import EXAMPLE_SEEDS
from m2ray.config.plan import Plan, load_plan
from m2ray.config.sweep_record import record_file
from m2ray.config.task import parse_seeds
from m2ray.engine.record import PACKAGES
from m2ray.engine.sweep import STOP_GRACE_S
from m2ray.judging.statistics import wilson
from m2ray.judging.verdict import PASSES
from m2ray.receiver.loading import load_receiver
from m2ray.reporting.publish import publish
from m2ray.tasks.registry import level
from m2ray.training.lora import largest_rank, merge_adapter
from m2ray.training.receiver_training import OutOfTime, seeds_before, state_file
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable, write_json
from m2ray.util.stopping import Stopped, stoppable

OUT_OF_TIME = 75  # EX_TEMPFAIL: not done, but nothing failed
UNFINISHED, NO_RECEIVER = "unfinished", "G0 not reached"
MIN_P1, MIN_GAIN = 0.85, 0.30  # G0: success rate of P1, and P1 - P0
HELD_OUT = 500  # episodes that G0 is measured on
MAX_ADAPTER_BYTES, MAX_RANK = 16_000_000, 32
WITHHELD = 0.3  # share of samples without the message
SPACE = Path(os.path.relpath(Path(__file__).parent.parent / "search_spaces" / "adapted-easy.yaml"))


class Job:
    """One adaptation and sweep in its folder; `result` is the content of result.json."""

    def __init__(self, args: argparse.Namespace, deadline: float) -> None:
        self.out, self.deadline, self.space = args.out.resolve(), deadline, args.space
        self.receiver = self.out / "checkpoints" / "receiver"
        self.adapter = self.out / "adapter"
        self.file = self.out / "result.json"
        self.plan = load_plan(args.space, {"receiver": args.base})
        self.command = command_of(args)
        self.started = False  # this call has begun a step
        self.timed_out = False  # the sweep was stopped because the time was up
        largest = largest_rank(args.base, MAX_ADAPTER_BYTES)
        rank = min(largest, MAX_RANK) if args.rank is None else args.rank
        if rank > largest:
            raise UserError(
                f"--rank {rank}: its adapter is over {MAX_ADAPTER_BYTES:,} bytes; use {largest} at most"
            )
        self.settings = {
            "base": args.base,
            "level": self.plan.example.task.level,
            "rank": rank,
            "samples": args.samples,
            "batch": args.batch,
            "lr": args.lr,
            "seed": args.seed,
        }
        self.result = self.read_result()

    def read_result(self) -> dict[str, Any]:
        """Return the content of result.json that an earlier call wrote.

        Raises:
            UserError: It was made with other settings. Only --samples may rise, and only before G0 is reached.
        """
        if not self.file.is_file():
            return {"verdict": UNFINISHED, "next": "adapt"}
        try:
            result: dict[str, Any] = json.loads(self.file.read_bytes())
            before = {key: result["settings"][key] for key in self.settings}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file}: not a result of this script ({error!r}); change --out") from None
        continues = "g0" in result and not result["g0"]["reached"] and self.settings["samples"] > before["samples"]
        for key, value in self.settings.items():
            if value != before[key] and not (key == "samples" and continues):
                raise UserError(
                    f"{self.file}: {key}: made with {before[key]!r}, not {value!r}; use that value or change --out"
                )
        return {"verdict": UNFINISHED, "next": "adapt"} if continues else result

    def record(self, next_stage: str, verdict: str = UNFINISHED, **figures: Any) -> None:
        """Write the figures of a stage to result.json."""
        provenance = {
            "verdict": verdict,
            "next": next_stage,
            "command": self.command,
            "device": device(),
            "packages": {name: importlib.metadata.version(name) for name in (*PACKAGES, "peft")},
            "python": platform.python_version(),
            "settings": self.settings,
        }
        self.result = {**self.result, **provenance, **figures}
        write_json(self.file, self.result)

    def step(self, name: str) -> None:
        """Announce a step; the first step of a call runs even when the time is up.

        Raises:
            OutOfTime: The time is up.
        """
        if self.started and time.monotonic() >= self.deadline:
            raise OutOfTime(f"before {name}")
        self.started = True
        print(f"--- {name}", flush=True)

    # --- stages ---

    def adapt(self) -> None:
        """Teach the base the text task; save the adapter and the merged receiver.

        Raises:
            UserError: The adapter is too large.
        """
        if "adapt" in self.result:
            if not (self.receiver / "m2ray.json").is_file():
                self.merge_again()
            return
        self.step("adapt")
        self.record("adapt")
        words = ["--out", self.receiver, "--adapter", self.adapter, "--resume", "--withhold", WITHHELD]
        words += ["--held-out", HELD_OUT, "--save-every", 100, "--lora", self.settings["rank"]]
        for key in ("base", "level", "samples", "batch", "lr", "seed"):
            words += [f"--{key}", self.settings[key]]
        args = train_receiver.parser().parse_args([str(word) for word in words])
        args.command = self.command
        card = train_receiver.make(args, self.deadline)
        size = (self.adapter / "adapter_model.safetensors").stat().st_size
        print(f"adapter: rank {self.settings['rank']}, {size:,} bytes of {MAX_ADAPTER_BYTES:,} at most")
        if size > MAX_ADAPTER_BYTES:
            raise UserError(f"{self.adapter}: {size:,} bytes, over {MAX_ADAPTER_BYTES:,}; use a smaller --rank")
        self.record("g0", adapt=card, adapter={"bytes": size, "bytes_at_most": MAX_ADAPTER_BYTES})

    def merge_again(self) -> None:
        """Make the merged receiver again from base and adapter.

        Raises:
            UserError: It differs from the receiver that was adapted.
        """
        self.step("merge base and adapter again")
        adapted = self.result["adapt"]
        card = {key: value for key, value in adapted.items() if key != "digest"}
        digest = train_receiver.save(merge_adapter(self.settings["base"], self.adapter), card, self.receiver)
        if digest != adapted["digest"]:
            raise UserError(
                f"{self.receiver}: digest {digest}, the receiver that was adapted had {adapted['digest']}; "
                f"use the same files of {self.settings['base']}"
            )

    def g0(self) -> bool:
        """Return True if the message helps as text on held-out episodes; otherwise no codec can be judged here."""
        card = self.result["adapt"]
        p1, p0 = (card[name]["successes"] / card[name]["n"] for name in ("P1", "P0"))
        for name in ("P1", "P0"):
            count, n = card[name]["successes"], card[name]["n"]
            low, high = wilson(count, n)
            print(f"{name} {count}/{n} = {100 * count / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        reached = p1 >= MIN_P1 and p1 - p0 >= MIN_GAIN
        measured = f"P1 {p1:.3f} (at least {MIN_P1}), P1 - P0 {p1 - p0:.3f} (at least {MIN_GAIN})"
        figures = {"P1": p1, "P0": p0, "gain": p1 - p0, "P1_wanted": MIN_P1, "gain_wanted": MIN_GAIN}
        if "g0" not in self.result:
            verdict = UNFINISHED if reached else NO_RECEIVER
            self.record("sweep" if reached else "adapt", verdict, g0={"reached": reached, **figures})
        if reached:
            state_file(self.receiver).unlink(missing_ok=True)
            print(f"G0 reached: {measured}")
            return True
        fix = f"train longer with --samples above {self.settings['samples']}"
        print(f"G0 not reached: {measured}; {fix}", file=sys.stderr)
        return False

    def judge(self) -> int:
        """Run the sweep of codecs and return its exit code.

        Raises:
            OutOfTime: The time was up before or during the sweep.
        """
        if "sweep" in self.result:
            return DONE
        self.step("sweep")
        argv = [str(self.space), "--receiver", str(self.receiver)]
        argv += ["--results", str(self.out.parent), "--name", self.out.name]
        if record_file(self.out).is_file():
            argv.append("--resume")
        time_left = self.deadline - time.monotonic() - STOP_GRACE_S
        if time_left < 0:
            raise OutOfTime("before the sweep, which needs a minute to stop")
        timer = threading.Timer(min(time_left, threading.TIMEOUT_MAX), self.stop_sweep)
        timer.daemon = True
        timer.start()
        try:
            code = sweep.main(argv)
        finally:
            timer.cancel()
        if code == DONE:
            command = shlex.join(["python", "-m", "m2ray.sweep", *argv])
            self.record("publish", sweep={"command": command, "exit": code})
        elif self.timed_out and code != SOME_FAILED:
            raise OutOfTime("during the sweep")
        return code

    def stop_sweep(self) -> None:
        """Stop the sweep as Ctrl-C does, once running evaluations have ended; Ray handles SIGTERM itself."""
        self.timed_out = True
        os.kill(os.getpid(), signal.SIGINT)

    def publish(self) -> int:
        """Publish the best codec as a folder, print the verdict and return the exit code."""
        if "codec" not in self.result:
            self.step("publish")
            leaderboard = pd.read_csv(self.out / "leaderboard.csv")
            # The leaderboard lists configurations that pass first, then by score; the line of one with several
            # training seeds comes before theirs.
            line = json.loads(leaderboard[leaderboard.split == "confirm"].iloc[0].to_json())
            seeds = leaderboard[(leaderboard.config == line["config"]) & leaderboard.seed.notna()]
            seed = int(seeds.sort_values("score", ascending=False, kind="stable").seed.iloc[0])
            folder = publish(self.out, line["config"], seed, f"best-k{line['k']}", replace=True)
            self.record("", line["verdict"], codec={**line, "seed": seed, "folder": folder.name})
        line = self.result["codec"]
        retention = "none: P1 is not above P0"
        if line["retention"] is not None:
            retention = "{retention:.2f} [{retention_ci_low:.2f}, {retention_ci_high:.2f}]".format_map(line)
        print(
            f"{self.result['verdict']}: {line['config']}, k = {line['k']}, n = {line['n']}; retention {retention}"
        )
        evaluate = ["python", "-m", "m2ray.evaluate", self.out / line["folder"], "--receiver", self.receiver]
        print(f"next: {shlex.join(map(str, [*evaluate, '--seeds', EXAMPLE_SEEDS]))}")
        return DONE if self.result["verdict"] in PASSES else NOT_PASSED


def check_seeds(plan: Plan, settings: dict[str, Any]) -> None:
    """Refuse a space with splits that contain seeds of the adaptation or of its held-out episodes.

    Raises:
        UserError: A split overlaps them.
    """
    earlier_seeds = seeds_before(load_receiver(settings["base"]), level(settings["level"]))
    stop = earlier_seeds.stop + settings["samples"] // settings["batch"] * settings["batch"]
    used_seeds = {"the receiver's training seeds": range(earlier_seeds.start, stop), "G0's seeds": range(HELD_OUT)}
    for config in plan.all:
        for name, text in config.splits:
            split = parse_seeds(text)
            for name_of_seeds, seeds in used_seeds.items():
                if split.start < seeds.stop and seeds.start < split.stop:
                    raise UserError(
                        f"{plan.file}: splits.{name}: overlaps {name_of_seeds} {seeds.start}:{seeds.stop}; move it"
                    )


def device() -> str:
    """Return the name of the GPU or the architecture, and the number of CPUs."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPUs"
    return f"{os.cpu_count()} CPUs, {platform.machine()}"


def command_of(args: argparse.Namespace) -> str:
    """Return the command that makes this folder when it is repeated until it ends with another code than 75."""
    words = ["python", "scripts/adapt_and_sweep.py", "--base", args.base, "--out", args.out]
    for key in ("space", "rank", "samples", "batch", "lr", "seed"):
        if getattr(args, key) != parser().get_default(key):
            words += [f"--{key}", getattr(args, key)]
    return shlex.join(map(str, words))


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="scripts/adapt_and_sweep.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", required=True, help="qwen2.5-coder-0.5b, smollm2-135m, a folder, or a hub name")
    parser.add_argument("--out", type=Path, required=True, help="results folder, such as results/NAME")
    parser.add_argument("--space", type=Path, default=SPACE, help="default: search_spaces/adapted-easy.yaml")
    parser.add_argument(
        "--rank", type=int, help="LoRA rank; default: the largest with an adapter of 16 MB, at most 32"
    )
    parser.add_argument(
        "--samples", type=int, default=160_000, help="samples to adapt on; raise it to train longer"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0, help="seed of the adaptation")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time with exit code 75")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run all stages, as far as the time allows."""
    deadline = time.monotonic()
    args = parser().parse_args(argv)
    deadline += 60 * args.minutes
    for option in ("rank", "samples", "batch", "lr", "minutes"):
        if (value := getattr(args, option)) is not None and not value > 0:
            raise UserError(f"--{option}: {value} is not above 0; use a larger value")
    if args.samples < args.batch:
        raise UserError(f"--samples: {args.samples} do not fill a batch of {args.batch}; use more samples")
    if importlib.util.find_spec("peft") is None:
        raise UserError("peft: not installed; run `pip install -e '.[receivers]'`")
    check_writable("--out", args.out)
    job = Job(args, deadline)
    check_seeds(job.plan, job.settings)
    try:
        with stoppable(raises=True):
            job.adapt()
            if not job.g0():
                return NOT_PASSED
            code = job.judge()
            return job.publish() if code == DONE else code
    except OutOfTime as stopped:
        print(f"stopped {stopped}; resume with the same command: {job.command}", file=sys.stderr)
        return OUT_OF_TIME
    except Stopped as stopped:
        print(f"stopped; resume with the same command: {job.command}", file=sys.stderr)
        return OUT_OF_TIME if job.timed_out else stopped.code


if __name__ == "__main__":
    run_command(main)
