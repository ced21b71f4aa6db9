"""What `import m2ray` offers beside the command lines: play a codec, and judge what came out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from m2ray import evaluation, gate
from m2ray.codec import Codec
from m2ray.config import EvaluationConfig
from m2ray.criteria import load_gate
from m2ray.receiver import Receiver
from m2ray.task import Episode

CONDITIONS = ("normal", "null", "random", "shuffle", "P0", "P1", "identity")


def evaluate(
    codec: Codec,
    receiver: Receiver,
    episodes: Sequence[Episode],
    conditions: Sequence[str] = CONDITIONS,
    config: EvaluationConfig | None = None,
) -> pd.DataFrame:
    """Play episodes under conditions.

    Args:
        codec: The codec under test.
        receiver: The one that it was trained for.
        episodes: Of one level, with messages that the codec never saw; `m2ray.task.episodes` draws some.
        conditions: Names, see `m2ray.conditions`; all but `constant`, which needs a training of its own.
        config: Decoding; greedy, if not given.

    Returns:
        One row an episode and condition, with the columns of `m2ray.rows`.

    Raises:
        UserError: an unknown condition, or one that these episodes cannot play.
    """
    subject = evaluation.Subject("codec", 0, codec.digest, 0, "{}")
    settings = config or EvaluationConfig()
    return evaluation.evaluate(receiver, episodes, "confirm", conditions, settings, subject, codec)


def judge(rows: pd.DataFrame) -> gate.Verdict:
    """The verdict of the reference gate on one codec's rows.

    Raises:
        UserError: a condition that the gate asks for is missing.
    """
    return gate.judge(rows, load_gate())
