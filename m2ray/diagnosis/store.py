"""The diagnoses in a results folder: where they are kept, reading them, and recording failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m2ray.util.errors import UserError
from m2ray.util.files import write_json

FOLDER = "diagnoses"


def diagnosis_folder(root: Path, config: str, seed: int) -> Path:
    """Return the folder in which a sweep keeps the diagnosis of a configuration and training seed."""
    return root / FOLDER / f"{config}-seed-{seed}"


def read_diagnosis(folder: Path) -> dict[str, Any]:
    """Return the content of diagnosis.json: a diagnosis, or why it failed (`failed`); empty if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "diagnosis.json"
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = {"config", "seed"} - set(found["about"])
        whole = "failed" in found or {"findings", "root_cause", "success", "gaps", "probes", "maps"} <= set(found)
    except (ValueError, KeyError, TypeError):
        missing, whole = set(), False
    if missing or not whole:
        raise UserError(f"{file}: not a diagnosis; remove it and run the sweep with --resume") from None
    return found


def record_failure(folder: Path, config: str, seed: int, cause: str) -> None:
    """Write, in place of a diagnosis, why it failed; `--resume` tries again."""
    write_json(folder / "diagnosis.json", {"about": {"config": config, "seed": seed}, "failed": cause})
