"""The steps of gpu.py. Each returns its figures; what it can continue from stays in the run's folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
SPACES = ROOT / "search_spaces"
STOP_S = 75.0  # that a sweep may take to stop
ADAPT_OUT_OF_TIME = 75  # exit code of scripts/adapt_and_sweep.py
GPU_RESOURCES = {"cpus_per_worker": 2, "gpus_per_worker": 0.2, "evaluators": 2, "gpus_per_evaluator": 0.1}
TINY_SPLITS = {"train": "100000:101000", "search": "1000:1008", "select": "4000:4010", "confirm": "2000:2020"}
TINY_TRAINING = {"epochs": 1, "epoch_samples": 32, "batch_size": 8, "warmup": 0}
TINY_EVALUATION = {"max_new_tokens": 48, "constant_samples": 64, "scale_gates": [], "text_bytes": []}


class Unfinished(Exception):
    """The time is up; the same command continues."""


@dataclass(frozen=True)
class Run:
    """Where and how a step runs; `deadline` is in the time of `time.monotonic`."""

    out: Path
    device: str
    tiny: bool
    deadline: float

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def command(self, *words: object, log: str, stop_s: float = 0.0, wanted: Sequence[int] = (0,)) -> int:
        """Run a command until its end, or until it must stop; return its exit code.

        Args:
            words: The command, without `python`.
            log: Name of the file in the run's folder that gets its output.
            stop_s: How long before the deadline it is interrupted.
            wanted: Exit codes that are no failure.

        Raises:
            Unfinished: The time is up.
            RuntimeError: It failed.
        """
        command = [sys.executable, *map(str, words)]
        if self.left_s - stop_s <= 0:
            raise Unfinished(f"no time left for {' '.join(command[1:4])}")
        with (self.out / log).open("a") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            try:
                code = process.wait(self.left_s - stop_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(stop_s + 15)
                finally:
                    process.kill()
                raise Unfinished(f"stopped {' '.join(command[1:4])}") from None
        if code not in wanted:
            tail = (self.out / log).read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{' '.join(command[1:4])}: exit code {code}: {tail}")
        return code

    def receiver(self, name: str, shape: str) -> str:
        """Return a fetched receiver's name, or the folder of a random one: always in a rehearsal."""
        return str(self.random_receiver(shape)) if self.tiny else name

    def random_receiver(self, shape: str) -> Path:
        """Return the folder of a receiver with random weights, made where it is missing."""
        from random_receiver import (
            save_random_receiver,
        )  # loads torch, which steps that only run commands need not

        return save_random_receiver("tiny" if self.tiny else shape, self.out / f"random-{shape}")

    def space(self, file: Path, changes: Mapping[str, Any], tiny_changes: Mapping[str, Any]) -> Path:
        """Write a space with other settings into the run's folder."""
        tree = yaml.safe_load(file.read_text())
        for key, value in {**changes, **(tiny_changes if self.tiny else {})}.items():
            *sections, last = key.split(".")
            section = tree
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        written = self.out / file.name
        if "attempt-02" in tree.get("points", {}) and "use" in tree["points"]["attempt-02"]:
            shutil.copy(SPACES / "attempt-02.yaml", self.out / "attempt-02.yaml")
        written.write_text(yaml.safe_dump(tree, sort_keys=False))
        return written


def tests(run: Run) -> dict[str, Any]:
    """Run the tests that need a GPU; without one they run on the CPU, where that is possible."""
    report = run.out / "tests.xml"
    # The project's own options run the tests in two processes, by a package that the machine may lack.
    options = ("-o", "addopts=--strict-markers", "-m", "gpu", f"--junitxml={report}")
    run.command("-m", "pytest", *options, "tests/receiver", "tests/training", log="tests.log")
    from xml.etree import ElementTree  # only here

    suite = ElementTree.parse(report).getroot()[0]
    return {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}


def resources(run: Run, **more: Any) -> dict[str, Any]:
    """Return the resources of a sweep on this machine."""
    return {"cpus_per_worker": 1} if run.device == "cpu" else {**GPU_RESOURCES, **more}


