"""One configuration of a sweep as YAML: as `m2ray.train` takes it, or as a point of another space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2ray.codec.checkpoints import last_checkpoints, read_record
from m2ray.config.settings import with_settings
from m2ray.config.space import SHARED
from m2ray.config.sweep_record import plain_yaml, read_sweep_record, record_file
from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal
from m2ray.util.strict_yaml import validate
from m2ray.util.text import list_some
from m2ray.util.trees import get_key


def find_configuration(sweep: Path, config: str) -> TrialConfig:
    """Return the settings of a configuration of a sweep, which may be running or published without checkpoints.

    They are those of the space's point, else those that a checkpoint was trained with, else those that the search
    chose, from its journal.

    Raises:
        UserError: the folder holds no sweep, or the sweep has no such configuration.
    """
    if not record_file(sweep).is_file():
        raise UserError(f"{sweep}: no sweep.yaml; give results/NAME of a sweep")
    record = read_sweep_record(sweep)
    points, chosen = record.get("points", {}), _chosen(sweep)
    if config in points:
        return validate(TrialConfig, points[config], f"{record_file(sweep)}: points.{config}")
    for folder in _checkpoints(sweep, config):
        return validate(TrialConfig, read_record(folder)["trial"], f"{folder}/config.json: trial")
    if config in chosen:
        tree = with_settings(get_key(record, "space.trial") or {}, chosen[config])
        return validate(TrialConfig, tree, f"{sweep}/trials.jsonl: {config}")
    known = [*points, *(name for name in chosen if name not in points)]
    raise UserError(f"{sweep}: no configuration {config!r:.60}; choose from {list_some(known) or 'none'}")


def _chosen(sweep: Path) -> dict[str, dict[str, Any]]:
    """Return the values that the search chose for each sampled configuration, by dotted key."""
    entries = Journal(sweep / "trials.jsonl").entries()
    return {
        str(entry["config"]): dict(entry["chosen"])
        for entry in entries
        if entry.get("event") == "began" and entry.get("chosen")
    }


def _checkpoints(sweep: Path, config: str) -> list[Path]:
    """Return the last checkpoints of a configuration, and its published codecs, that state their settings."""
    trained = [folder for (name, _), folder in last_checkpoints(sweep / "checkpoints").items() if name == config]
    published = [file.parent for file in sorted(sweep.glob("*/config.json"))]
    records = {folder: read_record(folder) for folder in [*trained, *published]}
    return [folder for folder, record in records.items() if record.get("config") == config and "trial" in record]


def configuration_yaml(config: TrialConfig) -> str:
    """Return a configuration as the file that `m2ray.train` takes, with every setting written out."""
    return plain_yaml(config.model_dump(exclude_none=True))


def point_yaml(name: str, config: TrialConfig) -> str:
    """Return a configuration as a point of a space, with all settings that a point may have."""
    sections: Mapping[str, Any] = config.model_dump(exclude_none=True)
    settings = {key: value for key, value in sections.items() if key not in SHARED}
    return plain_yaml({"points": {name: {"set": settings}}})
