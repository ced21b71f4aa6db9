"""The looks of a sweep at confirm: which messages each is at, and which configurations it judges.

A sweep looks at the split confirm once. What is judged later, since trials or training seeds were added or the
space was changed, is judged on fresh messages of the confirm part: none of them occurs in an earlier look of this
or any other sweep that the user's ledger knows, nor in another split. In a text file a group is fresh if none of
its lines was looked at, nor a near-duplicate of one.

A look is recorded in sweep.yaml before anything is evaluated on it, so that a killed sweep continues it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from m2ray.config.plan import Plan
from m2ray.config.split_names import CONFIRM, confirm_split, look_number
from m2ray.config.sweep_record import read_sweep_record, write_sweep_record
from m2ray.config.task import parse_seeds
from m2ray.evaluation.confirm_ledger import ConfirmLedger, look_key, message_digest, new_look
from m2ray.receiver.episode_source import Source, open_source
from m2ray.receiver.loading import load_trial_receiver
from m2ray.receiver.text_source import TextSource
from m2ray.tasks.text_splits import clusters
from m2ray.util.errors import UserError

DRAWS_PER_MESSAGE = 40  # that are tried for each fresh message, until a level counts as used up


class ConfirmLook(NamedTuple):
    """One look: its split and the seeds of its episodes, and the configurations that it judges."""

    split: str
    seeds: list[int]
    configurations: list[str]
    training_seeds: list[int]
    line: str


class ConfirmLooks:
    """The looks of the sweep in a results folder.

    Args:
        folder: The results folder.
        plan: The sweep's plan, with all that was added to it.
        rows: Its rows so far: looks of earlier versions do not say what they judged. None: only what is recorded
            counts.
    """

    def __init__(self, folder: Path, plan: Plan, rows: pd.DataFrame | None = None) -> None:
        self._folder, self._plan, self._rows = folder, plan, rows
        self._record = read_sweep_record(folder)

    def taken(self) -> list[ConfirmLook]:
        """Return the recorded looks, oldest first; the attempts at one are one."""
        looks = [self._read(entry) for entry in self._record.get("looks", [])]
        if not looks and self._evaluated(CONFIRM):
            looks = [self._read({"line": ""})]  # a sweep from before looks were recorded
        return looks

    def _read(self, entry: Mapping[str, Any]) -> ConfirmLook:
        split, example = entry.get("split", CONFIRM), self._plan.example
        if "seeds" in entry:
            seeds = read_seeds(entry["seeds"])
        else:
            seeds = list(open_source(example.task).seeds(example.splits, CONFIRM))
        configurations = entry.get("configurations") or self._evaluated(split)
        training_seeds = entry.get("training_seeds") or self._plan.space.search.seeds
        return ConfirmLook(split, seeds, configurations, training_seeds, entry["line"])

    def _evaluated(self, split: str) -> list[str]:
        return [] if self._rows is None else sorted({*self._rows.config[self._rows.split == split]} - {""})

    def pending(self, names: Iterable[str]) -> list[str]:
        """Return those of these configurations that no look judges with all their training seeds."""
        wanted = {*self._plan.judged_seeds}
        judged = {
            name for look in self.taken() if wanted <= {*look.training_seeds} for name in look.configurations
        }
        return [name for name in names if name not in judged]

    def check_fresh_messages(self) -> None:
        """Refuse to train what could not be judged, where the sweep has grown since its last look.

        Raises:
            UserError: the confirm part has too few.
        """
        if self.taken() and not self._continues():
            self._choose_fresh()

    def open(self, configurations: Sequence[str]) -> ConfirmLook:
        """Record a look at confirm that judges these configurations, in the sweep's record and the user's ledger.

        What an earlier look judges is not judged again: see `pending`.

        Raises:
            UserError: the confirm part has too few fresh messages.
        """
        plan, source, looks = self._plan, open_source(self._plan.example.task), self.taken()
        later = max((look_number(look.split) for look in looks), default=0)
        seeds = self._choose_fresh() if later else list(source.seeds(plan.example.splits, CONFIRM))
        split, key = confirm_split(later + 1), self._key(len(self._record.get("looks", [])))
        ledger, command = self._ledger(), str(self._record.get("command"))
        episodes = source.without_sender(seeds, CONFIRM)
        found = new_look(episodes, command, f"sweep {self._folder.name}", split, key)
        look = ConfirmLook(split, seeds, list(configurations), plan.judged_seeds, ledger.earlier(found).line)
        ledger.record(found)
        entry: dict[str, Any] = {"date": found.date, "key": key, "line": look.line, "split": split}
        if later:
            entry["seeds"] = write_seeds(seeds)
        entry |= {"configurations": look.configurations, "training_seeds": look.training_seeds}
        self._write([*self._record.get("looks", []), entry])
        return look

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._record = {**self._record, "looks": list(entries)}
        write_sweep_record(self._folder, self._record)

    def _continues(self) -> bool:
        """Return whether the sweep is as it was at its last look."""
        entries = self._record.get("looks", [])
        return bool(entries) and entries[-1]["key"] == self._key(len(entries) - 1)

    def _key(self, earlier: int) -> str:
        """Return the identity of the sweep's look after so many earlier ones."""
        plan = self._plan
        points = {name: config.model_dump() for name, config in plan.points.items()}
        registered: list[Any] = [plan.space.model_dump(by_alias=True), points]
        if earlier or plan.added_seeds:
            registered += [plan.added_seeds, earlier]
        return look_key(self._folder, self._record, registered)

    def _ledger(self) -> ConfirmLedger:
        example = self._plan.example
        return ConfirmLedger(example.task.family, load_trial_receiver(example).digest)

    def _choose_fresh(self) -> list[int]:
        """Return seeds of as many episodes as splits.confirm has, with messages that nobody has looked at.

        Each drawn message occurs once; of a text file whole groups are fresh or not.

        Raises:
            UserError: there are too few.
        """
        example = self._plan.example
        source, splits = open_source(example.task), example.splits
        needed = len(source.seeds(splits, CONFIRM))
        key = self._key(len(self._record.get("looks", [])))
        # A look that was killed before it came into the sweep's record is chosen again.
        used = {message for look in self._ledger().looks() if look.key != key for message in look.messages}
        found = list(itertools.islice(self._fresh(source, used, needed), needed))
        if len(found) == needed:
            return found
        if example.task.is_text_file:
            what, fix = "episodes of groups", "a larger file, or with fewer in splits.confirm"
        else:
            what, fix = "messages", "another level, or with more lines that no split names"
        raise UserError(
            f"{self._folder}: a further look at confirm needs {needed} {what} that nobody has looked at, and "
            f"{source.name} has {len(found)}; start a new sweep with {fix}"
        )

    def _fresh(self, source: Source, used: set[str], needed: int) -> Iterator[int]:
        """Yield seeds of fresh episodes; of drawn ones not without end where only `needed` are wanted.

        Args:
            source: The task's episodes.
            used: Digests of messages that the user's ledger knows.
            needed: Number of seeds that are wanted.
        """
        task, splits, looks = self._plan.example.task, self._plan.example.splits, self.taken()
        if isinstance(source, TextSource) and task.is_text_file:
            seen = {*source.seeds(splits, CONFIRM), *(line for look in looks for line in look.seeds)}
            return _fresh_lines(source, source.unused_seeds(splits, 0), seen, used)
        parts = {name: source.seeds(splits, name) for name in type(splits).model_fields}
        if task.file is None:
            # Drawn messages of other parts differ from these, whatever their seeds.
            parts = {CONFIRM: parts[CONFIRM]}
        for part, seeds in [*parts.items(), *((CONFIRM, look.seeds) for look in looks)]:
            used = used | {message_digest(episode) for episode in source.without_sender(seeds, part)}
        after = max(seed for look in looks for seed in look.seeds) + 1
        tried = itertools.islice(source.unused_seeds(splits, after), DRAWS_PER_MESSAGE * needed)
        return _fresh_messages(source, tried, used)


