"""Rows that need no codec, kept in the user's cache from one sweep to the next.

P0, P1, identity and cut texts depend on receiver, episodes and decoding only. They are evaluated once and kept
under a digest of all that they depend on, this package's source included. Rows in a damaged file are evaluated
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence

import pandas as pd
import torch
import transformers

from m2ray.config.trial import EvaluationConfig
from m2ray.evaluation.rows import read_rows, write_rows
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import AnyEpisode
from m2ray.util import plugins
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root


def cached_rows(
    receiver: Receiver, episodes: Sequence[AnyEpisode], split: str, names: Sequence[str], config: EvaluationConfig
) -> pd.DataFrame:
    """Return `evaluate`'s rows of conditions that depend on the receiver only, from the cache where possible.

    Nothing is cached while plugins are installed: their code may change while version and name stay the same.
    """
    if plugins.packages():
        return evaluate(receiver, episodes, split, names, config)
    key = [
        code_digest(),
        [torch.__version__, transformers.__version__],
        receiver.digest,
        [str(receiver.device.type), str(receiver.dtype)],
        [split, *names],
        [config.temperature, config.max_new_tokens, config.batch_size],
        episodes[0].task,
        [repr(episode) for episode in episodes],
        repr(getattr(episodes[0], "setting", None)),
        # A chat template may write today's date into a prompt.
        [receiver.prompt_ids(episode) for episode in episodes],
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    file = cache_root() / "rows" / f"{digest}.parquet"
    try:
        return read_rows(file)
    except UserError:  # missing or damaged
        rows = evaluate(receiver, episodes, split, names, config)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not a result
            write_rows(file, rows)
        return rows
