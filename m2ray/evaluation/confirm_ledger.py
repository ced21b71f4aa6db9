"""The confirm split is looked at once per published result; later looks are recorded, and reports list them."""

from __future__ import annotations

import time
from pathlib import Path

from m2ray.evaluation.rows import RowStore
from m2ray.util.errors import UserError

FILE = "confirm-looks.log"


def confirm_ledger(checkpoint: Path) -> Path:
    """Return the file that records looks at confirm, shared by all checkpoints of a sweep or of a training."""
    resolved = checkpoint.resolve()
    folder = sweep_of(resolved)
    if folder is None:
        folder = resolved.parent if resolved.name.startswith("epoch-") else resolved
    return folder / FILE


def sweep_of(checkpoint: Path) -> Path | None:
    """Return the results folder that a checkpoint (`checkpoints/CONFIG/seed-N/epoch-M` or `best`) lies in."""
    near = checkpoint.resolve().parents[:4]
    return next((parent for parent in near if (parent / "sweep.yaml").is_file()), None)


def check_first_look(ledger: Path, split: str) -> None:
    """Refuse a second look at the confirm split.

    Raises:
        UserError: it has been looked at.
    """
    if ledger.is_file() or _sweep_looked(ledger.parent):
        place = "confirm" if split == "confirm" else f"--seeds {split} overlaps confirm, which"
        raise UserError(
            f"{ledger.parent}: {place} has been looked at; judge on fresh --seeds A:B, or look again with "
            "--unlock, which the report will list"
        )


def record_look(ledger: Path, checkpoint: Path, split: str) -> None:
    """Add a look at the confirm split to the ledger."""
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    with ledger.open("a", encoding="utf-8") as out:
        out.write(f"{date} evaluate {checkpoint.name} on {split}\n")


def _sweep_looked(folder: Path) -> bool:
    if not (folder / "sweep.yaml").is_file():
        return False
    return bool((RowStore(folder).read().split == "confirm").any())


def confirm_looks(folder: Path) -> list[str]:
    """Return the later looks at the confirm split, which every report has to list."""
    file = folder / FILE
    return [f"Looked at confirm again: {line}" for line in file.read_text().splitlines()] if file.is_file() else []
