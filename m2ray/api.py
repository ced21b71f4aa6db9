"""Public Python API: run and judge a codec, and the types that plugins build on.

The names below keep their place and meaning between releases; all other modules may move. Each is loaded on first
use, so that a task plugin that needs no torch does not load it. docs/plugs.md shows a plugin of each kind.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from m2ray.codec.codec import Codec
    from m2ray.codec.encoders import last_state, mean_state
    from m2ray.config.objectives import LossTerm
    from m2ray.config.trial import CodecConfig, EvaluationConfig
    from m2ray.evaluation.conditions import Condition
    from m2ray.evaluation.inputs import ConditionInputs, Injection
    from m2ray.judging.verdict import Verdict
    from m2ray.receiver.loading import load_receiver
    from m2ray.receiver.model.requests import AnswerOutput, EncodedMessage
    from m2ray.receiver.receiver import Receiver
    from m2ray.tasks.answers import verify
    from m2ray.tasks.episodes import Episode, episodes
    from m2ray.tasks.level import Draw, Fact, Level
    from m2ray.tasks.registry import level
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
    "episodes",
    "evaluate",
    "judge",
    "last_state",
    "level",
    "load_receiver",
    "mean_state",
    "verify",
]

CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1", "identity")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module m2ray.api has no attribute {name!r}")
    return getattr(importlib.import_module(f"m2ray.{_HOMES[name]}"), name)


def evaluate(
    codec: Codec,
    receiver: Receiver,
    episodes: Sequence[Episode],
    conditions: Sequence[str] = CONDITIONS,
    config: EvaluationConfig | None = None,
) -> pd.DataFrame:
    """Run episodes under conditions.

    The user's ledger records that their messages were looked at (`m2ray.evaluation.confirm_ledger`), and a warning
    says so if they had been before.

    Args:
        codec: The codec under test.
        receiver: The receiver that it was trained for.
        episodes: Episodes of one level, with messages that the codec never saw; `m2ray.episodes` draws some.
        conditions: Names of conditions, except `constant`, which needs a training of its own.
        config: Decoding settings; greedy by default.

    Returns:
        One row per episode and condition, with the columns of `m2ray.evaluation.rows`. Their split is the range of
        the episodes' seeds, A:B.

    Raises:
        UserError: there are no episodes, codec or receiver may have been trained on their messages, or a condition
            does not exist or cannot be run on them.
    """
    # Imported here because they load torch.
    from m2ray.codec.checkpoints import CheckpointId
    from m2ray.config.trial import EvaluationConfig, TrialConfig
    from m2ray.evaluation import runner
    from m2ray.evaluation.confirm_ledger import ConfirmLedger, new_look
    from m2ray.receiver.episode_source import check_not_of_receiver, open_source
    from m2ray.util.errors import UserError
    from m2ray.util.strict_yaml import validate

    if not episodes:
        raise UserError("episodes: none; give some, such as those that m2ray.episodes draws")
    check_not_of_receiver(receiver, episodes)
    if "trial" in codec.record:
        trial = validate(TrialConfig, codec.record["trial"], "codec.record: trial")
        open_source(trial.task).check_not_trained_on(episodes, trial.splits)
    seeds = [episode.seed for episode in episodes]
    split = f"{min(seeds)}:{max(seeds) + 1}"
    checkpoint = CheckpointId("codec", 0, codec.digest, 0, "{}")
    rows = runner.evaluate(receiver, episodes, split, conditions, config or EvaluationConfig(), checkpoint, codec)
    ledger = ConfirmLedger(episodes[0].family, receiver.digest)
    look = new_look(episodes, "m2ray.evaluate in Python", f"codec {checkpoint.checkpoint}", split)
    earlier = ledger.earlier(look)
    if earlier.looked_at and "published" not in codec.record:
        warnings.warn(f"episodes {split}: {earlier.summary}; judge on others", stacklevel=2)
    ledger.record(look)
    return rows


def judge(rows: pd.DataFrame, gate: str | Path | None = None) -> Verdict:
    """Judge one codec's rows.

    Args:
        rows: Its rows, of one or several training seeds.
        gate: `content`, the default, `reference`, or a gate file.

    Raises:
        UserError: a condition that the gate needs is missing.
    """
    # Imported here because they load pandas and scipy.
    from m2ray.config.gate_file import load_gate
    from m2ray.judging.gate import judge_together

    return judge_together([rows], load_gate(gate))[0].verdict
