"""Gate files: the criteria that a codec is judged by, written before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from m2ray.config.plan import Plan
from m2ray.util.strict_yaml import Share, StrictModel, load_yaml

REFERENCE = Path(__file__).parent / "gates" / "reference.yaml"

GateName = Literal["validity", "gate1", "gate2", "semantic"]


class Criterion(StrictModel):
    """One criterion of a gate file; `gates/reference.yaml` explains the kinds."""

    gate: GateName
    name: str
    kind: Literal["difference_above_zero", "same_answers", "lower_bound", "overlap", "below", "mcnemar"]
    condition: str
    against: str | None = None
    at_least: Share = 0.0
    above: dict[str, Share] = {}
    share_of: dict[str, Share] = {}
    floor: Share = 0.0
    min_k: Annotated[int, Field(ge=1)] = 1
    max_k: Annotated[int, Field(ge=1)] = 1_000_000

    @model_validator(mode="after")
    def _complete(self) -> Criterion:
        if (self.kind == "lower_bound") == (self.against is not None):
            raise ValueError(
                "against: every kind except lower_bound needs it, and lower_bound has none; add or remove it"
            )
        has_bar = bool(self.above or self.share_of or self.at_least > 0)
        if has_bar != (self.kind == "lower_bound"):
            raise ValueError(
                "lower_bound, and no other kind, needs at_least above 0, above or share_of; add or remove them"
            )
        if self.floor and self.kind != "below":
            raise ValueError("floor: only the kind below takes it; remove it")
        if self.min_k > self.max_k:
            raise ValueError(
                f"min_k {self.min_k} is above max_k {self.max_k}, so it would never apply; lower min_k"
            )
        return self

    def applies(self, k: int) -> bool:
        """Return True if the criterion judges codecs of k slots."""
        return self.min_k <= k <= self.max_k

    @property
    def conditions(self) -> list[str]:
        """The conditions that the criterion compares."""
        return [self.condition, *self.above, *self.share_of, *([self.against] if self.against else [])]

    @property
    def paired(self) -> bool:
        """True if the criterion pairs episodes, and so needs rows instead of counts."""
        return self.kind in ("difference_above_zero", "same_answers", "mcnemar")

    def bar(self, rates: Mapping[str, float]) -> float:
        """Return the share that the lower bound must reach.

        Args:
            rates: Success rates (shares) by condition.
        """
        margins = [rates[name] + margin for name, margin in self.above.items()]
        fractions = [rates[name] * fraction for name, fraction in self.share_of.items()]
        # Rounded because 0.2 + 0.1 is 0.30000000000000004.
        return round(max([self.at_least, *margins, *fractions]), 10)


class GateConfig(StrictModel):
    """A gate file: a list of criteria, and the level of their tests."""

    name: str
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    criteria: Annotated[list[Criterion], Field(min_length=1)]

    @property
    def conditions(self) -> list[str]:
        """All conditions that the criteria compare."""
        return list(dict.fromkeys(name for criterion in self.criteria for name in criterion.conditions))


def load_gate(path: Path | None = None) -> GateConfig:
    """Read a gate file; by default that of the reference attempt.

    Raises:
        UserError: see `load_yaml`.
    """
    return load_yaml(GateConfig, path or REFERENCE)


def load_plan_gate(plan: Plan) -> GateConfig:
    """Return the gate that a space names, or else the reference's.

    Raises:
        UserError: see `load_yaml`.
    """
    name = plan.space.judge.gate
    return load_gate(plan.file.parent / name if name else None)
