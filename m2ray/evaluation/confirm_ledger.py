# NEWDOC
"""`python -m m2ray.evaluate CHECKPOINT`: play one checkpoint under the ablation conditions."""

from __future__ import annotations

from pathlib import Path

from m2ray.evaluation.rows import RowStore
from m2ray.util.errors import UserError


def confirm_ledger(checkpoint: Path) -> Path:
    """Where looks at the confirm split are noted: one file for all checkpoints of a sweep, or of a training."""
    whole = checkpoint.resolve()
    folder = sweep_of(whole)
    if folder is None:
        folder = whole.parent if whole.name.startswith("epoch-") else whole
    return folder / "confirm-looks.log"


def sweep_of(checkpoint: Path) -> Path | None:
    """The folder of the sweep that a checkpoint, `checkpoints/CONFIG/seed-N/epoch-M` or `best`, lies in."""
    near = checkpoint.resolve().parents[:4]
    return next((parent for parent in near if (parent / "sweep.yaml").is_file()), None)


def check_first_look(ledger: Path, split: str) -> None:
    """Keep the confirm split honest: it is looked at once per published result.

    Raises:
        UserError: it has been looked at.
    """
    if ledger.is_file() or _sweep_looked(ledger.parent):
        at = "confirm" if split == "confirm" else f"--seeds {split} overlaps confirm, which"
        raise UserError(
            f"{ledger.parent}: {at} has been looked at; judge on fresh --seeds A:B, or look again with --unlock, "
            "which the report will say"
        )


def _sweep_looked(folder: Path) -> bool:
    if not (folder / "sweep.yaml").is_file():
        return False
    return bool((RowStore(folder).read().split == "confirm").any())


def confirm_looks(folder: Path) -> list[str]:
    """Later looks at the confirm split, which every report must own up to."""
    file = folder / "confirm-looks.log"
    return [f"Looked at confirm again: {line}" for line in file.read_text().splitlines()] if file.is_file() else []
