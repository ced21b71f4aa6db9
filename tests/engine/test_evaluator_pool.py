"""The evaluators on a real local Ray: actors killed at work, poison, hangs; nothing lost, nothing done twice."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import ray

from m2ray.engine import cluster
from m2ray.engine.evaluator_pool import Pool
from m2ray.util.errors import last_line


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    cluster.start(None, nested=False)
    yield
    cluster.stop()


def pool_of(work, size=2, **limits):
    return Pool(work, size, 0.0, **limits)


def drained(pool):
    """All that ended, and the pool closed."""
    try:
        return list(pool.drain())
    finally:
        pool.close()


def make_work(folder: Path):
    """A job is (number, what happens); what happened is noted in the folder, a line a begin and an end."""

    def work(job):
        number, kind = job
        with (folder / f"{number}.log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        tries = len((folder / f"{number}.log").read_text().splitlines())
        if kind == "poison":
            raise ValueError(f"job {number} is poison")
        if kind == "deadly" or (kind == "deadly once" and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang" or (kind == "hang once" and tries == 1):
            time.sleep(600)
        if kind == "slow":
            time.sleep(20)
        return pd.DataFrame({"number": [number], "pid": [os.getpid()]})

    return work


def tries(folder, number) -> int:
    return len((folder / f"{number}.log").read_text().splitlines())


def test_a_pool_that_grows_has_more_at_work(tmp_path):
    barrier = tmp_path / "barrier"
    barrier.mkdir()

    def work(job):
        (barrier / str(job)).touch()
        while len(list(barrier.iterdir())) < 3:  # alone, an evaluator would wait here for ever
            time.sleep(0.05)
        return pd.DataFrame({"pid": [os.getpid()]})

    pool = pool_of(work, size=1, limit_s=60)
    for number in range(3):
        pool.submit(number)
    pool.grow(3)
    pool.grow(2)
    assert len({int(done.rows.pid[0]) for done in drained(pool)}) == 3


def wait_for(file, lines=1):
    deadline = time.monotonic() + 120
    while not (file.is_file() and len(file.read_text().splitlines()) >= lines):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(file.read_text().splitlines()[lines - 1])


def test_every_job_comes_back_once_whatever_happens_to_the_actors(tmp_path):
    kinds = ["fine"] * 12 + ["poison"] * 2 + ["deadly once"] * 2 + ["deadly"]
    pool = pool_of(make_work(tmp_path))
    for number, kind in enumerate(kinds):
        pool.submit((number, kind))
    assert len(pool) == len(kinds)
    done = drained(pool)
    assert Counter(d.job[0] for d in done) == Counter(range(len(kinds)))
    assert len(pool) == 0
    by_kind = {kind: [d for d in done if d.job[1] == kind] for kind in kinds}
    for d in by_kind["fine"] + by_kind["deadly once"]:
        assert d.cause == ""
        assert d.rows.number.tolist() == [d.job[0]]
    for d in by_kind["poison"]:
        assert (d.rows, d.cause) == (None, f"job {d.job[0]} is poison")
        assert tries(tmp_path, d.job[0]) == 1
    for d in by_kind["deadly once"]:
        assert tries(tmp_path, d.job[0]) == 2
    (dead,) = by_kind["deadly"]
    assert dead.rows is None
    assert dead.cause.startswith("evaluator died (")
    assert dead.cause.endswith(", 3 times")
    assert tries(tmp_path, dead.job[0]) == 3
    # A poison job does not cost its actor: the same two processes play all but what kills them.
    assert len({d.rows.pid[0] for d in done if d.rows is not None}) <= 2 + 2 + 3


def test_an_actor_killed_from_outside_in_mid_job_costs_nothing_but_time(tmp_path):
    pool = pool_of(make_work(tmp_path), size=1)
    pool.submit((0, "hang once"))
    pool.submit((1, "fine"))
    os.kill(wait_for(tmp_path / "0.log"), signal.SIGKILL)
    done = drained(pool)
    assert [(d.job[0], d.cause) for d in done] == [(1, ""), (0, "")]
    assert (tries(tmp_path, 0), tries(tmp_path, 1)) == (2, 1)


@pytest.mark.slow
def test_a_hang_is_ended_by_the_time_limit_and_the_others_go_on(tmp_path):
    pool = pool_of(make_work(tmp_path), size=1, limit_s=8, tries=1)
    wait_for_start(pool)
    pool.submit((0, "hang"))
    pool.submit((1, "fine"))
    done = {d.job[0]: d for d in drained(pool)}
    assert (done[0].rows, done[0].cause) == (None, "evaluation took over 8 s, 1 times")
    assert done[1].cause == ""
    with pytest.raises(ProcessLookupError):
        os.kill(wait_for(tmp_path / "0.log"), 0)


def wait_for_start(pool):
    """Until the actors are up: starting them counts towards the first job's time."""
    ray.get([actor.__ray_ready__.remote() for actor in pool._idle])


def test_polling_returns_at_once_while_nothing_has_ended(tmp_path):
    pool = pool_of(make_work(tmp_path), size=1)
    assert pool.poll(timeout=60) == []  # nothing is under way
    pool.submit((0, "slow"))
    wait_for(tmp_path / "0.log")
    assert pool.poll() == []
    assert len(pool) == 1
    pool.close()


def ask_again_and_again(actor):
    """What reaches an actor before Ray's order to die is still answered."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ray.get(actor.__ray_ready__.remote(), timeout=60)


def test_closing_frees_what_the_actors_held():
    pool = pool_of(lambda job: pd.DataFrame(), size=3)
    wait_for_start(pool)
    actors = list(pool._idle)
    pool.close()
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ask_again_and_again(actor)


def test_the_telling_line_of_an_error_is_its_last():
    assert last_line("Traceback\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert last_line("") == "unknown cause"
    assert len(last_line("x" * 1000)) == 300
