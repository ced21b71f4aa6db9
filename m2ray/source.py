"""Where episodes come from: drawn by seed or read from a file, with A's message by template or by a sender LM."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from m2ray.command import UserError
from m2ray.config import Splits, TaskConfig, TrialConfig
from m2ray.layout import pad
from m2ray.loading import load_receiver
from m2ray.receiver import Receiver
from m2ray.task import Episode, Fact, Level, draw, level, read_answer, read_facts, verify, write_facts

_FIELDS = ("receiver_context", "sender_message", "receiver_output")

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
    def _sender(self) -> Sender:
        return Sender(load_receiver(self.config.messages))

    def get(self, seeds: Sequence[int], part: str) -> list[Episode]:
        """Episodes by seed; of a file, by line number counted from 0.

        Raises:
            UserError: a seed beyond the end of the file, or no sender LM where one is named.
        """
        if self.config.file is None:
            played = [draw(self.level, seed, part) for seed in seeds]
        else:
            played = self._lines(seeds, f"splits.{part}")
        if self.config.messages == "template":
            return played
        return with_messages(played, self._sender.write(played))

    def _lines(self, seeds: Sequence[int], name: str) -> list[Episode]:
        if seeds and max(seeds) >= len(self._file):
            raise UserError(
                f"{self.config.file}: has lines 0 to {len(self._file) - 1}, {name} asks for line {max(seeds)}; "
                f"shorten {name}"
            )
        return [self._file[seed] for seed in seeds]

    def check_disjoint(self, splits: Splits) -> None:
        """Refuse a file in which two splits share a message.

        Drawn episodes need no check: their parts are disjoint by construction (`m2ray.task.part_of`).
        """
        self._check_apart({f"splits.{name}": splits.seeds(name) for name in type(splits).model_fields})

    def check_unseen(self, seeds: range, splits: Splits) -> None:
        """Refuse seeds that name lines of a file whose messages occur in training."""
        self._check_apart({"splits.train": splits.seeds("train"), "--seeds": seeds})

    def _check_apart(self, ranges: Mapping[str, range]) -> None:
        if self.config.file is None:
            return
        homes: dict[frozenset[Fact], tuple[str, int]] = {}
        for name, seeds in ranges.items():
            for episode in self._lines(seeds, name):
                home, line = homes.setdefault(episode.content, (name, episode.seed))
                if home != name:
                    raise UserError(
                        f"{self.config.file}: line {episode.seed + 1}: its message is in {name} and, from line "
                        f"{line + 1}, in {home}; remove one of the two"
                    )


def _is_text(value: object) -> bool:
    """Whether a tokenizer can read it: lone surrogates, which JSON can spell, are no characters."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def read_episodes(path: Path, level: Level) -> list[Episode]:
    """Episodes from a JSONL file in the reference attempt's fields, checked line by line.

    `receiver_context` (B's half) and `sender_message` are facts as the template writes them; a message in free
    words needs A's half beside it in the optional `sender_context`. `receiver_output` is a correct answer in
    JSON. A line's number, counted from 0, is its seed.

    Raises:
        UserError: names the file, line, key and mend of the first fault.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    found = []
    # Bytes end lines at \n and \r alone; text would also at characters that JSON allows inside a string.
    for number, line in enumerate(path.read_bytes().splitlines()):
        where = f"{path}: line {number + 1}"
        try:
            data = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
        if not isinstance(data, dict):
            raise UserError(f"{where}: expected an object, found {type(data).__name__}; write one object a line")
        for field in (*_FIELDS, *(("sender_context",) if "sender_context" in data else ())):
            if not _is_text(data.get(field)):
                raise UserError(f"{where}: {field}: missing, empty or not text; add it")
        unknown = set(data) - {*_FIELDS, "sender_context"}
        if unknown:
            raise UserError(f"{where}: {min(unknown)}: unknown key; remove it")
        halves = []
        for field in ("sender_context" if "sender_context" in data else "sender_message", "receiver_context"):
            try:
                halves.append(read_facts(data[field], level))
            except ValueError as error:
                raise UserError(f"{where}: {field}: {error}") from None
        values = read_answer(level, data["receiver_output"], "json")
        if values is None:
            raise UserError(f"{where}: receiver_output: not a JSON answer of level {level.name}; mend it")
        episode = Episode(level, number, halves[0], halves[1], values, data["sender_message"])
        if not verify(episode, data["receiver_output"], "json").success:
            raise UserError(f"{where}: receiver_output: breaks a constraint of its own line; mend it")
        found.append(episode)
    if not found:
        raise UserError(f"{path}: no episodes; write one JSON object a line")
    return found


def with_messages(played: Sequence[Episode], messages: Sequence[str]) -> list[Episode]:
    """The same episodes with A's message in other words."""
    return [replace(episode, message=text) for episode, text in zip(played, messages, strict=True)]


def cache_root() -> Path:
    """The user's cache folder of this program."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m2ray"


def check_receiver_seeds(config: TrialConfig, receiver: Receiver) -> None:
    """Refuse evaluation seeds that the receiver itself was trained on.

    Raises:
        UserError: a split overlaps the seeds on the receiver's card.
    """
    card = receiver.card.get("train_seeds")
    if card is None or receiver.card.get("level") != config.task.level:
        return
    start, stop = (int(part) for part in card.split(":"))
    for name in ("search", "select", "confirm"):
        seeds = config.splits.seeds(name)
        if seeds.start < stop and start < seeds.stop:
            raise UserError(f"splits.{name}: overlaps the receiver's own training seeds {card}; move it")


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