def run_sweep(run: Run, space: Path, name: str, *words: str) -> dict[str, Any]:
    """Run a sweep, or continue it; return its board and time."""
    folder = run.out / name
    start = time.monotonic()
    resume = ["--resume"] if (folder / "sweep.yaml").is_file() else []
    argv = ["-m", "m2ray.sweep", space, "--results", run.out, "--name", name, *words, *resume]
    run.command(*argv, log=f"{name}.log", stop_s=STOP_S)
    board = pd.read_csv(folder / "leaderboard.csv")
    shown = ["config", "seeds", "k", "n", "normal", "null", "shuffle", "P0", "P1", "constant", "verdict"]
    # A configuration's first line is its own; with one training seed it is also the seed's.
    board = board[board.split == "confirm"].drop_duplicates("config")[shown]
    return {"seconds": time.monotonic() - start, "resumed": bool(resume), "board": board.to_dict("records")}


def sweep(run: Run) -> dict[str, Any]:
    """Run the default sweep, and share out its wall time over work and waiting."""
    from bench_sweep import WatchedSweep  # loads torch

    tiny = {"trial.splits": TINY_SPLITS, "trial.training": TINY_TRAINING, "search.trials": 1, "judge.diagnose": 0}
    space = run.space(SPACES / "quickstart.yaml", {"resources": resources(run)}, tiny)
    folder = run.out / "default"
    resume = ["--resume"] if (folder / "sweep.yaml").is_file() else []
    watched = WatchedSweep(
        [str(space), "--results", str(run.out), "--name", "default", *resume], run.out / "cache"
    )
    timed_out = False

    def sample() -> bool:
        nonlocal timed_out
        watched.sample()
        if run.left_s < STOP_S and not timed_out:
            timed_out = True
            watched.popen.send_signal(signal.SIGINT)
        return False

    seconds = watched.wait_until(sample, 1.0)
    if timed_out:
        raise Unfinished("stopped the sweep")
    if watched.popen.returncode:
        raise RuntimeError(f"the sweep ended with exit code {watched.popen.returncode}")
    busy = {str(pid): round(last - first, 1) for pid, (first, last) in watched.compute.items()}
    board = pd.read_csv(folder / "leaderboard.csv")
    board = board[board.split == "confirm"][["config", "k", "normal", "shuffle", "P0", "P1", "verdict"]]
    return {
        "seconds": seconds,
        "peak_host_memory_gb": watched.peak_bytes / 1e9,
        "worker_busy_s": busy,  # processor time of each trial's and evaluator's process
        "worker_waiting_share": 1 - sum(busy.values()) / max(1e-9, seconds * len(busy)),
        "board": board.to_dict("records"),
    }


