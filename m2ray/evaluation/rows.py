"""Rows: one episode's outcome under one condition for one checkpoint. Everything reported is computed from them.

This file defines their columns, files and the append-only store of a results folder. It does not import torch.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from m2ray.config.split_names import is_confirm
from m2ray.config.sweep_record import record_file
from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import write_atomic

SCHEMA = pa.schema(
    [
        ("config", pa.string()),  # '' where the row does not depend on a checkpoint
        ("seed", pa.int64()),  # training seed, or -1
        ("checkpoint", pa.string()),  # digest, or ''
        ("step", pa.int64()),
        ("receiver", pa.string()),  # digest
        ("task", pa.string()),
        ("split", pa.string()),  # search, select, confirm, confirm-2 and later looks, or A:B
        ("k", pa.int64()),  # 0 where the row does not depend on it
        ("place", pa.string()),
        ("decoding", pa.string()),
        ("condition", pa.string()),
        ("episode", pa.int64()),
        ("partner", pa.int64()),  # episode whose message was used, or -1
        ("success", pa.bool_()),
        ("parsed", pa.bool_()),
        ("partial", pa.float64()),  # share of constraints that hold
        ("nll", pa.float64()),  # nats per answer value
        ("answer", pa.string()),
        ("truncated", pa.bool_()),  # the answer reached the limit of new tokens without its end; null if unknown
        ("facts", pa.string()),  # facts that the answer agrees with: `m2ray.evaluation.facts_read`; '' if unknown
        ("message", pa.string()),  # digest of the episode's own message, or `GROUP` and its group's; '' if unknown
        ("params", pa.string()),  # JSON: a configuration's columns on the leaderboard
    ]
)
GROUP = "group:"  # in the column `message`, before the digest of a group that the episode belongs to
KEY = [  # makes a row unique
    "config",
    "seed",
    "checkpoint",
    "receiver",
    "task",
    "split",
    "k",
    "place",
    "decoding",
    "condition",
    "episode",
]
ADDED_LATER = ("truncated", "facts", "message")  # files from before lack these columns
NULLABLE = ("nll", "truncated")
CHECKSUM = b"m2ray.sha256"  # metadata key of a file's checksum
WHOLE = "rows.parquet"  # of a results folder
FAILED = "failed"  # condition of the one row of a configuration that failed; its answer is the cause


def _checked(rows: pd.DataFrame, source: str) -> pa.Table:
    """Return rows as a table with exactly the columns and types of `SCHEMA`; columns added later may be missing.

    Raises:
        UserError: a column is missing, of another type, or has empty cells.
    """
    unknown: dict[str, Any] = {"truncated": pd.NA, "facts": "", "message": ""}
    rows = rows.assign(**{name: unknown[name] for name in ADDED_LATER if name not in rows.columns})
    for name in SCHEMA.names:
        if name not in rows.columns:
            raise UserError(f"{source}: column {name}: missing; write rows with m2ray.evaluate or m2ray.sweep")
        if rows[name].dtype.kind in "mM":  # times, which Arrow would accept as numbers
            raise UserError(f"{source}: column {name}: holds times; fix the column's type")
    try:
        table = pa.Table.from_pandas(rows[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    except (pa.ArrowException, OverflowError) as error:
        raise UserError(f"{source}: {describe_error(error)}; fix the column's type") from None
    for name in SCHEMA.names:
        if name not in NULLABLE and table[name].null_count:
            known = " and ".join(NULLABLE)
            raise UserError(f"{source}: column {name}: holds empty cells; fill them, only {known} may be unknown")
    # Without pandas' own metadata, which would restore the columns' original types.
    return table.replace_schema_metadata(None)


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per key, in an order that does not depend on the order of writes."""
    return rows.drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as rows, with null and '' in cells of columns that its file lacked."""
    frame: pd.DataFrame = table.to_pandas()
    frame["truncated"] = frame["truncated"].astype("boolean")
    for name in ("facts", "message"):
        frame[name] = frame[name].fillna("")
    return frame


def _checksum(table: pa.Table, names: Sequence[str]) -> bytes:
    """Return the SHA-256 of all values of the named columns.

    It detects any changed value and does not depend on the file's layout.
    """
    sha = hashlib.sha256()
    for name in names:
        column = table[name]
        if name == "truncated":
            column = column.cast(pa.int8()).fill_null(-1)
        values = column.to_numpy()
        text = pa.types.is_string(SCHEMA.field(name).type)
        sha.update("\x00".join(values).encode() if text else np.ascontiguousarray(values).tobytes())
    return sha.hexdigest().encode()


def _bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    metadata = {CHECKSUM: _checksum(table, SCHEMA.names)}
    pq.write_table(table.replace_schema_metadata(metadata), out, compression="zstd")
    return out.getvalue()


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write rows to one Parquet file, atomically."""
    write_atomic(path, _bytes(_checked(_ordered(rows), str(path))))


