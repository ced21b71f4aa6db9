"""Public Python API: run and judge a codec, and the types that plugins build on.

The names below keep their place and meaning between releases; all other modules may move. Each is loaded on first
use, so that a task plugin that needs no torch does not load it. docs/plugs.md shows a plugin of each kind.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from m2ray.codec.codec import Codec
    from m2ray.codec.encoders import last_state, mean_state
    from m2ray.config.objectives import LossTerm
    from m2ray.config.trial import CodecConfig, EvaluationConfig
    from m2ray.evaluation.conditions import Condition
    from m2ray.evaluation.inputs import ConditionInputs, Injection
    from m2ray.evaluation.rows import read_rows
    from m2ray.judging.verdict import Verdict
    from m2ray.receiver.loading import load_receiver
    from m2ray.receiver.model.requests import AnswerOutput, EncodedMessage
    from m2ray.receiver.receiver import Receiver
    from m2ray.reporting.leaderboard import JudgedRun
    from m2ray.tasks.answers import verify
    from m2ray.tasks.episodes import Episode, episodes
    from m2ray.tasks.level import Draw, Fact, Level
    from m2ray.tasks.registry import level
    from m2ray.tasks.text_episodes import TextEpisode
    from m2ray.training.objectives import Signals
    from m2ray.util.errors import UserError

_HOMES = {
    "AnswerOutput": "receiver.model.requests",
    "Codec": "codec.codec",
    "CodecConfig": "config.trial",
    "Condition": "evaluation.conditions",
    "ConditionInputs": "evaluation.inputs",
    "Draw": "tasks.level",
    "EncodedMessage": "receiver.model.requests",
    "Episode": "tasks.episodes",
    "EvaluationConfig": "config.trial",
    "Fact": "tasks.level",
    "Injection": "evaluation.inputs",
    "Level": "tasks.level",
    "LossTerm": "config.objectives",
    "Receiver": "receiver.receiver",
    "Signals": "training.objectives",
    "UserError": "util.errors",
    "Verdict": "judging.verdict",
    "episodes": "tasks.episodes",
    "last_state": "codec.encoders",
    "level": "tasks.registry",
    "load_receiver": "receiver.loading",
    "mean_state": "codec.encoders",
    "read_rows": "evaluation.rows",
    "verify": "tasks.answers",
}

__all__ = [
    "AnswerOutput",
    "Codec",
    "CodecConfig",
    "Condition",
    "ConditionInputs",
    "Draw",
    "EncodedMessage",
    "Episode",
    "EvaluationConfig",
    "Fact",
    "Injection",
    "Level",
    "LossTerm",
    "Receiver",
    "Signals",
    "UserError",
    "Verdict",
    "draw_by_k",
    "draw_conditions",
    "episodes",
    "evaluate",
    "judge",
    "last_state",
    "level",
    "load_receiver",
    "mean_state",
    "read_rows",
    "sweep",
    "task_episodes",
    "train",
    "verify",
]

NEEDED = ("config", "seed", "k", "condition", "episode", "success")  # columns of rows that can be judged
CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1", "identity")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module m2ray.api has no attribute {name!r}")
    return getattr(importlib.import_module(f"m2ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def task_episodes(
    task: str | Mapping[str, Any], seeds: range, part: str = "confirm"
) -> list[Episode | TextEpisode]:
    """Return episodes of any task, also of one in free text or in a file.

    Args:
        task: A level, such as "easy" or "sentences-4x4", or the keys of `task` in a space, such as
            {"file": "questions.jsonl", "scorer": "exact"}.
        seeds: Seeds of drawn episodes; of a file in free text, places among its episodes of the part; of a file of
            puzzles, places in the file.
        part: train, search, select or confirm; messages of one part are in no other.

    Raises:
        UserError: no such task or part, or the file has no such episodes.
    """
    # Imported here because it loads torch.
    from m2ray.config.task import Splits, TaskConfig
    from m2ray.receiver.episode_source import open_source
    from m2ray.util.errors import UserError
    from m2ray.util.strict_yaml import validate

    if part not in Splits.model_fields:
        raise UserError(f"part: {part!r:.60} does not exist; use one of {', '.join(Splits.model_fields)}")
    if not seeds or seeds.start < 0 or seeds.step != 1:
        raise UserError(f"seeds: {seeds}: not seeds in order; give some, such as range(1000, 1100)")
    source = open_source(validate(TaskConfig, {"level": task} if isinstance(task, str) else dict(task), "task"))
    splits = Splits.model_construct(None, **{part: f"{seeds.start}:{seeds.stop}"})
    chosen = source.seeds(splits, part)
    return list(source.get(chosen, part))


def evaluate(
    codec: Codec,
    receiver: Receiver,
    episodes: Sequence[Episode | TextEpisode],
    conditions: Sequence[str] = CONDITIONS,
    config: EvaluationConfig | None = None,
) -> pd.DataFrame:
    """Run episodes under conditions.

    The user's ledger records that their messages were looked at (`m2ray.evaluation.confirm_ledger`), and a warning
    says so if they had been before.

    Args:
        codec: The codec under test.
        receiver: The receiver that it was loaded for.
        episodes: Episodes of one task, with messages that the codec never saw; `m2ray.task_episodes` gives some.
        conditions: Names of conditions, except `constant`, which needs a training of its own.
        config: Decoding settings; greedy by default.

    Returns:
        One row per episode and condition, with the columns of `m2ray.evaluation.rows`. Their split is the range of
        the episodes' seeds, A:B.

    Raises:
        UserError: there are no episodes, codec or receiver may have been trained on their messages, the codec was
            loaded for another receiver, or a condition does not exist or cannot be run on them.
    """
    # Imported here because they load torch.
    from m2ray.codec.checkpoints import CheckpointId, of_other_receiver
    from m2ray.config.trial import EvaluationConfig, TrialConfig
    from m2ray.evaluation import runner
    from m2ray.evaluation.confirm_ledger import ConfirmLedger, new_look
    from m2ray.receiver.episode_source import check_not_of_receiver, open_source
    from m2ray.util.errors import UserError
    from m2ray.util.strict_yaml import validate

    if not episodes:
        raise UserError("episodes: none; give some, such as those of m2ray.task_episodes")
    if codec.receiver.digest != receiver.digest:
        raise UserError(
            f"receiver: {receiver.name} ({receiver.digest}) is not the one that the codec was loaded for, "
            f"{codec.receiver.name} ({codec.receiver.digest}); give that, or load the codec with "
            "Codec.from_pretrained(NAME, receiver=receiver, other_receiver=True)"
        )
    check_not_of_receiver(receiver, episodes)
    if "trial" in codec.record:
        trial = validate(TrialConfig, codec.record["trial"], "codec.record: trial")
        open_source(trial.task).check_not_trained_on(episodes, trial.splits)
    seeds = [episode.seed for episode in episodes]
    split = f"{min(seeds)}:{max(seeds) + 1}"
    name, columns = "codec", dict[str, str]()
    if codec.receiver_digest != receiver.digest:
        name, columns = of_other_receiver(name, codec.record)
    checkpoint = CheckpointId(name, 0, codec.digest, 0, json.dumps(columns))
    rows = runner.evaluate(receiver, episodes, split, conditions, config or EvaluationConfig(), checkpoint, codec)
    ledger = ConfirmLedger(episodes[0].family, receiver.digest)
    look = new_look(episodes, "m2ray.evaluate in Python", f"codec {checkpoint.checkpoint}", split)
    earlier = ledger.earlier(look)
    if earlier.looked_at and "published" not in codec.record:
        warnings.warn(f"episodes {split}: {earlier.summary}; judge on others", stacklevel=2)
    ledger.record(look)
    return rows


def judge(
    rows: pd.DataFrame, gate: str | Path | None = None, *, config: str | None = None, split: str | None = None
) -> Verdict:
    """Judge one codec's rows.

    Args:
        rows: Its rows, of one or several training seeds; or all rows of a sweep.
        gate: `content`, the default, `reference`, or a gate file.
        config: The configuration to judge, where the rows hold several.
        split: The split to judge, where they hold several.

    Raises:
        UserError: a column or a condition that the gate needs is missing, or the rows are of several codecs.
    """
    # Imported here because they load pandas and scipy.
    from m2ray.config.gate_file import load_gate
    from m2ray.evaluation.row_selection import configuration_rows
    from m2ray.judging.gate import judge_together

    _check_columns(rows)
    config = _only_value(rows, "config", config)
    own = rows[rows.config == config]
    split = _only_value(own, "split", split) if "split" in rows else None
    chosen = rows if split is None or not config else configuration_rows(rows, config, split)
    return judge_together([chosen], load_gate(gate))[0].verdict


def _only_value(rows: pd.DataFrame, column: str, wanted: str | None) -> str:
    """Return the value of a column that is to be judged; rows without one are shared by all.

    Raises:
        UserError: there are several and none is named, or there is no such value.
    """
    from m2ray.util.errors import UserError  # see above

    values = sorted({*rows[column].unique()} - {""}) or [""]
    shown = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
    if wanted is not None and wanted not in values:
        raise UserError(f"{column}: {wanted!r:.60} is not in the rows; choose from {shown}")
    if wanted is None and len(values) > 1:
        raise UserError(
            f"rows: hold {len(values)} values of {column} ({shown}); name one, such as {column}={values[0]!r}"
        )
    return str(wanted if wanted is not None else values[0])


def _check_columns(rows: pd.DataFrame) -> None:
    """Refuse what is not a frame with the columns of rows.

    Raises:
        UserError: names the argument, and the column.
    """
    from m2ray.util.errors import UserError  # see above

    if not hasattr(rows, "columns"):
        raise UserError(f"rows: a {type(rows).__name__}; give the frame of m2ray.evaluate or m2ray.read_rows")
    for name in NEEDED:
        if name not in rows.columns:
            raise UserError(
                f"rows: column {name}: missing; give the frame of m2ray.evaluate or m2ray.read_rows as it is"
            )
    if not len(rows):
        raise UserError("rows: none; give the frame of m2ray.evaluate or m2ray.read_rows as it is")


def train(config: str | Path | Mapping[str, Any], seed: int = 0, out: str | Path | None = None) -> Path:
    """Train one configuration in this process, and print a line per epoch.

    Args:
        config: A YAML file as `python -m m2ray.train` takes it, or its keys as a mapping.
        seed: Training seed.
        out: Folder of the training; default: results/train/ and the name of the file.

    Returns:
        The folder of the last checkpoint, for `Codec.from_pretrained`.

    Raises:
        UserError: the settings are not valid, the folder exists, or the training failed.
    """
    # Imported here because they load torch.
    from m2ray.cli.train import load_config, output_folder, run_training
    from m2ray.config.trial import TrialConfig
    from m2ray.util.strict_yaml import validate

    if isinstance(config, (str, Path)):
        file = Path(config)
        settings, name = load_config(file, {}), file.stem
    else:
        settings, name = validate(TrialConfig, dict(config), "config"), "config"
    folder = output_folder(Path(out) if out is not None else Path("results/train") / name, seed, resume=False)
    run_training(settings, seed, folder, {"config": name, "params": {}})
    return folder / f"epoch-{settings.training.epochs:02d}"


def sweep(
    space: str | Path = "quickstart",
    name: str | None = None,
    results: str | Path = "results",
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    address: str | None = None,
) -> pd.DataFrame:
    """Run a sweep, as `python -m m2ray.sweep` does, and return its leaderboard.

    Args:
        space: A YAML file, or the name of a packaged space.
        name: Folder below `results`; default: the name of the space.
        results: Folder for the results of sweeps.
        settings: Dotted keys to set, such as {"codec.k": 8}; see `--set`.
        resume: Continue a sweep that was stopped.
        address: Address of a running Ray cluster; default: start a local one.

    Raises:
        UserError: see `python -m m2ray.sweep`.
        RuntimeError: the sweep was stopped.
    """
    # Imported here because pandas takes a second.
    import pandas as pd

    # Imported here because they load pandas.
    from m2ray.cli.runner import DONE, SOME_FAILED
    from m2ray.cli.sweep import main, results_folder

    argv = [str(space), "--results", str(results), *(["--name", name] if name is not None else [])]
    argv += [word for key, value in (settings or {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]
    argv += [*(["--resume"] if resume else []), *(["--address", address] if address is not None else [])]
    if (code := main(argv)) not in (DONE, SOME_FAILED):
        raise RuntimeError(f"the sweep ended with exit code {code}; resume=True continues it")
    return pd.read_csv(results_folder(argv) / "leaderboard.csv")


def draw_conditions(rows: pd.DataFrame, gate: str | Path | None = None) -> Figure:
    """Draw success under each condition with its interval, a panel per configuration.

    Args:
        rows: Rows of one or more configurations, with those that they share.
        gate: As in `judge`.
    """
    from m2ray.reporting.figures import judged_runs as figures  # loads matplotlib

    return figures.draw_conditions(_judged(rows, gate))


def draw_by_k(rows: pd.DataFrame, gate: str | Path | None = None) -> Figure:
    """Draw success with the right message by k, beside no message, full text and priming.

    The arguments are those of `draw_conditions`.
    """
    from m2ray.reporting.figures import judged_runs as figures  # see above

    runs = _judged(rows, gate)
    return figures.draw_by_k(runs, figures.line_styles([run.config for run in runs]))


def _judged(rows: pd.DataFrame, gate: str | Path | None) -> list[JudgedRun]:
    """Return the runs of rows that have a verdict, as the figures show them."""
    # Imported here because they load pandas and matplotlib.
    from m2ray.config.gate_file import load_gate
    from m2ray.reporting.figures.judged_runs import runs_to_draw
    from m2ray.reporting.leaderboard import judge_runs, make_leaderboard

    _check_columns(rows)
    chosen = load_gate(gate)
    runs = judge_runs(rows, chosen)
    return runs_to_draw(runs, make_leaderboard(rows, runs, chosen))