def shape(run: Run, name: str = "qwen2.5-3b") -> dict[str, Any]:
    """Time training and evaluation on a receiver of some size, k = 8, in every place."""
    import torch  # as above
    from bench_peer import bench_evaluation, bench_training, in_places

    from m2ray.config.plan import load_plan
    from m2ray.receiver.loading import load_receiver

    folder = run.random_receiver(name)
    receiver = load_receiver(str(folder), run.device, "float32" if run.device == "cpu" else "bfloat16")
    config = load_plan(SPACES / "attempt-02.yaml").points["attempt-02"]
    config = config.model_copy(update={"codec": config.codec.model_copy(update={"k": 8})})
    seconds, batches = (1.0, (8, 16)) if run.tiny else (15.0, (8, 32, 128))

    def peak(part: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        if run.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        figures = in_places(partial(part, receiver=receiver, seconds=seconds, **arguments), config)
        memory = torch.cuda.max_memory_allocated() / 1e9 if run.device == "cuda" else None
        return {**figures, "peak_gpu_memory_gb": memory}

    return {
        "dtype": str(receiver.dtype),
        "ways": receiver.causal.ways._asdict(),
        "train": peak(bench_training, batches=batches),
        "eval": peak(bench_evaluation, count=16 if run.tiny else 256),
    }


def packs(run: Run) -> dict[str, Any]:
    """Time eight codecs in one process, in eight, and one after another."""
    from bench_pack import bench_pack  # loads torch

    folder = run.random_receiver("qwen2.5-0.5b")
    steps, rounds = (2, 1) if run.tiny else (40, 3)
    return bench_pack(str(folder), steps=steps, rounds=rounds)


def attempt(run: Run) -> dict[str, Any]:
    """Train attempt-02 as it was and judge it on 50 and on 1,000 episodes."""
    receiver = run.receiver("qwen2.5-coder-1.5b", "qwen2.5-0.5b")
    tree = yaml.safe_load((SPACES / "attempt-02.yaml").read_text())["trial"]
    tree |= {"receiver": receiver, "splits": {**tree["splits"], "confirm": "2000:3000"}}
    if run.tiny:
        tree["training"] |= {"epochs": 1, "epoch_samples": 16}
        tree["evaluation"] = {**tree["evaluation"], **TINY_EVALUATION}
    config = run.out / "attempt.yaml"
    config.write_text(yaml.safe_dump(tree))
    folder = run.out / "attempt-training"
    resume = ["--resume"] if folder.is_dir() else []
    run.command("-m", "m2ray.train", config, "--out", folder, *resume, log="attempt.log", stop_s=5.0)
    checkpoint = folder / "seed-0" / f"epoch-{tree['training']['epochs']:02d}"
    every = run.out / "attempt-rows.parquet"
    few, many = (10, 20) if run.tiny else (50, 1000)
    if not every.is_file():
        seeds = f"2000:{2000 + many}"
        run.command("-m", "m2ray.evaluate", checkpoint, "--seeds", seeds, "--out", every, log="attempt.log")
    figures: dict[str, Any] = {}
    for count in (few, many):
        # Part of the same rows: nobody looks at these messages twice.
        rows, table = run.out / f"attempt-{count}.parquet", pd.read_parquet(every)
        table = table[table.episode < 2000 + count]
        table.to_parquet(rows)
        figures[f"n={count}"] = table.groupby("condition").success.mean().round(4).to_dict()
        for gate in ("reference", "content"):
            log = f"attempt-{count}-{gate}.txt"
            (run.out / log).unlink(missing_ok=True)
            run.command("-m", "m2ray.gate", rows, "--gate", gate, log=log, wanted=(0, 1))
            figures[f"n={count}, gate {gate}"] = (run.out / log).read_text().splitlines()[-12:]
    return figures


def recipe(run: Run, receiver: str, task: str, name: str, seeds: str) -> dict[str, Any]:
    """Run the recipe for pretrained receivers on a receiver and level."""
    tiny = {"trial.splits": TINY_SPLITS, "trial.training": TINY_TRAINING, "trial.evaluation": TINY_EVALUATION}
    changes = {
        "trial.receiver": run.receiver(receiver, "qwen2.5-0.5b"),
        "trial.task": {"level": task},
        "resources": resources(run, gpus_per_worker=0.3),
    }
    space = run.space(SPACES / "recipe-qwen.yaml", changes, tiny)
    return run_sweep(run, space.rename(run.out / f"{name}.yaml"), name, "--seeds", "0" if run.tiny else seeds)


def adapt(run: Run) -> dict[str, Any]:
    """Teach SmolLM2-135M the text task and judge codecs on it."""
    tiny = {"trial.splits": TINY_SPLITS, "trial.training": TINY_TRAINING, "trial.evaluation": TINY_EVALUATION}
    space = run.space(SPACES / "adapted-easy.yaml", {"resources": resources(run)}, tiny)
    base, folder = run.receiver("smollm2-135m", "qwen2.5-0.5b"), run.out / "adapted"
    words = ["--space", space, "--minutes", run.left_s / 60, *(["--samples", 128] if run.tiny else [])]
    argv = ["scripts/adapt_and_sweep.py", "--base", base, "--out", folder, *words]
    code = run.command(*argv, log="adapt.log", wanted=(0, 1, ADAPT_OUT_OF_TIME))
    if code == ADAPT_OUT_OF_TIME:
        raise Unfinished("adapt_and_sweep")
    figures: dict[str, Any] = yaml.safe_load((folder / "result.json").read_text())
    return figures


STEPS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "tests": tests,
    "sweep": sweep,
    "shape-3b": shape,
    "packs-0.5b": packs,
    "attempt-1.5b": attempt,
    "recipe-1.5b": partial(recipe, receiver="qwen2.5-coder-1.5b", task="easy", name="recipe-1.5b", seeds="0"),
    "recipe-0.5b": partial(
        recipe, receiver="qwen2.5-coder-0.5b", task="lookup-6x10", name="recipe-0.5b", seeds="0,1,2"
    ),
    "adapt": adapt,
}
