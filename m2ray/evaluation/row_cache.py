"""Rows that need no codec, kept from one sweep to the next.

P0, P1, identity and cut texts depend on receiver, episodes and decoding alone. They are played once and then lie
in the user's cache under a digest of all that decides them, this package's source included, so that a second
sweep on the same receiver starts warm. A file that is damaged is played again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence

import pandas as pd
import torch

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.rows import read_rows, write_rows
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode
from m2ray.util import plugins
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root


def cached_rows(
    receiver: Receiver, episodes: Sequence[Episode], split: str, names: Sequence[str], config: EvaluationConfig
) -> pd.DataFrame:
    """Rows as `evaluate` returns them, of conditions that depend on nothing but the receiver.

    Where plugs are installed all is played: what they do may change while neither version nor name does.
    """
    if plugins.packages():
        return evaluate(receiver, episodes, split, names, config)
    decides = [
        code_digest(),
        torch.__version__,
        receiver.digest,
        [str(receiver.device.type), str(receiver.dtype)],
        [split, *names],
        [config.temperature, config.max_new_tokens, config.batch_size],
        episodes[0].level.name,
        [[e.seed, e.message, e.context, e.solution] for e in episodes],
    ]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
    file = cache_root() / "rows" / f"{digest}.parquet"
    try:
        return read_rows(file)
    except UserError:  # not there, or damaged
        rows = evaluate(receiver, episodes, split, names, config)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, and no result
            write_rows(file, rows)
        return rows
