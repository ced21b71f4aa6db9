"""A proposer and observer that runs a given list of small trials on Ray Tune and keeps their reports."""

import os
import signal
from collections import defaultdict, deque

from m2ray.config.space import Resources
from m2ray.config.trial import TrialConfig
from m2ray.util.strict_yaml import validate

EPOCHS = 3


def config(k=20, epochs=EPOCHS, lr=1e-6, epoch_samples=32, batch_size=16, **codec) -> TrialConfig:
    """Return a small codec on the embedded receiver.

    It starts near the identity at k = 20. At k = 24 its prefix is worse than none.
    """
    tree = {
        "splits": {"train": "100000:101000", "search": "1000:1040", "select": "4000:4002", "confirm": "2000:2002"},
        "codec": {"encoder": "segments", "k": k, "width": 32, "layers": 1, "scale_gate": 1.0, **codec},
        "training": {
            "epochs": epochs,
            "epoch_samples": epoch_samples,
            "batch_size": batch_size,
            "lr": lr,
            "warmup": 0,
        },
    }
    return validate(TrialConfig, tree, "test")


class ScriptedSearch:
    """A proposer of listed trials, and an observer that keeps reports.

    Args:
        root: Folder of checkpoints.
        trials: Configurations by name, in the order of proposal.
        seeds: Training seeds of each.
        points: Names of those that are points of the space.
        kill: Number of times that a trial's process is killed, right after a report, by name.
    """

    def __init__(self, root, trials, seeds=(0,), points=(), kill=None) -> None:
        self.waiting = deque(trials.items())
        self.root, self.seeds, self.points = root, list(seeds), points
        self.kill = kill or {}
        self.reports = defaultdict(list)
        self.ended = {}

    def propose(self):
        if not self.waiting:
            return None
        name, trial = self.waiting.popleft()
        return {
            "config": name,
            "trial": trial.model_dump_json(),
            "seeds": self.seeds,
            "root": str(self.root),
            "point": name in self.points,
            "params": {"training.lr": trial.training.lr},
            "resources": Resources().model_dump(),
        }

    def finished(self, name, score, cause) -> None:
        assert name not in self.ended
        self.ended[name] = (score, cause)

    def reported(self, name, metrics) -> None:
        self.reports[name].append(dict(metrics))
        if self.kill.get(name, 0) > 0:
            self.kill[name] -= 1
            os.kill(metrics["pid"], signal.SIGKILL)

    def tick(self) -> None:
        pass

    def progress(self, name) -> list[int]:
        return [report["progress"] for report in self.reports[name]]
