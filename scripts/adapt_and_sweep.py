"""Teach a pretrained receiver the text task, freeze it, train and judge codecs on it: one command, one folder.

    python scripts/adapt_and_sweep.py --base qwen2.5-coder-0.5b --out results/adapted-qwen --minutes 9

Stages: `adapt` (LoRA, see python -m m2ray.train_receiver), `g0` (the message must help as text: P1 and P1 - P0 on
held-out episodes), `sweep` (m2ray.sweep on the merged receiver), `publish` (the best codec as a folder). Each is
checkpointed: the same command again goes on where it was, and does nothing twice. With --minutes it ends, orderly,
at the next step after that, with exit code 75, to be run again. `result.json` holds all figures; its verdict is
`unfinished` until the last stage is done.

The folder is that of the sweep (rows.parquet, leaderboard.csv), and has the codec in `best-kN/` and the adapter in
`adapter/`. The merged receiver, in `checkpoints/receiver/`, is large and need not be kept: where it is missing,
the same command makes it again from base and adapter.

Exit codes: 0 passed; 1 the receiver did not reach G0, or the codec does not pass; 2 bad input; 3 a cell of the
sweep failed; 75 out of time, go on with the same command; 130 and 143 as for every command.
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

import torch

from m2ray.cli import sweep, train_receiver
from m2ray.cli.runner import DONE, NOT_PASSED, SOME_FAILED, Parser, Stopped, run_command, stoppable
from m2ray.codec.model_card import PLAYED
from m2ray.config.plan import Plan, load_plan
from m2ray.config.record import record_file
from m2ray.config.trial import parse_seeds
from m2ray.engine.record import PACKAGES
from m2ray.engine.sweep import STOP_GRACE_S
from m2ray.judging.gate import FAIL, PASS
from m2ray.judging.statistics import wilson
from m2ray.receiver.loading import load_receiver
from m2ray.reporting.publish import publish
from m2ray.tasks.registry import level
from m2ray.training.lora import largest_rank, merged
from m2ray.training.receiver_training import OutOfTime, seeds_before, state_file
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable, write_json

GO_ON = 75  # EX_TEMPFAIL: not done, and nothing is wrong
UNFINISHED, NO_RECEIVER = "unfinished", "G0 not reached"
P1_LEAST, GAIN_LEAST, HELD_OUT = 0.85, 0.30, 500
ADAPTER_BYTES, MOST_RANK = 16_000_000, 32
WITHHELD = 0.3
SPACE = Path(os.path.relpath(Path(__file__).parent.parent / "search_spaces" / "adapted-easy.yaml"))


class Job:
    """One adaptation and sweep in its folder; `result` is what result.json says of it."""

    def __init__(self, args: argparse.Namespace, until: float) -> None:
        self.out, self.until, self.space = args.out.resolve(), until, args.space
        self.receiver = self.out / "checkpoints" / "receiver"
        self.adapter = self.out / "adapter"
        self.file = self.out / "result.json"
        self.plan = load_plan(args.space, {"receiver": args.base})
        self.command = command_of(args)
        self.begun = False  # whether this call did anything yet
        self.late = False  # whether it was told to stop, by the clock
        fits = largest_rank(args.base, ADAPTER_BYTES)
        rank = min(fits, MOST_RANK) if args.rank is None else args.rank
        if rank > fits:
            raise UserError(f"--rank {rank}: its adapter is over {ADAPTER_BYTES:,} bytes; use {fits} at most")
        self.settings = {
            "base": args.base,
            "level": self.plan.example.task.level,
            "rank": rank,
            "samples": args.samples,
            "batch": args.batch,
            "lr": args.lr,
            "seed": args.seed,
        }
        self.result = self.recalled()

    def recalled(self) -> dict[str, Any]:
        """What an earlier call left.

        Raises:
            UserError: made with other settings. More samples are welcome while G0 is not reached.
        """
        if not self.file.is_file():
            return {"verdict": UNFINISHED, "next": "adapt"}
        try:
            result: dict[str, Any] = json.loads(self.file.read_bytes())
            before = {key: result["settings"][key] for key in self.settings}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file}: not what this script writes ({error!r}); change --out") from None
        longer = "g0" in result and not result["g0"]["reached"] and self.settings["samples"] > before["samples"]
        for key, now in self.settings.items():
            if now != before[key] and not (key == "samples" and longer):
                raise UserError(
                    f"{self.file}: {key}: made with {before[key]!r}, now {now!r}; repeat that, or change --out"
                )
        return {"verdict": UNFINISHED, "next": "adapt"} if longer else result

    def record(self, next_: str, verdict: str = UNFINISHED, **figures: Any) -> None:
        """Keep what a stage found."""
        about = {
            "verdict": verdict,
            "next": next_,
            "command": self.command,
            "device": device(),
            "packages": {name: importlib.metadata.version(name) for name in (*PACKAGES, "peft")},
            "python": platform.python_version(),
            "settings": self.settings,
        }
        self.result = {**self.result, **about, **figures}
        write_json(self.file, self.result)

    def step(self, name: str) -> None:
        """A step begins, if there is time; the first of a call always does.

        Raises:
            OutOfTime: there is none left.
        """
        if self.begun and time.monotonic() >= self.until:
            raise OutOfTime(f"before {name}")
        self.begun = True
        print(f"--- {name}", flush=True)

    # --- stages ---

    def adapt(self) -> None:
        """Teach the base the text task; keep the adapter and the merged receiver."""
        if "adapt" in self.result:
            if not (self.receiver / "m2ray.json").is_file():
                self.remake()
            return
        self.step("adapt")
        self.record("adapt")
        words = ["--out", self.receiver, "--adapter", self.adapter, "--resume", "--withhold", WITHHELD]
        words += ["--held-out", HELD_OUT, "--save-every", 100, "--lora", self.settings["rank"]]
        for key in ("base", "level", "samples", "batch", "lr", "seed"):
            words += [f"--{key}", self.settings[key]]
        args = train_receiver.parser().parse_args([str(word) for word in words])
        args.command = self.command
        card = train_receiver.make(args, self.until)
        size = (self.adapter / "adapter_model.safetensors").stat().st_size
        print(f"adapter: rank {self.settings['rank']}, {size:,} bytes of {ADAPTER_BYTES:,} at most")
        if size > ADAPTER_BYTES:
            raise UserError(f"{self.adapter}: {size:,} bytes, over {ADAPTER_BYTES:,}; use a smaller --rank")
        self.record("g0", adapt=card, adapter={"bytes": size, "bytes_at_most": ADAPTER_BYTES})

    def remake(self) -> None:
        """The merged receiver again, from base and adapter.

        Raises:
            UserError: it is not the one that was judged.
        """
        self.step("merge base and adapter again")
        done = self.result["adapt"]
        card = {key: value for key, value in done.items() if key != "digest"}
        found = train_receiver.save(merged(self.settings["base"], self.adapter), card, self.receiver)
        if found != done["digest"]:
            raise UserError(
                f"{self.receiver}: digest {found}, the receiver that was adapted had {done['digest']}; "
                f"use the same files of {self.settings['base']}"
            )

    def g0(self) -> bool:
        """Whether the message helps as text, on held-out episodes: else no codec can be judged here."""
        card = self.result["adapt"]
        p1, p0 = (card[name]["successes"] / card[name]["n"] for name in ("P1", "P0"))
        for name in ("P1", "P0"):
            count, n = card[name]["successes"], card[name]["n"]
            low, high = wilson(count, n)
            print(f"{name} {count}/{n} = {100 * count / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        reached = p1 >= P1_LEAST and p1 - p0 >= GAIN_LEAST
        wanted = f"P1 {p1:.3f} ({P1_LEAST} wanted), P1 - P0 {p1 - p0:.3f} ({GAIN_LEAST} wanted)"
        figures = {"P1": p1, "P0": p0, "gain": p1 - p0, "P1_wanted": P1_LEAST, "gain_wanted": GAIN_LEAST}
        if "g0" not in self.result:
            verdict = UNFINISHED if reached else NO_RECEIVER
            self.record("sweep" if reached else "adapt", verdict, g0={"reached": reached, **figures})
        if reached:
            state_file(self.receiver).unlink(missing_ok=True)
            print(f"G0 reached: {wanted}")
            return True
        more = f"train on with --samples above {self.settings['samples']}"
        print(f"G0 not reached: {wanted}; {more}", file=sys.stderr)
        return False

    def judge(self) -> int:
        """The sweep of codecs. Returns its exit code."""
        if "sweep" in self.result:
            return DONE
        self.step("sweep")
        argv = [str(self.space), "--receiver", str(self.receiver)]
        argv += ["--results", str(self.out.parent), "--name", self.out.name]
        if record_file(self.out).is_file():
            argv.append("--resume")
        left = self.until - time.monotonic() - STOP_GRACE_S
        if left < 0:
            raise OutOfTime("before the sweep, which needs a minute to stop in")
        notice = threading.Timer(min(left, threading.TIMEOUT_MAX), self.stop_sweep)
        notice.daemon = True
        notice.start()
        try:
            code = sweep.main(argv)
        finally:
            notice.cancel()
        if code == DONE:
            command = shlex.join(["python", "-m", "m2ray.sweep", *argv])
            self.record("publish", sweep={"command": command, "exit": code})
        elif self.late and code != SOME_FAILED:
            raise OutOfTime("in the sweep")
        return code

    def stop_sweep(self) -> None:
        """As Ctrl-C does: what is being evaluated is finished first. (SIGTERM Ray takes for itself.)"""
        self.late = True
        os.kill(os.getpid(), signal.SIGINT)

    def publish(self) -> int:
        """The best codec as a folder of its own, and the verdict."""
        if "codec" not in self.result:
            import pandas as pd

            self.step("publish")
            board = pd.read_csv(self.out / "leaderboard.csv")
            # Passes come first, then the best score.
            line = json.loads(board[board.split == "confirm"].iloc[0].to_json())
            folder = publish(self.out, line["config"], line["seed"], f"best-k{line['k']}")
            verdict = PASS if line["verdict"] == PASS else FAIL
            self.record("", verdict, codec={**line, "folder": folder.name})
        line = self.result["codec"]
        kept = "none: P1 is not above P0"
        if line["retention"] is not None:
            kept = "{retention:.2f} [{retention_ci_low:.2f}, {retention_ci_high:.2f}]".format_map(line)
        print(f"{self.result['verdict']}: {line['config']}, k = {line['k']}, n = {line['n']}; retention {kept}")
        play = ["python", "-m", "m2ray.evaluate", self.out / line["folder"], "--receiver", self.receiver]
        print(f"next: {shlex.join(map(str, [*play, '--seeds', PLAYED]))}")
        return DONE if self.result["verdict"] == PASS else NOT_PASSED


def check_seeds(plan: Plan, settings: dict[str, Any]) -> None:
    """Refuse seeds of the adaptation, or of its held-out episodes, that the space plays or trains codecs on.

    Raises:
        UserError: names the split.
    """
    before = seeds_before(load_receiver(settings["base"]), level(settings["level"]))
    stop = before.stop + settings["samples"] // settings["batch"] * settings["batch"]
    taken = {"the receiver's training seeds": range(before.start, stop), "G0's seeds": range(HELD_OUT)}
    for config in plan.all:
        for name, text in config.splits:
            split = parse_seeds(text)
            for whose, seeds in taken.items():
                if split.start < seeds.stop and seeds.start < split.stop:
                    raise UserError(
                        f"{plan.file}: splits.{name}: overlaps {whose} {seeds.start}:{seeds.stop}; move it"
                    )


def device() -> str:
    """What it ran on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPUs"
    return f"{os.cpu_count()} CPUs, {platform.machine()}"


