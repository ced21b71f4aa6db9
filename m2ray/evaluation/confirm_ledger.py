"""Looks at confirm messages: a ledger in the user's cache, and the lines about them that reports list.

A codec that was chosen on some messages must be judged on others. The ledger knows which messages of a task a
receiver has answered before, whatever the folder, name or command, so that a copied folder, a published codec,
another --name or the Python API do not make a second look a first. Looks are recorded by a sweep's confirm stage,
by `m2ray.evaluate` on confirm or on --episodes, and by `m2ray.api.evaluate`.

The ledger helps honest users to keep count. It is not a protection: whoever deletes the file, or works on another
machine, has looked at nothing.

A message counts by its content, the set of A's facts in whatever wording or order, or by its text where it states
no facts. A set of messages counts as looked at before if earlier looks cover more than half of it. Chance overlap
of different seeds stays below that until a large part of a task's messages has been used.

One look is one confirm stage of one sweep, however many configurations it judges and however often it is killed
and resumed. `look_key` identifies it by the sweep's registration, its folder, its space and its points:

- A killed sweep that is resumed, also with changed code or packages, continues its look.
- A copied folder has another path, and a new sweep in the place of a deleted one has another registration: both
  look again. So does a moved folder, since nothing that is recorded tells it from a copied one.
- A sweep that has grown since, or is resumed with another space, judges what was not registered before: it looks
  again, at messages that nobody has looked at (`m2ray.engine.growing.confirm_looks`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from m2ray.config.split_names import CONFIRM
from m2ray.config.sweep_record import read_sweep_record
from m2ray.evaluation.rows import GROUP, RowStore, on_confirm
from m2ray.tasks.episodes import AnyEpisode
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import cache_root
from m2ray.util.locks import file_lock

LOG_FILE = "confirm-looks.log"
FOLDER_VARIABLE = (
    "M2RAY_CONFIRM_LOOKS"  # environment variable: a folder for the ledger, such as one that a group shares
)
DIGEST_CHARACTERS = 12  # of a message
COMMAND_CHARACTERS = 120  # of an earlier look's command on a report
LISTED_LOOKS = 3  # earlier looks that a line names


@dataclass(frozen=True)
class Look:
    """One look at confirm messages, as the ledger records it.

    Attributes:
        date: When it was, in UTC.
        command: The command line, or the Python function.
        subject: The checkpoint or codec by its digest, or the sweep by its name.
        split: confirm, or the seeds A:B.
        n: Number of episodes.
        messages: Digests of their different messages.
        key: Identity of a look that takes several attempts (`look_key`); empty for one that does not.
    """

    date: str
    command: str
    subject: str
    split: str
    n: int
    messages: tuple[str, ...]
    key: str = ""

    def __str__(self) -> str:
        command = textwrap.shorten(self.command, COMMAND_CHARACTERS, placeholder=" ...")
        return f"{self.date} `{command}` ({self.subject}, {self.split})"


def new_look(episodes: Sequence[AnyEpisode], command: str, subject: str, split: str, key: str = "") -> Look:
    """Return a look at the messages of these episodes, with the date of now."""
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    messages = tuple(sorted({message_digest(episode) for episode in episodes}))
    return Look(date, command, subject, split, len(episodes), messages, key)


def message_digest(episode: AnyEpisode) -> str:
    """Return a short digest of a message's content, or of its text where it states no facts."""
    return _digest(episode.content if isinstance(episode, TextEpisode) else episode.cluster)


def cluster_digest(episode: AnyEpisode) -> str:
    """Return a short digest of the unit that intervals count: an episode's message, in free text its group."""
    grouped = isinstance(episode, TextEpisode) and episode.has_group
    return f"{GROUP if grouped else ''}{_digest(episode.cluster)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


def look_key(folder: Path, record: Mapping[str, Any], registered: Any) -> str:
    """Return the identity of a sweep's confirm stage, which is the same when a killed sweep is resumed.

    Args:
        folder: The sweep's folder.
        record: Its record; one of an earlier version has no `id`, and is identified by date and command.
        registered: Space and points as they are now, as a tree for JSON.
    """
    identity = record.get("id") or [record.get("date"), record.get("command")]
    text = json.dumps([identity, str(folder.resolve()), registered], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


class EarlierLooks(NamedTuple):
    """Earlier looks at some of the messages of a new one.

    Attributes:
        total: Number of different messages.
        seen: Number of those that were looked at before.
        same: Looks at more than half of them, oldest first.
        others: Looks at fewer, oldest first.
    """

    total: int
    seen: int
    same: list[Look]
    others: list[Look]

    @property
    def looked_at(self) -> bool:
        """True if the messages count as looked at before."""
        return 2 * self.seen > self.total

    @property
    def line(self) -> str:
        """A sentence for boards and reports."""
        if self.same:
            return f"look {len(self.same) + 1} at these messages; earlier: {_listed(self.same)}"
        if not self.seen:
            return "first look at these messages"
        return self.summary if self.looked_at else f"first look at this split; {self.summary}"

    @property
    def summary(self) -> str:
        """The number of messages that were looked at before, and the looks."""
        looks = sorted([*self.same, *self.others], key=lambda look: look.date)
        return f"{self.seen} of {self.total} messages were looked at before, by {_listed(looks)}"


def _listed(looks: Sequence[Look]) -> str:
    """Return the latest looks, and the number of the others."""
    latest = "; ".join(str(look) for look in reversed(looks[-LISTED_LOOKS:]))
    return latest if len(looks) <= LISTED_LOOKS else f"{latest}; and {len(looks) - LISTED_LOOKS} more"


class ConfirmLedger:
    """The looks at one task's messages by one receiver: an append-only file with one JSON object per line.

    Several processes may append at a time: each holds the file's lock, and a look is a single write. A file that
    cannot be read or written costs a warning, never a result.

    Args:
        task: The level's name.
        receiver: The receiver's digest.
    """

    def __init__(self, task: str, receiver: str) -> None:
        name = f"{task}-{receiver}"
        # A plugin's level may have any name: where characters are replaced, a digest keeps names apart.
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]
        if plain != name:
            plain += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self.file = ledger_folder() / f"{plain}.jsonl"

    def looks(self) -> list[Look]:
        """Return all recorded looks, oldest first; lines that are damaged are skipped."""
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            _warn(self.file, error, "earlier looks at confirm messages are not known")
            return []
        return [look for look in map(_read_look, lines) if look is not None]

    def earlier(self, look: Look) -> EarlierLooks:
        """Return the recorded looks that share messages with a new one, except attempts at the same look."""
        messages = set(look.messages)
        seen: set[str] = set()
        same: list[Look] = []
        others: list[Look] = []
        for recorded in self.looks():
            shared = messages.intersection(recorded.messages)
            if shared and not (look.key and recorded.key == look.key):
                seen |= shared
                (same if 2 * len(shared) > len(messages) else others).append(recorded)
        return EarlierLooks(len(messages), len(seen), same, others)

    def record(self, look: Look) -> None:
        """Append a look, unless it is another attempt at a recorded one."""
        try:
            with file_lock(self.file):
                if look.key and any(recorded.key == look.key for recorded in self.looks()):
                    return
                _append(self.file, json.dumps(asdict(look)).encode() + b"\n")
        except OSError as error:
            _warn(self.file, error, "this look at confirm messages is not recorded")


