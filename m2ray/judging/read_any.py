"""Read what can be judged or compared: rows, a results folder, or outcomes of any system."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq

from m2ray.evaluation.rows import FAILED, read_rows
from m2ray.judging.outcome_files import SUFFIXES, OutcomeFile, read_outcomes
from m2ray.util.errors import UserError


class Cell(NamedTuple):
    """A configuration on a split."""

    config: str
    split: str


def read_any(path: Path) -> OutcomeFile:
    """Read rows, a results folder, or outcomes of any system; the columns of rows are all read.

    Raises:
        UserError: it is none of them.
    """
    if path.is_dir() or not path.is_file() or (path.suffix == ".parquet" and _is_rows(path)):
        return OutcomeFile(read_rows(path), [])
    try:
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: neither rows nor outcomes; name outcomes {', '.join(SUFFIXES)}")
        return read_outcomes(path)
    except UserError as error:
        # A sweep's leaderboard and journal look like outcomes.
        if (path.parent / "sweep.yaml").is_file():
            raise UserError(f"{error}; for the rows of the sweep name its folder, {path.parent}") from None
        raise


def _is_rows(path: Path) -> bool:
    """Return whether a Parquet file holds rows of this package; a damaged one does, for its error to say so."""
    try:
        return {"config", "checkpoint", "receiver"} <= set(pq.read_schema(path).names)
    except (OSError, ValueError):
        return True


def are_rows(rows: pd.DataFrame) -> bool:
    """Return whether these are rows of this package, which know their receiver, task and split."""
    return "checkpoint" in rows


def cells_in(rows: pd.DataFrame) -> list[Cell]:
    """Return the configurations with outcomes, and their splits."""
    own = rows[(rows.config != "") & (rows.condition != FAILED)]
    return [Cell(*cell) for cell in own[list(Cell._fields)].drop_duplicates().itertuples(index=False, name=None)]