def _fresh_messages(source: Source, seeds: Iterable[int], used: set[str]) -> Iterator[int]:
    """Yield the seeds whose messages are not used, each message once."""
    used = {*used}
    for seed in seeds:
        (episode,) = source.without_sender([seed], CONFIRM)
        if (digest := message_digest(episode)) not in used:
            used.add(digest)
            yield seed


def _fresh_lines(source: TextSource, lines: Iterable[int], seen: set[int], used: set[str]) -> Iterator[int]:
    """Yield the lines of a text file of whose group, and groups of near-duplicate messages, none was looked at.

    Args:
        source: The file.
        lines: Those to choose from.
        seen: Lines of earlier looks and of the split confirm.
        used: Digests of messages that were looked at.
    """
    lines = list(lines)
    known = sorted({*lines, *seen})
    episodes = source.without_sender(known, CONFIRM)
    groups = dict(zip(known, clusters(episodes), strict=True))
    spent = {
        groups[line]
        for line, episode in zip(known, episodes, strict=True)
        if line in seen or message_digest(episode) in used
    }
    yield from (line for line in lines if groups[line] not in spent)


def write_seeds(seeds: Sequence[int]) -> str:
    """Return ascending seeds as text: `5:8,9:10`, ends excluded."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and runs[-1][1] == seed:
            runs[-1][1] += 1
        else:
            runs.append([seed, seed + 1])
    return ",".join(f"{start}:{end}" for start, end in runs)


def read_seeds(text: str) -> list[int]:
    """Return the seeds that `write_seeds` wrote.

    Raises:
        UserError: the text has another form.
    """
    return list(_read_ranges(text))


def _read_ranges(text: str) -> Iterator[int]:
    try:
        for part in text.split(","):
            yield from parse_seeds(part)
    except (ValueError, AttributeError):
        raise UserError(f"sweep.yaml: looks.seeds: {text!r:.60} are not seeds; restore the file") from None
