"""Files of episodes, as `task.file` names them."""

import json
from pathlib import Path

from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level


def write_episodes(file: Path, count: int, part: str = "confirm") -> None:
    """Write episodes of the level easy, with different messages."""
    fields = ("receiver_context", "sender_message", "receiver_output")
    lines = [
        dict(zip(fields, (e.context, e.message, write_answer(e.level, e.solution, "json")), strict=True))
        for e in episodes(level("easy"), range(count), part)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
