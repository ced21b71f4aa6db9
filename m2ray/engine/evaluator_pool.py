"""The evaluators: a pool of Ray actors over a queue of jobs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m2ray.engine.cluster import limit_threads
from m2ray.engine.jobs import Job
from m2ray.engine.killed_workers import EVALUATION_TRIES
from m2ray.util.errors import UserError, last_line
from m2ray.util.stopping import check_stopped

Work = Callable[[Job], pd.DataFrame | None]

NODE_CHECK_S = 5.0  # between two checks that this process's node is alive


class Evaluator:
    """A resident process that runs jobs; what it has loaded, such as the receiver, stays loaded between them."""

    def run(self, work: Work, job: Job) -> pd.DataFrame | None:
        """Run one job."""
        limit_threads()
        return work(job)


@dataclass
class FinishedJob:
    """A job that ended: its rows, if it is of a kind that has any, or the cause of its failure; and its time."""

    job: Job
    rows: pd.DataFrame | None
    cause: str
    seconds: float = 0.0


@dataclass
class _Running:
    """A job that an actor is running."""

    actor: Any
    job: Job
    attempt: int
    started: float


class Pool:
    """A fixed number of evaluators over a queue of jobs; no job is lost, none is done twice.

    Each actor has one job in flight. A dead actor is replaced and its job tried again, up to `tries` times; a
    Python error is final and recorded; a job over the time limit counts as a death. (`ray.util.ActorPool` drops
    the jobs of actors that die.)

    Args:
        work: The function an actor applies to a job.
        size: Number of actors. Those that hold a share of a GPU are started at once: later, they would wait for
            what the trials hold. Others are started for the first job that waits for one, so that the trials get
            the processes that Ray keeps ready. See `grow`.
        gpus: GPUs of each actor; may be a fraction.
        tries: Times a job is started before it counts as failed.
        limit_s: Time limit of a job in seconds.
        unlimited: Returns True for a job without a time limit.
    """

    def __init__(
        self,
        work: Work,
        size: int,
        gpus: float,
        tries: int = EVALUATION_TRIES,
        limit_s: float = 3600.0,
        unlimited: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        # No CPU is reserved: on a small machine the trials hold them all, and evaluation must not wait for them.
        self._actor_class = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Evaluator)
        self._gpus, self._started_actors = gpus, 0
        self._work = work
        self._size, self._tries, self._limit_s, self._unlimited = size, tries, limit_s, unlimited
        self._queue: deque[tuple[Job, int]] = deque()
        self._idle: list[Any] = [self._start_actor() for _ in range(size if gpus else 0)]
        self._running: dict[Any, _Running] = {}  # by the reference to the result
        self._node, self._node_checked = ray.get_runtime_context().get_node_id(), time.monotonic()

    def _start_actor(self) -> Any:
        """Start another evaluator, on the next node.

        Actors without resources all end up on one node, even when Ray is asked to spread them.
        """
        if self._gpus:
            return self._actor_class.remote()
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        self._started_actors += 1
        affinity = NodeAffinitySchedulingStrategy(nodes[self._started_actors % len(nodes)], soft=False)
        return self._actor_class.options(scheduling_strategy=affinity).remote()

    def grow(self, size: int) -> None:
        """Raise the number of evaluators to `size`, where that is more."""
        self._size = max(self._size, size)
        self._start_jobs()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append((job, 1))
        self._start_jobs()

    def _start_jobs(self) -> None:
        while self._queue and len(self._running) < self._size:
            actor = self._idle.pop() if self._idle else self._start_actor()
            job, attempt = self._queue.popleft()
            self._running[actor.run.remote(self._work, job)] = _Running(actor, job, attempt, time.monotonic())

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def poll(self, timeout: float = 0.0) -> list[FinishedJob]:
        """Return the jobs that have ended since the last call; wait at most `timeout` seconds for the first.

        Raises:
            UserError: the node that this process belongs to has died; Ray would wait for another one forever.
        """
        self._check_node()
        if not self._running:
            return []
        ready, waiting = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if ready:
            ready, waiting = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        finished = [job for reference in ready for job in self._collect(reference)]
        finished += [job for reference in waiting for job in self._end_if_late(reference)]
        self._start_jobs()
        return finished

    def _collect(self, reference: Any) -> list[FinishedJob]:
        running = self._running.pop(reference)
        seconds = time.monotonic() - running.started
        try:
            finished = FinishedJob(running.job, ray.get(reference), "", seconds)
        except ray.exceptions.RayTaskError as error:
            finished = FinishedJob(running.job, None, last_line(str(error.cause or error)))
        except ray.exceptions.RayError as error:
            # The actor died, or the node that held its result did.
            ray.kill(running.actor)
            return self._retry(running, f"evaluator died ({last_line(str(error))})")
        self._idle.append(running.actor)
        return [finished]

    def _end_if_late(self, reference: Any) -> list[FinishedJob]:
        running = self._running[reference]
        if self._unlimited(running.job) or time.monotonic() - running.started <= self._limit_s:
            return []
        del self._running[reference]
        ray.kill(running.actor)
        return self._retry(running, f"evaluation took over {self._limit_s:g} s")

    def _retry(self, running: _Running, cause: str) -> list[FinishedJob]:
        if running.attempt >= self._tries:
            return [FinishedJob(running.job, None, f"{cause}, {running.attempt} times")]
        self._queue.append((running.job, running.attempt + 1))
        return []

    def _check_node(self) -> None:
        if time.monotonic() - self._node_checked < NODE_CHECK_S:
            return
        if not any(node["Alive"] and node["NodeID"] == self._node for node in ray.nodes()):
            raise UserError(
                "Ray: this machine's node died (out of memory is the usual reason); run the same command with "
                "--resume"
            )
        self._node_checked = time.monotonic()

    def drain(self) -> Iterator[FinishedJob]:
        """Yield all remaining jobs as they end.

        Raises:
            Stopped: a signal was received; the jobs stay as they are.
        """
        while len(self):
            check_stopped()
            yield from self.poll(timeout=0.5)

    def finish(self, limit_s: float) -> Iterator[FinishedJob]:
        """Yield the running jobs as they end, for at most `limit_s` seconds; drop those in the queue."""
        deadline = time.monotonic() + limit_s
        while self._running and time.monotonic() < deadline:
            self._queue.clear()
            yield from self.poll(timeout=0.2)

    def close(self) -> None:
        """End the evaluators; handles left over would hold their resources."""
        for actor in [*self._idle, *(running.actor for running in self._running.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._running.clear()
