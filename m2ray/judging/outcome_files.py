"""Outcomes of any system, from a JSONL, CSV or Parquet file, in the columns that rows of this package have.

Nothing is known of such a system but which episodes succeed under which condition, so it needs no codec, no
receiver and no torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from m2ray.judging.arms import NO_SEED
from m2ray.util.errors import UserError, describe_error
from m2ray.util.json_objects import LineFault, first_repeated, read_object
from m2ray.util.text import is_text, list_some

SUFFIXES = (".jsonl", ".csv", ".parquet")
REQUIRED = ("id", "condition")
OUTCOME = ("success", "score")
OPTIONAL = ("codec", "seed", "k", "group", "answer", "nll", "parsed", "truncated")
SYSTEM = "system"  # name of the only system in a file without the column `codec`
_TRUTH = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}


class OutcomeFile(NamedTuple):
    """The outcomes in a file, and its columns that nothing reads."""

    rows: pd.DataFrame
    unused: list[str]


def read_outcomes(path: Path) -> OutcomeFile:
    """Read a file of outcomes.

    Returns:
        Rows with the columns config, seed (-1 where there is none, and the row is shared by all seeds), k (0 where
        there is none), split (empty), condition, episode (the id as text), success (1.0 or 0.0, or a score in
        between), and of group, answer, nll, parsed and truncated those that the file has. Rows without a codec, in
        a file with codecs, are shared by all of them: their config is empty.

    Raises:
        UserError: the file cannot be read, or names the line and column of the first fault.
    """
    records = list(_records(path))
    if not records:
        raise UserError(f"{path}: no outcomes; write one per line")
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    found = f"the file has {list_some([repr(name) for name in columns])}"
    for name in REQUIRED:
        if name not in columns:
            fix = "name the columns id, condition and success or score"
            raise UserError(f"{path}: column {name}: missing, {found}; {fix}")
    kinds = [name for name in OUTCOME if name in columns]
    if len(kinds) != 1:
        fault = "both given, keep one" if kinds else f"missing, {found}; add one"
        raise UserError(f"{path}: column success or score: {fault}")
    named = any(_text(record.get("codec")) for _, record in records)
    rows = pd.DataFrame(
        [_outcome(record, f"{path}: line {line}", kinds[0], named, columns) for line, record in records]
    )
    _check_flags(rows, path)
    return OutcomeFile(rows, [name for name in columns if name not in (*REQUIRED, *OUTCOME, *OPTIONAL)])


def _check_flags(rows: pd.DataFrame, path: Path) -> None:
    """Refuse flags on some answers of a condition only: a share of those would pass for one of all."""
    for name in ("parsed", "truncated"):
        if name in rows:
            for condition, known in rows[name].notna().groupby(rows.condition):
                if 0 < known.sum() < len(known):
                    found = f"on {known.sum()} of {len(known)} outcomes of {condition}"
                    raise UserError(f"{path}: column {name}: given {found}; give it on all, or on none")


# --- records -------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the line number and the fields of each outcome."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give rows, a results folder, or outcomes")
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: not an intact Parquet file ({describe_error(error)}); remake it") from None
        yield from enumerate(table.to_pylist(), start=1)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({describe_error(error)}); fix the file") from None
    yield from (_csv_records if path.suffix == ".csv" else _json_records)(path, text)


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        twice = first_repeated(reader.fieldnames or ())
        if twice is not None:
            raise UserError(f"{path}: column {twice}: given twice; keep one")
        for record in reader:
            if None in record or None in record.values():
                raise UserError(f"{path}: line {reader.line_num}: not as many cells as columns; fix the line")
            yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not CSV ({error}); fix the line") from None


def _json_records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, read_object(line)
        except LineFault as fault:
            raise UserError(f"{path}: line {number}: {fault}") from None


# --- fields --------------------------------------------------------------------------------------------------


def _outcome(
    record: Mapping[str, Any], where: str, kind: str, named: bool, columns: Sequence[str]
) -> dict[str, Any]:
    """Return a record in the columns of rows; errors start with `where`."""
    outcome: dict[str, Any] = {
        "config": _text(record.get("codec")) if named else SYSTEM,
        "seed": _whole(record, "seed", where, NO_SEED),
        "k": _whole(record, "k", where, 0),
        "split": "",
        "condition": _named(record, "condition", where),
        "episode": _named(record, "id", where),
        "success": _share(record, kind, where),
    }
    for name in ("group", "answer"):
        if name in columns:
            outcome[name] = _text(record.get(name))
    if "nll" in columns:
        outcome["nll"] = _number(record["nll"], f"{where}: nll") if _text(record.get("nll")) else math.nan
    for name in ("parsed", "truncated"):
        if name in columns:
            outcome[name] = _share(record, name, where) if _text(record.get(name)) else None
    return outcome


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def _named(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if isinstance(value, dict | list):
        raise UserError(f"{where}: {name}: {value!r:.40} is neither text nor a number; write one")
    text = _text(value)
    if not text:
        hint = ', in quotes if it is "null"' if name == "condition" else ""
        raise UserError(f"{where}: {name}: empty; write it{hint}")
    if not is_text(text):
        raise UserError(f"{where}: {name}: {text!r:.40} has half of a character (a lone surrogate); fix it")
    return text


def _number(value: Any, where: str) -> float:
    text = _text(value).lower()
    try:
        number = _TRUTH[text] if text in _TRUTH else float(text)
    except ValueError:
        number = None
    if number is None or not math.isfinite(number):
        raise UserError(f"{where}: {value!r:.40} is not a number; write one")
    return number


def _share(record: Mapping[str, Any], name: str, where: str) -> float:
    """Return a success or a flag, which is 0 or 1, or a score from 0 to 1."""
    number = _number(record.get(name), f"{where}: {name}")
    if not 0 <= number <= 1:
        raise UserError(f"{where}: {name}: {number:g} is outside 0 to 1; fix it")
    if name != "score" and number not in (0, 1):
        fix = "name the column score" if name == "success" else "fix it"
        raise UserError(f"{where}: {name}: {number:g} is neither 0 nor 1; {fix}")
    return number


def _whole(record: Mapping[str, Any], name: str, where: str, default: int) -> int:
    """Return a whole number of at least 0; `default` where the cell is empty."""
    if not _text(record.get(name)):
        return default
    number = _number(record[name], f"{where}: {name}")
    if number != int(number) or number < 0:
        raise UserError(f"{where}: {name}: {number:g} is not a whole number from 0 on; fix it")
    return int(number)
