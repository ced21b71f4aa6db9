"""Sweeps without training: rows by chance, through the real proposer, record, row store, judge and leaderboard.

Trainings and evaluators are replaced, everything else is that of a sweep. Outcomes come from the worlds of
`m2ray.judging.false_pass`: success rates by condition.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import yaml

from m2ray.codec.checkpoints import checkpoint_id, run_folder
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import write_sweep_record
from m2ray.engine import sweep as engine
from m2ray.engine.cost.budget import Budget
from m2ray.engine.cost.forecast import forecast
from m2ray.engine.evaluator_pool import FinishedJob
from m2ray.engine.growing.confirm_looks import ConfirmLooks
from m2ray.engine.growing.growth import Growth, grow
from m2ray.engine.jobs import split_seeds
from m2ray.engine.progress import Progress
from m2ray.engine.proposer import OptunaProposer
from m2ray.engine.record import describe_sweep, extend
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.confirm_ledger import message_digest
from m2ray.evaluation.row_scope import row_scope
from m2ray.evaluation.rows import SCHEMA
from m2ray.judging.false_pass import ALIKE
from m2ray.receiver.episode_source import open_source
from m2ray.reporting.build import judge_folder
from m2ray.util.journal import Journal

SPACE = {
    "name": "scripted",
    "trial": {
        "task": {"level": "lookup-8x10"},
        "splits": {"train": "100000:101000", "search": "1000:1040", "select": "4000:4040", "confirm": "2000:2300"},
        "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16},
        "evaluation": {
            "conditions": ["normal", "null", "shuffle", "P0", "P1"],
            "confirm_conditions": ["constant", "mean", "init", "near"],
            "text_bytes": [],
            "scale_gates": [],
        },
    },
    "points": {"control": {}},
    "axes": {"codec.k": {"choice": [4, 8]}, "training.lr": {"loguniform": [1e-4, 1e-2]}},
    "search": {"trials": 2},
    "judge": {"select": 2, "confirm": 1, "diagnose": 0},
}


def rng_of(*key) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


class ScriptedPool:
    """Evaluators that draw outcomes; a job's outcomes are the same whenever it is run."""

    def __init__(self, world: "ScriptedSweep") -> None:
        self.world, self.jobs, self.done = world, [], []

    def submit(self, job) -> None:
        self.jobs.append(job)

    def poll(self):
        jobs, self.jobs = self.jobs, []
        self.done += jobs
        for job in jobs:
            yield FinishedJob(job, self.world.rows(job), "")

    drain = poll

    def finish(self, limit_s):
        return self.poll()

    def grow(self, count) -> None:
        pass

    def close(self) -> None:
        pass