def read_rows(path: Path | str) -> pd.DataFrame:
    """Return the rows of a Parquet file or of a results folder.

    A file of rows may come from anywhere, but in a sweep's folder one without a checksum was not written by the
    sweep, and counts as damaged.

    Raises:
        UserError: missing, damaged, not Parquet, or a column is missing or of another type.
    """
    path = Path(path)
    if path.is_dir():
        return RowStore(path).read()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a rows file or a results folder")
    try:
        with path.open("rb") as file:  # Arrow opens a path twice, and a writer may replace the file in between
            table = pq.read_table(file)
        rows = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not an intact Parquet file ({describe_error(error)}); remake it, or give rows or a results "
            "folder"
        ) from None
    checked = _checked(rows, str(path))
    expected = (table.schema.metadata or {}).get(CHECKSUM)
    try:
        # An older file's checksum covers the columns that it has.
        names = [name for name in SCHEMA.names if name in table.column_names]
        intact = expected is None or expected == _checksum(checked, names)
        frame = _frame(checked)
    except pa.ArrowException:  # Arrow decodes text only now, and finds that it is not UTF-8
        intact = False
    if not intact:
        raise UserError(f"{path}: damaged (its rows do not match its checksum); {_remake(path)}")
    if expected is None and _is_of_sweep(path):
        raise UserError(f"{path}: damaged (no checksum: not as the sweep wrote it); {_remake(path)}")
    return frame


def _is_of_sweep(path: Path) -> bool:
    """Return whether a file is the rows of a sweep, in its results folder."""
    return path.name == WHOLE and record_file(path.parent).is_file()


def _remake(path: Path) -> str:
    fix = "restore it, or run the sweep with --resume, which runs its evaluations again"
    return fix if _is_of_sweep(path) else "remake it"


class RowStore:
    """Append-only rows of a results folder: `rows/` during a sweep, one `rows.parquet` after it.

    Each append is a separate file, named by its content's checksum and put in place by a rename. So there can be
    any number of readers and writers, and no file is ever incomplete or overwritten. Keys make rows unique, so an
    evaluation that was run twice counts once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / "rows"
        self.whole = folder / WHOLE

    def append(self, rows: pd.DataFrame) -> None:
        """Add rows; they are on disk when the call returns."""
        data = _bytes(_checked(rows, str(self.parts)))
        write_atomic(self.parts / f"{hashlib.sha256(data).hexdigest()[:32]}.parquet", data)

    def _part_files(self) -> list[Path]:
        try:
            return sorted(self.parts.glob("[0-9a-f]*.parquet"))
        except FileNotFoundError:  # a writer has just merged them into the whole, and removed their folder
            return []

    def read(self) -> pd.DataFrame:
        """Return all rows, each key once.

        Raises:
            UserError: a file is damaged.
        """
        frames = []
        for file in self._part_files():
            try:
                frames.append(self._part(file))
            except FileNotFoundError:
                continue  # merged in the meantime into the whole, which is read below
        if self.whole.is_file():
            frames.insert(0, read_rows(self.whole))
        if not frames:
            return _frame(SCHEMA.empty_table())
        return _ordered(pd.concat(frames, ignore_index=True))

    @staticmethod
    def _part(file: Path) -> pd.DataFrame:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest()[:32] != file.stem:
            raise UserError(
                f"{file}: damaged (its checksum is not its name); run the sweep with --resume, which runs its "
                "evaluations again"
            )
        return _frame(pq.read_table(io.BytesIO(data), schema=SCHEMA))

    def set_aside(self) -> list[str]:
        """Take damaged files out of the store, so that their rows count as missing and are evaluated again.

        Returns:
            One line per file. Its content is kept, under a name that ends in `.damaged`.
        """
        found = []
        for file in [*self._part_files(), *([self.whole] if self.whole.is_file() else [])]:
            try:
                read_rows(file) if file == self.whole else self._part(file)
            except UserError as error:
                aside = file.with_name(f"{file.name}.damaged")
                file.rename(aside)
                found.append(f"{str(error).partition(';')[0]}; it is now {aside.name}")
        return found

    def compact(self) -> None:
        """Merge the parts into `rows.parquet`.

        A crash in between loses nothing: rows that are in a part and in the whole count once.
        """
        files = self._part_files()
        write_rows(self.whole, self.read())
        for file in files:
            file.unlink()
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()


def failure_row(config: str, k: int, task: str, cause: str) -> pd.DataFrame:
    """Return a row for a failed configuration, so that the leaderboard can be rebuilt from rows alone."""
    values = {
        "config": config,
        "seed": -1,
        "checkpoint": "",
        "step": 0,
        "receiver": "",
        "task": task,
        "split": "",
        "k": k,
        "place": "",
        "decoding": "",
        "condition": FAILED,
        "episode": -1,
        "partner": -1,
        "success": False,
        "parsed": False,
        "partial": 0.0,
        "nll": float("nan"),
        "answer": cause,
        "truncated": pd.NA,
        "facts": "",
        "message": "",
        "params": "",
    }
    return pd.DataFrame([values])


def on_confirm(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows are of a look at confirm."""
    looked: pd.Series[bool] = rows.split.isin([split for split in rows.split.unique() if is_confirm(split)])
    return looked
