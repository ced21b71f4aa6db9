"""Command `python -m m2ray.evaluate CHECKPOINT`: run one checkpoint under the ablation conditions.

Without a checkpoint it measures a receiver alone; see `m2ray.diagnosis.fitness`.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from m2ray.cli.runner import DONE, EPISODES, OTHER_RECEIVER, Parser
from m2ray.codec.checkpoints import read_record, trained_with, trial_of
from m2ray.config.gate_file import load_gate
from m2ray.config.task import EVALUATION_SPLITS
from m2ray.config.trial import NumericType, TrialConfig
from m2ray.receiver.loading import faster_type, load_trial_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root, check_file

if TYPE_CHECKING:
    import pandas as pd

EVERY_S = 20.0  # between two lines on what is done


def main(argv: Sequence[str]) -> int:
    """Evaluate, print success per condition, write rows where requested."""
    args = _parser().parse_args(argv)
    if args.out is not None:
        check_file("--out", args.out, (".parquet",), "rows are Parquet; ")
    if args.other_receiver and not (args.receiver and args.checkpoint):
        raise UserError("--other-receiver: needs a checkpoint and a receiver; name that with --receiver")
    if args.receiver_dtype and args.checkpoint is None:
        raise UserError("--receiver-dtype: needs a checkpoint; without one the receiver runs in its fastest type")
    if args.checkpoint is None:
        # Loads torch and pandas: --help and bad options must not wait for them.
        from m2ray.diagnosis.fitness import measure_fitness

        _write(args.out, measure_fitness(args.receiver, args.task, args.episodes, args.conditions))
        return DONE
    if args.task is not None:
        raise UserError("--task: the checkpoint names its own task; leave it out")
    trial = trial_of(args.checkpoint)
    names = _condition_names(args, trial)
    split = args.split or args.episodes or "search"
    look = None if split in ("search", "select") else ConfirmLook(args, trial, split, argv)
    if look is not None and not args.unlock:
        look.check_first()
    trial = _with_receiver(args, trial)
    rows = _run(args.checkpoint, trial, split, names, args.other_receiver)
    print(wilson_table(rows))
    if args.receiver_dtype:
        print(f"the receiver ran in {load_trial_receiver(trial).dtype_name}")
    if args.other_receiver:
        own = trained_with(read_record(args.checkpoint))
        print(f"another receiver: the codec was trained with {own}; {args.receiver} answered")
    if look is not None:
        print(f"{split}: {look.record()}")
    _write(args.out, rows)
    if args.out is not None:
        if not (lacking := [name for name in load_gate().required if name not in names]):
            print(f"next: python -m m2ray.gate {args.out}")
        else:
            print(f"the gate also needs {', '.join(lacking)}; leave --conditions out to run all")
    return DONE


def _parser() -> Parser:
    parser = Parser(prog="python -m m2ray.evaluate", description="Run a checkpoint under the ablation conditions.")
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="folder with codec.safetensors and config.json; without it, --receiver, --task and --episodes "
        "measure whether a receiver is fit for a task",
    )
    parser.add_argument("--task", help="without a checkpoint: YAML file with a task, such as `level: easy`")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=EVALUATION_SPLITS, help="default: search")
    which.add_argument(*EPISODES, help="seeds A:B, end excluded; messages of the confirm part")
    parser.add_argument(
        "--conditions", help="comma-separated; default: those that the checkpoint's configuration names"
    )
    parser.add_argument("--receiver", help="folder or name of the receiver, if it has moved")
    parser.add_argument("--other-receiver", action="store_true", help=OTHER_RECEIVER)
    parser.add_argument(
        "--receiver-dtype",
        choices=get_args(NumericType),
        help="numeric type of the receiver; default: the one that the codec was trained with",
    )
    parser.add_argument("--out", type=Path, help="write rows to this Parquet file")
    parser.add_argument(
        "--unlock",
        action="store_true",
        help="look again at messages that were looked at before; the look is recorded, and reports list it",
    )
    return parser


def _condition_names(args: Namespace, trial: TrialConfig) -> list[str]:
    from m2ray.evaluation.conditions import get_condition  # loads torch

    names: list[str] = (
        args.conditions.split(",") if args.conditions is not None else trial.conditions_on("confirm")
    )
    for name in names:
        get_condition(name)
    return names


class ConfirmLook:
    """The look at confirm messages that this command takes.

    A published codec has been judged, so that running it again chooses nothing: its looks are never refused.

    Args:
        args: The command's options.
        trial: The checkpoint's configuration.
        split: confirm, or seeds A:B.
        argv: The command's arguments.

    Raises:
        UserError: `split` is not a range of seeds, or lines of a task file are in training.
    """

    def __init__(self, args: Namespace, trial: TrialConfig, split: str, argv: Sequence[str]) -> None:
        # Loads torch: see above.
        from m2ray.engine.jobs import split_seeds
        from m2ray.evaluation.confirm_ledger import ConfirmLedger, folder_of, new_look
        from m2ray.receiver.episode_source import open_source

        source = open_source(trial.task)
        try:
            seeds, confirm = split_seeds(trial, split), source.seeds(trial.splits, "confirm")
        except ValueError as error:
            raise UserError(f"--episodes: {error}") from None
        if split != "confirm":
            source.check_unseen(seeds, trial.splits)
        checkpoint: Path = args.checkpoint
        record = read_record(checkpoint)
        receiver = str(record["receiver_digest"])
        if args.other_receiver:  # what counts is which messages the receiver that answers has answered before
            receiver = load_trial_receiver(_with_receiver(args, trial)).digest
        command = shlex.join(["python", "-m", "m2ray.evaluate", *argv])
        episodes = source.without_sender(seeds, "confirm")
        self._look = new_look(episodes, command, f"checkpoint {record['digest']}", split)
        self._ledger = ConfirmLedger(trial.task.family, receiver)
        self._earlier = self._ledger.earlier(self._look)
        self._checkpoint, self._split, self._published = checkpoint, split, "published" in record
        self._folder = folder_of(checkpoint)
        self._is_of_confirm_split = not set(confirm).isdisjoint(seeds)

    def check_first(self) -> None:
        """Refuse a second look.

        Raises:
            UserError: the checkpoint's folder, or the user's ledger, has an earlier one.
        """
        from m2ray.evaluation.confirm_ledger import check_first_look  # loads pandas

        if self._published:
            return
        if self._is_of_confirm_split:
            check_first_look(self._folder, self._split)
        if self._earlier.looked_at:
            option = "--split confirm" if self._split == "confirm" else f"--episodes {self._split}"
            raise UserError(
                f"{option}: {self._earlier.summary}; use fresh --episodes A:B, or look again with --unlock, "
                "which is recorded"
            )

    def record(self) -> str:
        """Record the look where later ones will find it, and return a line about it."""
        from m2ray.evaluation.confirm_ledger import log_look  # loads pandas

        if self._is_of_confirm_split and not self._published:  # a published folder stays as it is
            log_look(self._folder, self._checkpoint, self._split)
        self._ledger.record(self._look)
        return self._earlier.line


def _with_receiver(args: Namespace, trial: TrialConfig) -> TrialConfig:
    """Return the configuration with the receiver and the numeric type that the command line names, if any."""
    if args.receiver_dtype:
        trial = trial.model_copy(update={"receiver_dtype": args.receiver_dtype})
    if args.receiver:
        return trial.model_copy(update={"receiver": args.receiver})
    try:
        receiver = load_trial_receiver(trial)
    except UserError as error:
        raise UserError(f"{args.checkpoint}: {error}; --receiver says where it is now") from None
    if not args.receiver_dtype and (faster := faster_type(trial.receiver, receiver)):
        print(
            f"{trial.receiver} runs in {receiver.dtype_name}, as when the codec was trained; on this CPU {faster} "
            f"is faster: --receiver-dtype {faster}",
            file=sys.stderr,
        )
    return trial


def _run(
    checkpoint: Path, trial: TrialConfig, split: str, names: Sequence[str], other_receiver: bool
) -> pd.DataFrame:
    # Loads torch: see above.
    from m2ray.engine.jobs import EvaluationJob, run_evaluation, split_seeds
    from m2ray.evaluation.confirm_ledger import sweep_of
    from m2ray.receiver.episode_source import open_source

    option = f"splits.{split}" if split in EVALUATION_SPLITS else "--episodes"
    lines = {option: split_seeds(trial, split)}
    open_source(trial.task).check_receiver_lines(load_trial_receiver(trial), lines)
    sweep = sweep_of(checkpoint)
    # A published folder stays as it is.
    published = "published" in read_record(checkpoint)
    constants = (cache_root() if sweep is None or published else sweep / "checkpoints") / "constants"
    names = tuple(dict.fromkeys(names))
    job = EvaluationJob(trial, split, names, checkpoint, constants, other_receiver=other_receiver)
    return run_evaluation(job, DoneConditions(len(names)))


class DoneConditions:
    """Tells how many conditions are done, at most one line every `EVERY_S` seconds.

    Args:
        conditions: How many there are.
    """

    def __init__(self, conditions: int) -> None:
        self._conditions, self._done = conditions, 0
        self._start = self._told = time.monotonic()

    def __call__(self, name: str) -> None:
        """Count a condition as done."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= EVERY_S and self._done < self._conditions:
            self._told = now
            line = f"{self._done} of {self._conditions} conditions after {now - self._start:.0f} s ({name})"
            print(line, file=sys.stderr, flush=True)


def _write(out: Path | None, rows: pd.DataFrame) -> None:
    """Write rows where they are wanted."""
    from m2ray.evaluation.rows import write_rows  # loads pandas

    if out is not None:
        write_rows(out, rows)
        print(f"rows: {out}")


def wilson_table(rows: pd.DataFrame) -> str:
    """Return success per condition with its interval, for rows of one checkpoint, as Markdown."""
    # Loads statsmodels: see above.
    from m2ray.judging.row_arms import cluster_intervals, count_successes
    from m2ray.judging.verdict_tables import summary_table
    from m2ray.util.tables import markdown

    return markdown(summary_table(count_successes(rows), intervals=cluster_intervals(rows)))
