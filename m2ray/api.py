"""Public Python API: run and judge a codec, and the types that plugins build on.

The names below keep their place and meaning between releases; all other modules may move. Each is loaded on first
use, so that a task plugin that needs no torch does not load it. docs/plugs.md shows a plugin of each kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from m2ray.codec.codec import Codec
    from m2ray.codec.encoders import last_state, mean_state
    from m2ray.config.objectives import LossTerm
    from m2ray.config.trial import CodecConfig, EvaluationConfig
    from m2ray.evaluation.conditions import Condition, ConditionInputs, Injection
    from m2ray.judging.gate import Verdict
    from m2ray.receiver.loading import load_receiver
    from m2ray.receiver.receiver import Receiver
    from m2ray.receiver.requests import AnswerOutput, EncodedMessage
    from m2ray.tasks.answers import verify
    from m2ray.tasks.episodes import Episode, episodes
    from m2ray.tasks.level import Draw, Fact, Level
    from m2ray.tasks.registry import level
    from m2ray.training.objectives import Signals
    from m2ray.util.errors import UserError

_HOMES = {
    "AnswerOutput": "receiver.requests",
    "Codec": "codec.codec",
    "CodecConfig": "config.trial",
    "Condition": "evaluation.conditions",
    "ConditionInputs": "evaluation.conditions",
    "Draw": "tasks.level",
    "EncodedMessage": "receiver.requests",
    "Episode": "tasks.episodes",
    "EvaluationConfig": "config.trial",
    "Fact": "tasks.level",
    "Injection": "evaluation.conditions",
    "Level": "tasks.level",
    "LossTerm": "config.objectives",
    "Receiver": "receiver.receiver",
    "Signals": "training.objectives",
    "UserError": "util.errors",
    "Verdict": "judging.gate",
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

    Args:
        codec: The codec under test.
        receiver: The receiver that it was trained for.
        episodes: Episodes of one level, with messages that the codec never saw; `m2ray.episodes` draws some.
        conditions: Names of conditions, except `constant`, which needs a training of its own.
        config: Decoding settings; greedy by default.

    Returns:
        One row per episode and condition, with the columns of `m2ray.evaluation.rows`.

    Raises:
        UserError: a condition does not exist, or cannot be run on these episodes.
    """
    # Imported here because they load torch.
    from m2ray.codec.checkpoints import CheckpointId
    from m2ray.config.trial import EvaluationConfig
    from m2ray.evaluation import runner

    checkpoint = CheckpointId("codec", 0, codec.digest, 0, "{}")
    return runner.evaluate(
        receiver, episodes, "confirm", conditions, config or EvaluationConfig(), checkpoint, codec
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Judge one codec's rows by the reference gate.

    Raises:
        UserError: a condition that the gate needs is missing.
    """
    # Imported here because they load pandas and scipy.
    from m2ray.config.gate_file import load_gate
    from m2ray.judging import gate

    return gate.judge(rows, load_gate())
