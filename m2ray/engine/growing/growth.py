"""Sweeps that grow: what the command line adds to a sweep that was registered earlier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m2ray.config.plan import Plan
from m2ray.config.sweep_record import added, read_sweep_record
from m2ray.util.errors import UserError
from m2ray.util.trees import get_key


class Growth(NamedTuple):
    """What the command line adds to a sweep."""

    trials: int
    seeds: list[int]

    @property
    def option(self) -> str:
        """The option that adds it; empty if nothing is added."""
        return "--add-trials" if self.trials else "--add-seeds" if self.seeds else ""


class Registered(NamedTuple):
    """A sweep that was checked: its plan with all that was added to it, its record, and what is added now."""

    plan: Plan
    record: Mapping[str, Any]
    growth: Growth
    command: str


def read_growth(trials: int | None, seeds: str | None) -> Growth:
    """Return what the options `--add-trials` and `--add-seeds` add.

    Raises:
        UserError: their values cannot be added.
    """
    if trials is not None and trials < 1:
        raise UserError(f"--add-trials: {trials} adds nothing; give 1 or more, or leave it out")
    added = [] if seeds is None else read_training_seeds("--add-seeds", seeds)
    if any(seed < 0 or seed >= 2**32 for seed in added):
        raise UserError(f"--add-seeds: {seeds!r} has a seed that is not from 0 to 2^32 - 1; give others")
    return Growth(trials or 0, added)


def read_training_seeds(option: str, text: str) -> list[int]:
    """Return the seeds in `0,1,2`.

    Raises:
        UserError: the text has another form.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a list of whole numbers; write 0,1,2") from None


def search_at_start(root: Path, growth: Growth) -> dict[str, Any]:
    """Return the settings of `search` that a sweep began with, if it grows or has grown.

    They may have come from its command line, which need not be repeated to continue a sweep that has grown.
    """
    record = read_sweep_record(root)
    began = get_key(record, "space.search") or {}
    if not growth.option and not record.get("extensions"):
        return {}
    return {key: began[key] for key in ("trials", "seeds", "deterministic") if key in began}


def grow(plan: Plan, root: Path, growth: Growth) -> Plan:
    """Return the plan with what earlier runs and this one add to it.

    Raises:
        UserError: it cannot be added.
    """
    before = plan.extended(*added(read_sweep_record(root)))
    grown = before.extended(*growth)
    if growth.trials and grown.samples == before.samples:
        raise UserError(f"--add-trials: the axes of {plan.file} have no further combination; widen them")
    return grown
