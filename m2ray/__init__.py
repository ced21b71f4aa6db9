"""m2ray: does a latent codec carry the message, or does its prefix merely prime the receiver?

import m2ray

receiver = m2ray.load_receiver("mini")
codec = m2ray.Codec.from_pretrained("results/recipe-mini/best-k4", receiver=receiver)
episodes = m2ray.episodes(m2ray.level("easy"), range(5_000_000, 5_000_200))
rows = m2ray.evaluate(codec, receiver, episodes)
print(m2ray.judge(rows).verdict)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2ray.api import evaluate, judge
    from m2ray.codec import Codec
    from m2ray.loading import load_receiver
    from m2ray.receiver import Receiver
    from m2ray.task import episodes, level, verify

# Loaded when first asked for: `import m2ray` is at once, torch takes seconds.
_HOMES = {
    "Codec": "codec",
    "Receiver": "receiver",
    "episodes": "task",
    "evaluate": "api",
    "judge": "api",
    "level": "task",
    "load_receiver": "loading",
    "verify": "task",
}

__all__ = ["Codec", "Receiver", "episodes", "evaluate", "judge", "level", "load_receiver", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module m2ray has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"m2ray.{_HOMES[name]}"), name)