def ledger_folder() -> Path:
    """Return the folder of the ledger's files, in the user's cache by default."""
    return Path(os.environ.get(FOLDER_VARIABLE) or cache_root() / "confirm-looks")


def _read_look(line: bytes) -> Look | None:
    """Return the look that a line records, or None for a damaged line."""
    try:
        fields = json.loads(line)
        look = Look(**{**fields, "messages": tuple(fields["messages"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (look.date, look.command, look.subject, look.split, look.key, *look.messages)
    return look if all(isinstance(text, str) for text in texts) and isinstance(look.n, int) else None


def _append(file: Path, line: bytes) -> None:
    """Append a line to a file whose lock the caller holds."""
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(handle).st_size
        if end and os.pread(handle, 1, end - 1) != b"\n":
            line = b"\n" + line  # keeps the look apart from a line that a crash left incomplete
        os.write(handle, line)
    finally:
        os.close(handle)


def _warn(file: Path, error: OSError, consequence: str) -> None:
    print(f"warning: {file}: {describe_error(error)}; {consequence}", file=sys.stderr)


# --- results folders -----------------------------------------------------------------------------------------


def looks_of(folder: Path) -> list[str]:
    """Return the looks at a sweep's confirm messages, which every board and report has to list.

    These are the sweep's own, as its record states them, and later ones by `m2ray.evaluate` on its checkpoints.
    The list is empty for a folder that was never judged, or was judged before looks were recorded.
    """
    looks = read_sweep_record(folder).get("looks", [])
    own = [f"{look.get('split', CONFIRM)}: {look['line']}" for look in looks]
    if len(looks) > 1:
        own.insert(0, looks_line(looks))
    log = folder / LOG_FILE
    later = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [*own, *(f"Looked at confirm again: {line}" for line in later)]


def looks_line(looks: Sequence[Mapping[str, Any]]) -> str:
    """Return how often a sweep has looked at confirm, from the entries of its record."""
    judged = sum(len(look.get("configurations", [])) for look in looks)
    verdicts = f"all {judged} verdicts" if all("configurations" in look for look in looks) else "all verdicts"
    return (
        f"{len(looks)} looks at confirm: trials, training seeds or settings were added after the first; the Holm "
        f"correction covers {verdicts} together"
    )


def folder_of(checkpoint: Path) -> Path:
    """Return the folder that logs looks at confirm, shared by all checkpoints of a sweep or of a training."""
    resolved = checkpoint.resolve()
    folder = sweep_of(resolved)
    if folder is None:
        folder = resolved.parent if resolved.name.startswith("epoch-") else resolved
    return folder


def sweep_of(checkpoint: Path) -> Path | None:
    """Return the results folder that a checkpoint (`checkpoints/CONFIG/seed-N/epoch-M` or `best`) lies in."""
    near = checkpoint.resolve().parents[:4]
    return next((parent for parent in near if (parent / "sweep.yaml").is_file()), None)


def check_first_look(folder: Path, split: str) -> None:
    """Refuse a second look at the confirm split, as far as the folder itself knows.

    Raises:
        UserError: it has been looked at.
    """
    if (folder / LOG_FILE).is_file() or _sweep_looked(folder):
        place = "confirm" if split == "confirm" else f"--episodes {split} overlaps confirm, which"
        raise UserError(
            f"{folder}: {place} has been looked at; use fresh --episodes A:B, or look again with --unlock, "
            "which the report will list"
        )


def log_look(folder: Path, checkpoint: Path, split: str) -> None:
    """Add a look at the confirm split to the folder's log."""
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    with (folder / LOG_FILE).open("a", encoding="utf-8") as out:
        out.write(f"{date} evaluate {checkpoint.name} on {split}\n")


def _sweep_looked(folder: Path) -> bool:
    if not (folder / "sweep.yaml").is_file():
        return False
    return bool(on_confirm(RowStore(folder).read()).any())
