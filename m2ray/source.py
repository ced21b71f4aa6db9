"""Where episodes come from: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from m2ray.command import UserError
from m2ray.config import Splits, TaskConfig
from m2ray.receiver import Receiver, load_receiver, pad
from m2ray.task import Episode, draw, level, read_episodes, with_messages

SENDER_PROMPT = (
    "You are agent A. Your partner must find whole numbers for {names} but cannot see these constraints of "
    "yours:\n{context}\nTell your partner what you know, completely, in one short message."
)


class Source:
    """The episodes of a task. A seed and a part name one episode, for ever."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.level = level(config.level)

    @cached_property
    def _file(self) -> list[Episode]:
        assert self.config.file is not None
        return read_episodes(Path(self.config.file), self.level)

    @cached_property
    def _sender(self) -> Receiver:
        return load_receiver(self.config.messages)

    def get(self, seeds: Sequence[int], part: str) -> list[Episode]:
        """Episodes by seed; of a file, by line number counted from 0.

        Raises:
            UserError: a seed beyond the end of the file.
        """
        if self.config.file is None:
            played = [draw(self.level, seed, part) for seed in seeds]
        else:
            if seeds and max(seeds) >= len(self._file):
                raise UserError(
                    f"{self.config.file}: has lines 0 to {len(self._file) - 1}, split {part} asks for line "
                    f"{max(seeds)}; shorten splits.{part}"
                )
            played = [self._file[seed] for seed in seeds]
        if self.config.messages != "template":
            played = with_messages(played, written_messages(self._sender, played))
        return played

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a file in which a message of an evaluation split also occurs in training.

        Drawn episodes need no check: their parts are disjoint by construction (`m2ray.task.part_of`).
        """
        if self.config.file is None:
            return
        trained = {episode.content for episode in self.get(splits.seeds("train"), "train")}
        for name in ("search", "select", "confirm"):
            for episode in self.get(splits.seeds(name), name):
                if episode.content in trained:
                    raise UserError(
                        f"{self.config.file}: line {episode.seed + 1}: its message is in splits.train and in "
                        f"splits.{name}; remove one of the two"
                    )


def cache_root() -> Path:
    """The user's cache folder of this program."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m2ray"


def written_messages(sender: Receiver, played: Sequence[Episode], batch_size: int = 32) -> list[str]:
    """A's messages in the words of a sender LM, greedily, each written once and then read from the cache.

    Raises:
        UserError: the sender has no chat template, or wrote nothing.
    """
    if not sender.tokenizer.chat_template:
        raise UserError(f"task.messages: {sender.name} has no chat template; name an instruct model or `template`")
    file = cache_root() / "messages" / f"{sender.digest}.jsonl"
    known: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["message"]
    prompts = {
        hashlib.sha256(text.encode()).hexdigest()[:32]: text
        for text in (_sender_prompt(sender, episode) for episode in played)
    }
    missing = [key for key in prompts if key not in known]
    for start in range(0, len(missing), batch_size):
        keys = missing[start : start + batch_size]
        rows = [sender.tokens(prompts[key]) for key in keys]
        embeds_BTD = sender.model.get_input_embeddings()(pad(rows, 0).to(sender.device))
        lengths_B = torch.tensor([len(row) for row in rows], device=sender.device)
        texts = sender.generate(embeds_BTD, lengths_B, list(range(len(rows))))
        for key, text in zip(keys, texts, strict=True):
            known[key] = " ".join(text.split())
            if not known[key]:
                raise UserError(f"task.messages: sender {sender.name} wrote an empty message; use another")
        lines = "".join(json.dumps({"key": key, "message": known[key]}) + "\n" for key in keys)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(lines)
    order = [hashlib.sha256(_sender_prompt(sender, episode).encode()).hexdigest()[:32] for episode in played]
    return [known[key] for key in order]


def _sender_prompt(sender: Receiver, episode: Episode) -> str:
    from m2ray.task import write_constraints

    content = SENDER_PROMPT.format(names=", ".join(episode.level.names), context=write_constraints(episode.sender))
    return str(
        sender.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )
