# NEWDOC
"""The diagnoses of a sweep, read back: a section of each attempt's report, and one table of all arms.

An arm is a configuration; its figures are means over its training seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m2ray.util.errors import UserError
from m2ray.util.files import write_json

FOLDER = "diagnoses"


def diagnosis_folder(root: Path, config: str, seed: int) -> Path:
    """Where a sweep keeps the diagnosis of a configuration and training seed."""
    return root / FOLDER / f"{config}-seed-{seed}"


def read_diagnosis(folder: Path) -> dict[str, Any]:
    """A diagnosis, or why it failed (`failed`); empty where there is none.

    Raises:
        UserError: damaged.
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
    """Say in a diagnosis's place why it failed; `--resume` tries again."""
    write_json(folder / "diagnosis.json", {"about": {"config": config, "seed": seed}, "failed": cause})
