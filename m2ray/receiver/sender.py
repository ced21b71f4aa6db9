"""A sender LM that writes A's messages in its own words, and the cache of what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode, write_facts
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root

# The cache is keyed by the prompt, so a changed character discards all cached messages.
SENDER_PROMPT = (
    "You are agent A. Your partner must find whole numbers for {names} but cannot see these constraints of "
    "yours:\n{context}\nTell your partner what you know, completely, in one short message."
)


class Sender:
    """A sender LM. It writes each message once, greedily; after that the message comes from the user's cache."""

    BATCH = 32

    def __init__(self, receiver: Receiver) -> None:
        if not receiver.tokenizer.chat_template:
            raise UserError(
                f"task.messages: {receiver.name} has no chat template; name an instruct model or `template`"
            )
        self.receiver = receiver
        self.file = cache_root() / "messages" / f"{receiver.digest}.jsonl"
        self._messages: dict[str, str] = {}

    def write(self, episodes: Sequence[Episode]) -> list[str]:
        """Return A's message of each episode in the sender's words.

        Raises:
            UserError: the sender wrote an empty message.
        """
        prompts = [self._prompt(episode) for episode in episodes]
        keys = [hashlib.sha256(prompt.encode()).hexdigest()[:32] for prompt in prompts]
        if not self._messages.keys() >= set(keys):
            self._read_cache()
        prompt_of = dict(zip(keys, prompts, strict=True))
        missing = [key for key in prompt_of if key not in self._messages]
        for start in range(0, len(missing), self.BATCH):
            batch = missing[start : start + self.BATCH]
            texts = self._generate([prompt_of[key] for key in batch])
            self._append(dict(zip(batch, texts, strict=True)))
            self._read_cache()  # another process may have written the same message first
        return [self._messages[key] for key in keys]

    def _prompt(self, episode: Episode) -> str:
        content = SENDER_PROMPT.format(names=", ".join(episode.level.names), context=write_facts(episode.sender))
        return self.receiver.render_chat("", content)

    def _generate(self, prompts: Sequence[str]) -> list[str]:
        rows = [self.receiver.first_tokens(prompt) for prompt in prompts]
        messages = [" ".join(text.split()) for text in self.receiver.generate(rows, range(len(rows)))]
        if not all(messages):
            raise UserError(f"task.messages: sender {self.receiver.name} wrote an empty message; use another")
        return messages

    def _read_cache(self) -> None:
        """Read the cache file.

        The first line of a key counts, so that all processes that write at once agree afterwards. A line cut short
        by a crash is skipped: its message is written again.
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
                self._messages.setdefault(entry["key"], entry["message"])

    def _append(self, messages: Mapping[str, str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"key": key, "message": text}) + "\n" for key, text in messages.items())
        # Start a new line, since a crash may have cut the last one short. Append in a single write, since other
        # processes append too.
        with self.file.open("ab", buffering=0) as out:
            out.write(b"\n" * (out.tell() > 0) + lines.encode())
