"""m2ray: does a latent codec carry the message, or does its prefix merely prime the receiver?

import m2ray

codec = m2ray.Codec.from_pretrained("results/recipe-mini/best-k4")
rows = m2ray.evaluate(codec, codec.receiver, m2ray.task_episodes("easy", range(5_000_000, 5_000_200)))
print(m2ray.judge(rows).verdict)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2ray.api import (
        Codec,
        Receiver,
        UserError,
        Verdict,
        draw_by_k,
        draw_conditions,
        episodes,
        evaluate,
        judge,
        level,
        load_receiver,
        read_rows,
        sweep,
        task_episodes,
        train,
        verify,
    )

__all__ = [
    "Codec",
    "Receiver",
    "UserError",
    "Verdict",
    "draw_by_k",
    "draw_conditions",
    "episodes",
    "evaluate",
    "judge",
    "level",
    "load_receiver",
    "read_rows",
    "sweep",
    "task_episodes",
    "train",
    "verify",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import m2ray` returns at once, while torch takes seconds.
    if name not in __all__:
        raise AttributeError(f"module m2ray has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("m2ray.api"), name)