class ScriptedSweep:
    """One sweep in a folder, which can be run, resumed and extended.

    Args:
        folder: Where space and results go.
        rates: Success rates by condition, for every codec.
        seed: Seed of all outcomes.
        space: Sections that replace those of `SPACE`.
    """

    def __init__(self, folder: Path, rates: dict[str, float], seed: int = 0, **space) -> None:
        self.rates, self.seed = rates, seed
        self.file = folder / "space.yaml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.root = folder / "results"
        self.trained: list[tuple[str, int]] = []
        self.evaluated: list = []
        self.seconds = 0.0  # on the clock of the budget; each training takes half an hour
        self.space = {**SPACE, **space}
        self.write()

    def write(self, **space) -> None:
        """Write the space with other sections."""
        self.file.write_text(yaml.safe_dump({**self.space, **space}))

    def run(self, monkeypatch, trials: int = 0, seeds: tuple[int, ...] = ()) -> None:
        """Run the sweep, or resume it, with so many trials and these training seeds more."""
        plan = load_plan(self.file)
        self.gate = load_plan_gate(plan)
        if not (self.root / "sweep.yaml").is_file():
            write_sweep_record(self.root, {"id": f"i{self.seed}", **describe_sweep(plan, self.gate, [])})
        growth = Growth(trials, list(seeds))
        plan = grow(plan, self.root, growth)
        ConfirmLooks(self.root, plan).check_fresh_messages()
        if growth.option:
            extend(self.root, trials, list(seeds), "command")
        proposer = OptunaProposer(plan, self.root / "checkpoints", Journal(self.root / "trials.jsonl"))
        pool = ScriptedPool(self)
        monkeypatch.setattr(engine, "Pool", lambda *args, **named: pool)
        monkeypatch.setattr(engine, "run_search", self._search)
        monkeypatch.setattr(engine, "Budget", lambda *args: Budget(*args, clock=lambda: self.seconds))
        monkeypatch.setattr(engine, "trials_at_once", lambda resources: 1)
        with Progress("scripted", forecast(plan), "quiet") as progress:
            engine.Sweep(plan, self.root, proposer, progress, self.gate).run()
        self.evaluated = pool.done

    def leaderboard(self) -> pd.DataFrame:
        return judge_folder(self.root).leaderboard

    def _search(self, proposer, observer, *args, **named) -> None:
        while isinstance(settings := proposer.propose(), dict):
            scores = []
            for seed in settings["seeds"]:
                folder, score = self._train(settings, seed)
                scores.append(score)
                observer.reported(
                    settings["config"],
                    {"checkpoint": folder, "score": score, "progress": 1, "epochs_total": 1, "k": 1},
                )
            self.seconds += 1800
            observer.tick()
            proposer.finished(settings["config"], sum(scores) / len(scores), "")

    def _train(self, settings, seed):
        name, trial = settings["config"], json.loads(settings["trial"])
        self.trained.append((name, seed))
        folder = run_folder(Path(settings["root"]), name, seed) / "epoch-01"
        folder.mkdir(parents=True)
        score = float(rng_of(self.seed, name, seed).normal())
        record = {
            "codec": trial["codec"],
            "receiver_digest": "r",
            "digest": f"{name}-{seed}",
            "config": name,
            "seed": seed,
            "step": 1,
            "params": settings["params"],
            "metrics": {"score": score, "epoch": 1},
        }
        (folder / "config.json").write_text(json.dumps(record))
        return folder, score

    def _nll(self, name, checkpoint) -> float:
        """Return the mean loss: what is trained later scores better, so that every extension has new winners."""
        return -1.0 * self.trained.index((checkpoint.config, checkpoint.seed)) if name == "normal" else 5.0

    def rows(self, job) -> pd.DataFrame:
        """Return the rows of an evaluation job, with outcomes by chance."""
        seeds = split_seeds(job.trial, job.split) if job.seeds is None else job.seeds
        part = job.split if job.split in ("search", "select") else "confirm"
        messages = [message_digest(e) for e in open_source(job.trial.task).without_sender(seeds, part)]
        episode_E = rng_of(self.seed, job.split, "episodes").standard_normal(len(seeds))
        checkpoint = checkpoint_id(job.folder) if job.folder else None
        frames = []
        for name in job.names:
            scope = row_scope(get_condition(name).depends_on, checkpoint, job.trial.codec.k, job.trial.codec.place)
            noise = rng_of(self.seed, job.split, name, scope)
            variable_E = np.sqrt(ALIKE) * episode_E + np.sqrt(1 - ALIKE) * noise.standard_normal(len(seeds))
            columns = {
                **scope._asdict(),
                "receiver": "r",
                "task": job.trial.task.name,
                "split": job.split,
                "decoding": "greedy",
                "condition": name,
                "episode": list(seeds),
                "partner": -1,
                "success": variable_E < scipy.stats.norm.ppf(self.rates[name]),
                "parsed": True,
                "partial": 0.0,
                "nll": self._nll(name, checkpoint) + noise.standard_normal(len(seeds)),
                "answer": "",
                "truncated": pd.array([False] * len(seeds), dtype="boolean"),
                "facts": "",
                "message": messages,
                "params": checkpoint.params if checkpoint and scope.config else "",
            }
            frames.append(pd.DataFrame(columns)[SCHEMA.names])
        return pd.concat(frames, ignore_index=True)
