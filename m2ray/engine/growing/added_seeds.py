"""Train the seeds that were added to a sweep, of the configurations that it judges."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ray.codec.checkpoints import run_folder
from m2ray.engine.proposer import OptunaProposer


class AddedSeeds:
    """Proposes a trial for each configuration that lacks a training seed.

    The searcher does not see these: it compares configurations by the training seeds that all of them have.

    Args:
        proposer: Knows the configurations.
        names: Those to train.
        seeds: The added training seeds.
        root: The folder of the checkpoints.
    """

    def __init__(self, proposer: OptunaProposer, names: Sequence[str], seeds: Sequence[int], root: Path) -> None:
        self.failures: dict[str, str] = {}  # causes by configuration
        self._proposer, self._root = proposer, root
        missing = {name: [seed for seed in seeds if not self._is_trained(name, seed)] for name in names}
        self._queue = deque((name, lacking) for name, lacking in missing.items() if lacking)

    def _is_trained(self, name: str, seed: int) -> bool:
        epochs = self._proposer.configs[name].training.epochs
        return (run_folder(self._root, name, seed) / f"epoch-{epochs:02d}" / "config.json").is_file()

    def propose(self) -> dict[str, Any] | None:
        """Return the settings of the next trial; None after the last."""
        return self._proposer.settings(*self._queue.popleft()) if self._queue else None

    def finished(self, name: str, score: float | None, cause: str) -> None:
        """Note why a training failed, if it did."""
        if cause:
            self.failures[name] = f"added seeds: {cause}"
