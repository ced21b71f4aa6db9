"""Gate files: the criteria that a codec is judged by, written before anything is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from m2ray.config.plan import Plan
from m2ray.config.sweep_record import read_sweep_record, record_file
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import Share, StrictModel, load_yaml, validate

GATES = Path(__file__).parent / "gates"  # one file for each gate in the package
REFERENCE, CONTENT = GATES / "reference.yaml", GATES / "content.yaml"

GateName = Literal["validity", "gate1", "gate2", "semantic", "priming", "content", "reading"]
Kind = Literal[
    "difference_above_zero", "same_answers", "lower_bound", "overlap", "below", "mcnemar",
    "exceeds", "equivalent", "better", "at_most", "power",
]  # fmt: skip
PAIRED: tuple[Kind, ...] = ("difference_above_zero", "same_answers", "mcnemar", "at_most")
WITH_MARGIN: tuple[Kind, ...] = ("exceeds", "equivalent", "power")
WITHOUT_AGAINST: tuple[Kind, ...] = ("lower_bound", "at_most")


class Criterion(StrictModel):
    """One criterion of a gate file; the files in `gates/` explain the kinds."""

    gate: GateName
    name: str
    kind: Kind
    condition: str
    against: str | None = None
    at_least: Share = 0.0
    above: dict[str, Share] = {}
    share_of: dict[str, Share] = {}
    floor: Share = 0.0
    margin: Share = 0.0
    at_most: Share = 0.0
    column: Literal["truncated", "unparsed"] | None = None
    optional: bool = False
    silent: Annotated[bool, Field(description="optional, and a verdict does not name it where it is missing")] = (
        False
    )
    decides: bool = True
    min_k: Annotated[int, Field(ge=1)] = 1
    max_k: Annotated[int, Field(ge=1)] = 1_000_000

    @model_validator(mode="after")
    def _complete(self) -> Criterion:
        if (self.kind in WITHOUT_AGAINST) == (self.against is not None):
            raise ValueError(
                "against: every kind but lower_bound and at_most needs it, and those have none; add or remove it"
            )
        has_bar = bool(self.above or self.share_of or self.at_least > 0)
        if has_bar != (self.kind == "lower_bound"):
            raise ValueError(
                "lower_bound, and no other kind, needs at_least above 0, above or share_of; add or remove them"
            )
        if self.floor and self.kind not in ("below", "better"):
            raise ValueError("floor: only the kinds below and better take it; remove it")
        if (self.margin > 0) != (self.kind in WITH_MARGIN):
            raise ValueError(f"margin: {', '.join(WITH_MARGIN)}, and no other kinds, need it; add or remove it")
        if (self.column is not None) != (self.kind == "at_most"):
            raise ValueError("column: at_most, and no other kind, needs it; add or remove it")
        if self.silent and not self.optional:
            raise ValueError("silent: only an optional criterion can be; add optional: true or remove it")
        if self.min_k > self.max_k:
            raise ValueError(
                f"min_k {self.min_k} is above max_k {self.max_k}, so it would never apply; lower min_k"
            )
        return self

    def applies(self, k: int | None) -> bool:
        """Return True if the criterion judges codecs of k slots; None is a system without slots."""
        return self.min_k <= (k or 1) <= self.max_k

    @property
    def conditions(self) -> list[str]:
        """The conditions that the criterion compares."""
        return [self.condition, *self.above, *self.share_of, *([self.against] if self.against else [])]

    @property
    def paired(self) -> bool:
        """True if the criterion pairs episodes or reads answers, and so needs rows instead of counts."""
        return self.kind in PAIRED

    def bar(self, rates: Mapping[str, float]) -> float:
        """Return the share that the lower bound must reach.

        Args:
            rates: Success rates (shares) by condition.
        """
        margins = [rates[name] + margin for name, margin in self.above.items()]
        fractions = [rates[name] * fraction for name, fraction in self.share_of.items()]
        # Rounded because 0.2 + 0.1 is 0.30000000000000004.
        return round(max([self.at_least, *margins, *fractions]), 10)


class Grades(StrictModel):
    """Bounds on how much a codec that meets the criteria carries, for the verdicts above and below PASS."""

    part_below: Annotated[Share, Field(description="PART if retention's lower bound is below this share")]
    whole_within: Annotated[Share, Field(description="WHOLE if normal is not worse than P1 by more than this")]
    facts_within: Annotated[
        Share, Field(description="worth the text of M facts if normal is not worse than it by more than this")
    ]


class GateConfig(StrictModel):
    """A gate file: a list of criteria, and the level of their tests.

    With `grades`, a verdict is one of INVALID SETTING, FAIL, PART, PASS and WHOLE, for a configuration over all
    its training seeds; without, it is PASS or FAIL.
    """

    name: str
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    criteria: Annotated[list[Criterion], Field(min_length=1)]
    grades: Grades | None = None
    lets_through: Annotated[list[str], Field(description="what the gate is known to pass wrongly")] = []

    @property
    def conditions(self) -> list[str]:
        """All conditions that the criteria compare, including the optional ones."""
        return list(dict.fromkeys(name for criterion in self.criteria for name in criterion.conditions))

    @property
    def required(self) -> list[str]:
        """The conditions without which there is no verdict."""
        needed = [criterion for criterion in self.criteria if not criterion.optional]
        return list(dict.fromkeys(name for criterion in needed for name in criterion.conditions))

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of all that decides a verdict, whatever the gate calls itself."""
        settings = self.model_dump(exclude={"name", "lets_through"})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def registered_gate(folder: Path) -> GateConfig | None:
    """Return the gate that the sweep in a results folder was registered with; None where no record names one.

    Raises:
        UserError: The record is damaged.
    """
    registered = read_sweep_record(folder).get("gate")
    if registered is None:
        return None
    gate = validate(GateConfig, registered, f"{record_file(folder)}: gate")
    if gate.name == REFERENCE.stem:  # records of earlier versions lack what it is known to pass
        gate = gate.model_copy(update={"lets_through": reference_gate().lets_through})
    return gate


def load_gate(gate: Path | str | None = None) -> GateConfig:
    """Read a gate.

    Args:
        gate: The name of a gate in the package, or a file; by default the gate `content`.

    Raises:
        UserError: there is neither such a gate nor such a file; else see `load_yaml`.
    """
    path = Path(gate) if gate is not None else CONTENT
    packaged = GATES / f"{path}.yaml"
    if path.parent == Path() and path.suffix == "" and not path.exists():
        if not packaged.is_file():
            known = ", ".join(sorted(file.stem for file in GATES.glob("*.yaml")))
            raise UserError(f"--gate: {gate} is neither a file nor one of the gates {known}; use one of them")
        path = packaged
    return load_yaml(GateConfig, path)


@cache
def reference_gate() -> GateConfig:
    """Return the gate `reference`, which sets the form of the reference tables whatever gate judges."""
    return load_gate(REFERENCE)


def load_plan_gate(plan: Plan) -> GateConfig:
    """Return the gate that a space names, by name or file, or else the gate `content`.

    Raises:
        UserError: see `load_yaml`.
    """
    name = plan.space.judge.gate
    if name is None or (GATES / f"{name}.yaml").is_file():
        return load_gate(name)
    return load_gate(plan.file.parent / name)
