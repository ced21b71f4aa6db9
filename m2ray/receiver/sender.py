# NEWDOC
"""Where episodes come from: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from m2ray.receiver.layout import pad
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, write_facts
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root

SENDER_PROMPT = (
    "You are agent A. Your partner must find whole numbers for {names} but cannot see these constraints of "
    "yours:\n{context}\nTell your partner what you know, completely, in one short message."
)


class Sender:
    """A sender LM. It writes each message once, greedily; from then on the user's cache holds it."""

    BATCH = 32

    def __init__(self, receiver: Receiver) -> None:
        if not receiver.tokenizer.chat_template:
            raise UserError(
                f"task.messages: {receiver.name} has no chat template; name an instruct model or `template`"
            )
        self.receiver = receiver
        self.file = cache_root() / "messages" / f"{receiver.digest}.jsonl"
        self._known: dict[str, str] = {}

    def write(self, played: Sequence[Episode]) -> list[str]:
        """A's messages in the sender's words.

        Raises:
            UserError: it wrote nothing.
        """
        prompts = [self._prompt(episode) for episode in played]
        keys = [hashlib.sha256(prompt.encode()).hexdigest()[:32] for prompt in prompts]
        if not self._known.keys() >= set(keys):
            self._read()
        asked = dict(zip(keys, prompts, strict=True))
        missing = [key for key in asked if key not in self._known]
        for start in range(0, len(missing), self.BATCH):
            batch = missing[start : start + self.BATCH]
            self._append(dict(zip(batch, self._generate([asked[key] for key in batch]), strict=True)))
            self._read()
        return [self._known[key] for key in keys]

    def _prompt(self, episode: Episode) -> str:
        content = SENDER_PROMPT.format(names=", ".join(episode.level.names), context=write_facts(episode.sender))
        turns = [{"role": "user", "content": content}]
        return str(self.receiver.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _generate(self, prompts: Sequence[str]) -> list[str]:
        rows = [self.receiver.tokens(prompt) for prompt in prompts]
        embeds_BTD = self.receiver.model.get_input_embeddings()(pad(rows, 0).to(self.receiver.device))
        lengths_B = torch.tensor([len(row) for row in rows], device=self.receiver.device)
        texts = self.receiver.generate(embeds_BTD, lengths_B, list(range(len(rows))))
        messages = [" ".join(text.split()) for text in texts]
        if not all(messages):
            raise UserError(f"task.messages: sender {self.receiver.name} wrote an empty message; use another")
        return messages

    def _read(self) -> None:
        """Take in the cache. A key's first line counts, so that all who write at once agree afterwards. A line
        that a crash tore does not count: its message is written again.
        """
        for line in self.file.read_bytes().split(b"\n") if self.file.is_file() else []:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if (
                isinstance(entry, dict)
                and isinstance(entry.get("key"), str)
                and isinstance(entry.get("message"), str)
            ):
                self._known.setdefault(entry["key"], entry["message"])

    def _append(self, messages: Mapping[str, str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"key": key, "message": text}) + "\n" for key, text in messages.items())
        # Begin on a line of our own whatever a crash left, and append in one piece: other processes write too.
        with self.file.open("ab", buffering=0) as out:
            out.write(b"\n" * (out.tell() > 0) + lines.encode())
