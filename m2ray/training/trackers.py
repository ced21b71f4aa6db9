"""Experiment trackers: one training is one run in TensorBoard, MLflow or W&B. All stay offline by default.

They write to the training's folder. TensorBoard: `tensorboard/`. MLflow: `mlflow.db` (SQLite), or the store that
MLFLOW_TRACKING_URI names. W&B: `wandb/`, for `wandb sync`, or online where WANDB_MODE or WANDB_API_KEY is set.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic

# MLflow and W&B would send usage data over the network, MLflow even with a local store.
OFFLINE = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
PROJECT = "m2ray"

Log = Callable[[int, Mapping[str, float]], None]


class Run(NamedTuple):
    """A training, as trackers see it."""

    name: str
    params: Mapping[str, Any]  # value by dotted key
    folder: Path
    step: int  # steps done before; above 0 where it resumes


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        UserError: one is not installed; the message names the first.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        # Without an origin it is just a folder with that name; W&B itself leaves one where it runs.
        if spec is None or spec.origin is None:
            raise UserError(f'trackers: {name}: not installed; pip install "m2ray[trackers]"')


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings with dotted keys, without values that are None."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            out[prefix + key] = value
    return out


def _run_id(file: Path, make: Callable[[], str]) -> str:
    """Return the run's id in a tracker: made at the first start, read from the file when the run resumes."""
    if not file.is_file():
        write_atomic(file, make().encode())
    return file.read_text()


# Trackers are optional dependencies, so each is imported where it is opened.


@contextmanager
def _tensorboard(run: Run) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "tensorboard"
    is_new = not folder.is_dir()
    # TensorBoard reads files in the order of their names, `events.out.tfevents.SECOND.HOST.PID...`. Within one
    # second, the resumed process could come before the interrupted one, and would purge the wrong events.
    if any(file.name.split(".")[3] == f"{int(time.time()):010d}" for file in folder.glob("events.out.tfevents.*")):
        time.sleep(1)
    # Steps after the state that the training resumes from are repeated: their first events are dropped.
    with SummaryWriter(str(folder), purge_step=run.step + 1) as writer:
        if is_new:
            rows = "".join(f"|{key}|{value}|\n" for key, value in run.params.items())
            writer.add_text("configuration", f"|key|value|\n|-|-|\n{rows}")

        def log(step: int, values: Mapping[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        yield log


@contextmanager
def _mlflow(run: Run) -> Iterator[Log]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{run.folder / 'mlflow.db'}")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    with suppress(MlflowException):  # it exists, or a trial that starts at the same time creates it
        client.create_experiment(experiment, None if uri else (run.folder / "mlflow").as_uri())

    def create_run() -> str:
        experiment_id = client.get_experiment_by_name(experiment).experiment_id
        run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in run.params.items()])
        return str(run_id)

    run_id = _run_id(run.folder / "mlflow.id", create_run)
    client.update_run(run_id, status="RUNNING")
    done = max((metric.step for metric in client.get_metric_history(run_id, "loss")), default=0)

    def log(step: int, values: Mapping[str, float]) -> None:
        if step > done:  # MLflow would keep both values of a repeated step
            now = int(time.time() * 1000)
            client.log_batch(run_id, [Metric(key, value, now, step) for key, value in values.items()])

    try:
        yield log
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


@contextmanager
def _wandb(run: Run) -> Iterator[Log]:
    import wandb

    online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=_run_id(run.folder / "wandb.id", lambda: uuid.uuid4().hex),
        resume="allow",
        config=dict(run.params),
        dir=run.folder,
        mode=None if online else "offline",
        settings=wandb.Settings(console="off", silent=True),
    ) as opened:
        yield lambda step, values: opened.log(dict(values), step=step)


OPEN: dict[str, Callable[[Run], AbstractContextManager[Log]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


@contextmanager
def tracking(
    config: TrialConfig, seed: int, name: str, folder: Path, step: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a configuration's trackers for one training, and close them at its end or failure.

    Args:
        config: The configuration; its keys, dotted, and the seed are the run's parameters.
        seed: Training seed.
        name: The configuration's name.
        folder: The training's folder. An interrupted run that it contains is resumed.
        step: Optimizer steps done before.

    Yields:
        A function that logs the numbers among metrics at their `step`.

    Raises:
        UserError: a tracker does not start.
    """
    params = {**flatten(config.model_dump(exclude={"trackers"})), "seed": seed}
    with ExitStack() as stack:
        logs: list[Log] = []
        for tracker in dict.fromkeys(config.trackers):
            folder.mkdir(parents=True, exist_ok=True)
            for key, value in OFFLINE.items():
                os.environ.setdefault(key, value)
            try:
                logs.append(
                    stack.enter_context(OPEN[tracker](Run(f"{name}/seed-{seed}", params, folder.resolve(), step)))
                )
            except Exception as error:  # three libraries, each with its own errors
                cause = " ".join(str(error).split())
                raise UserError(
                    f"trackers: {tracker}: cannot start a run ({cause:.200}); fix that or leave it out"
                ) from None

        def log(metrics: Mapping[str, Any]) -> None:
            numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
            step = int(numbers.pop("step"))
            for log_to in logs:
                log_to(step, numbers)

        yield log
