"""What happens when a worker is killed, and how often its work is started again.

| killed | lost | then |
|---|---|---|
| a trial's process | its training since the last saved state, see `m2ray.training.trainer` | Ray Tune resumes it |
| a DDP worker of a training | the same | Ray Train starts its whole group again, which resumes |
| an evaluator | the job that it was running | the pool starts the job again on a new evaluator |

A process that the system ends for want of memory counts as killed. A Python error does not: it would come again,
so the configuration or the evaluation fails at once. Only Ray Train, in a training of several workers, does not
tell the two apart. A training that runs out of memory in Python goes on with fewer rows at once, see
`m2ray.training.microbatch`.
"""

from __future__ import annotations

import ray.train
import ray.tune

from m2ray.config.space import Resources

EVALUATION_TRIES = 3  # times that an evaluation is started before it counts as failed


def restarts_of_trials(resources: Resources) -> ray.tune.FailureConfig:
    """Return Ray Tune's rule: a trial whose process died is started again `resources.retries` times."""
    return ray.tune.FailureConfig(max_failures=resources.retries)


def restarts_of_ddp_workers(resources: Resources) -> ray.train.FailureConfig:
    """Return Ray Train's rule: a group that lost a worker is started again `resources.retries` times.

    Failures of Ray Train's own controller, such as a node that leaves while the group starts, are counted apart.
    """
    return ray.train.FailureConfig(max_failures=resources.retries, controller_failure_limit=2)