def command_of(args: argparse.Namespace) -> str:
    """The command that, repeated until it no longer says 75, makes this folder."""
    words = ["python", "scripts/adapt_and_sweep.py", "--base", args.base, "--out", args.out]
    for key in ("space", "rank", "samples", "batch", "lr", "seed"):
        if getattr(args, key) != parser().get_default(key):
            words += [f"--{key}", getattr(args, key)]
    return shlex.join(map(str, words))


def parser() -> Parser:
    """The command line."""
    parser = Parser(prog="scripts/adapt_and_sweep.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", required=True, help="qwen2.5-coder-0.5b, smollm2-135m, a folder, or a hub name")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything, such as results/NAME")
    parser.add_argument("--space", type=Path, default=SPACE, help="default: search_spaces/adapted-easy.yaml")
    parser.add_argument("--rank", type=int, help="of the LoRA; default: the largest that fits in 16 MB, up to 32")
    parser.add_argument("--samples", type=int, default=160_000, help="to adapt on; more than before: longer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0, help="of the adaptation")
    parser.add_argument("--minutes", type=float, default=math.inf, help="to stop after, with exit code 75")
    return parser


def main(argv: Sequence[str]) -> int:
    """All stages, as far as the time goes."""
    until = time.monotonic()
    args = parser().parse_args(argv)
    until += 60 * args.minutes
    for option in ("rank", "samples", "batch", "lr", "minutes"):
        if (given := getattr(args, option)) is not None and not given > 0:
            raise UserError(f"--{option}: {given} is not above 0; write more")
    if args.samples < args.batch:
        raise UserError(f"--samples: {args.samples} do not fill a batch of {args.batch}; write more")
    if importlib.util.find_spec("peft") is None:
        raise UserError("peft: not installed; run `pip install -e '.[receivers]'`")
    check_writable("--out", args.out)
    job = Job(args, until)
    check_seeds(job.plan, job.settings)
    try:
        with stoppable():
            job.adapt()
            if not job.g0():
                return NOT_PASSED
            code = job.judge()
            return job.publish() if code == DONE else code
    except OutOfTime as stopped:
        print(f"stopped {stopped}; go on with the same command: {job.command}", file=sys.stderr)
        return GO_ON
    except Stopped as stopped:
        print(f"stopped; go on with the same command: {job.command}", file=sys.stderr)
        return GO_ON if job.late else stopped.code


if __name__ == "__main__":
    run_command(main)
