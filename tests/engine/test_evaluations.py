"""The evaluations of a sweep: each condition that a split needs is queued once, whatever earlier runs recorded."""

import pytest
from made_codecs import make_codec
from made_rows import rows_with

from m2ray.config.trial import TrialConfig
from m2ray.engine.evaluations import Evaluations
from m2ray.engine.sweep import rows_of
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.rows import RowStore

OLD = ("normal", "null", "random", "shuffle", "P0", "P1", "identity", "constant", "mean", "matched")


class Queue:
    """A pool that only queues."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)

    def names(self):
        names = [name for job in self.jobs for name in job.names]
        assert len(set(names)) == len(names)
        return set(names)


@pytest.fixture
def trial():
    return TrialConfig(codec={"k": 4, "width": 32, "layers": 1})


@pytest.fixture
def checkpoint(tiny, tmp_path):
    codec = make_codec(tiny, k=4)
    codec.save(tmp_path / "c", {"config": "mine", "seed": 0, "step": 7, "params": {}})
    return tmp_path / "c", codec.digest


def row(condition, digest, split):
    """A recorded row as an older version wrote it, when rows of `constant` were shared by k and place."""
    depends_on = "slots" if condition == "constant" else get_condition(condition).depends_on
    own = {"config": "mine", "seed": 0, "checkpoint": digest, "step": 7, "k": 4, "place": "message"}
    if depends_on != "checkpoint":
        own |= {"config": "", "seed": -1, "checkpoint": "", "step": 0}
    if depends_on == "receiver":
        own |= {"k": 0, "place": ""}
    return {**own, "condition": condition, "split": split}


@pytest.mark.parametrize("split", ["search", "select", "confirm"])
def test_each_split_gets_exactly_its_conditions_once(trial, checkpoint, tmp_path, split):
    queue = Queue()
    evaluations = Evaluations(tmp_path / "sweep", queue, None, {})
    assert evaluations.restore() == 0
    for _ in range(2):
        evaluations.queue(trial, split, checkpoint[0])
        assert queue.names() == set(trial.conditions_on(split))


def test_a_sweep_recorded_before_runs_what_is_missing_and_nothing_twice(trial, checkpoint, tmp_path):
    folder, digest = checkpoint
    recorded = [row(name, digest, split) for name in OLD for split in ("search", "confirm")]
    RowStore(tmp_path / "sweep").append(rows_with(*recorded))
    queue = Queue()
    evaluations = Evaluations(tmp_path / "sweep", queue, None, {})
    assert evaluations.restore() == len(recorded)
    evaluations.queue(trial, "search", folder)
    assert queue.names() == set(trial.conditions_on("search")) - set(OLD)
    queue.jobs.clear()
    evaluations.queue(trial, "confirm", folder)
    assert queue.names() == set(trial.conditions_on("confirm")) - set(OLD) | {"constant"}


def test_a_checkpoint_has_its_own_rows_and_not_those_of_one_with_equal_weights(checkpoint):
    folder, digest = checkpoint
    mine, other, free = (
        row("normal", digest, "search"),
        row("normal", digest, "search"),
        row("P0", digest, "search"),
    )
    rows = rows_with(mine, {**other, "config": "other"}, {**other, "seed": 1}, free)
    assert rows_of(rows, folder).index.tolist() == [0]
