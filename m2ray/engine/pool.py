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
from m2ray.util.errors import UserError, last_line

Work = Callable[[Job], pd.DataFrame | None]

LOOK_S = 5.0  # between two looks at whether this process's node is alive


class Evaluator:
    """One resident process that does jobs; what it loaded, such as the receiver, stays loaded between them."""

    def run(self, work: Work, job: Job) -> pd.DataFrame | None:
        """Do one job."""
        limit_threads()
        return work(job)


@dataclass
class FinishedJob:
    """A job that ended: its rows, if it is one that has any, or the cause of its failure."""

    job: Job
    rows: pd.DataFrame | None
    cause: str


class Pool:
    """A fixed number of evaluators over a queue of jobs; no job is lost, none is done twice.

    One job in flight an actor. A dead actor is replaced and its job tried again, up to `tries` times; a Python
    error is final and recorded; a job over the time limit counts as a death. (`ray.util.ActorPool` drops the
    jobs of actors that die.)

    Args:
        work: What an actor does with a job.
        size: Actors. Those that hold a share of a GPU are made at once: later, they would wait for what the trials
            hold. Others are made for the first job that waits for one: the trials come first to the processes that
            Ray has at hand. See `grow`.
        gpus: Of each, a share or a number.
        tries: Times a job is begun before it is given up.
        limit_s: Seconds of a job.
    """

    def __init__(self, work: Work, size: int, gpus: float, tries: int = 3, limit_s: float = 3600.0) -> None:
        # No CPU is reserved: on a small machine the trials hold them all, and evaluation must not wait for them.
        self._kind = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Evaluator)
        self._gpus, self._made = gpus, 0
        self._work = work
        self._size, self._tries, self._limit_s = size, tries, limit_s
        self._queue: deque[tuple[Job, int]] = deque()
        self._idle: list[Any] = [self._make() for _ in range(size if gpus else 0)]
        self._busy: dict[Any, tuple[Any, Job, int, float]] = {}
        self._here, self._looked = ray.get_runtime_context().get_node_id(), time.monotonic()

    def _make(self) -> Any:
        """Another evaluator. What asks for nothing Ray puts on a node that has one already, even told to spread:
        each is given the next node.
        """
        if self._gpus:
            return self._kind.remote()
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        self._made += 1
        there = NodeAffinitySchedulingStrategy(nodes[self._made % len(nodes)], soft=False)
        return self._kind.options(scheduling_strategy=there).remote()

    def grow(self, size: int) -> None:
        """So many evaluators from now on, where that is more."""
        self._size = max(self._size, size)
        self._feed()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append((job, 1))
        self._feed()

    def _feed(self) -> None:
        while self._queue and len(self._busy) < self._size:
            actor = self._idle.pop() if self._idle else self._make()
            job, attempt = self._queue.popleft()
            self._busy[actor.run.remote(self._work, job)] = (actor, job, attempt, time.monotonic())

    def __len__(self) -> int:
        return len(self._queue) + len(self._busy)

    def poll(self, timeout: float = 0.0) -> list[FinishedJob]:
        """Jobs that ended since; waits at most `timeout` seconds for the first.

        Raises:
            UserError: the node that this process belongs to has died; Ray would wait for another one for ever.
        """
        self._look()
        if not self._busy:
            return []
        ready, waiting = ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        if ready:
            ready, waiting = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        done = []
        for reference in ready:
            actor, job, attempt, _ = self._busy.pop(reference)
            try:
                done.append(FinishedJob(job, ray.get(reference), ""))
                self._idle.append(actor)
            except ray.exceptions.RayTaskError as error:
                done.append(FinishedJob(job, None, last_line(str(error.cause or error))))
                self._idle.append(actor)
            except ray.exceptions.RayError as error:
                # The actor died, or the node that held its answer did.
                ray.kill(actor)
                done += self._again(job, attempt, f"evaluator died ({last_line(str(error))})")
        for reference in waiting:
            actor, job, attempt, since = self._busy[reference]
            if time.monotonic() - since > self._limit_s:
                del self._busy[reference]
                ray.kill(actor)
                done += self._again(job, attempt, f"evaluation took over {self._limit_s:g} s")
        self._feed()
        return done

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_S:
            return
        if not any(node["Alive"] and node["NodeID"] == self._here for node in ray.nodes()):
            raise UserError(
                "Ray: this machine's node died (out of memory is the usual reason); run the same command with "
                "--resume"
            )
        self._looked = time.monotonic()

    def _again(self, job: Job, attempt: int, cause: str) -> list[FinishedJob]:
        if attempt >= self._tries:
            return [FinishedJob(job, None, f"{cause}, {attempt} times")]
        self._queue.append((job, attempt + 1))
        return []

    def drain(self) -> Iterator[FinishedJob]:
        """All jobs left, as they end."""
        while len(self):
            yield from self.poll(timeout=0.5)

    def finish(self, limit_s: float) -> Iterator[FinishedJob]:
        """What is under way, as it ends, for so many seconds at most; what waits in the queue is dropped."""
        deadline = time.monotonic() + limit_s
        while self._busy and time.monotonic() < deadline:
            self._queue.clear()
            yield from self.poll(timeout=0.2)

    def close(self) -> None:
        """End the evaluators; handles left over would hold their resources."""
        for actor in [*self._idle, *(entry[0] for entry in self._busy.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
