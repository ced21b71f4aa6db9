"""Axes of a search space: a key, the values that it may take, and when it applies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import optuna
from pydantic import BeforeValidator, Field, model_validator

from m2ray.util.strict_yaml import StrictModel

Scalar = str | int | float | bool | None
DIGITS = 12  # of values in steps: 0.1 + 2 * 0.1 is 0.30000000000000004


def _check_scalar(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r:.60} is not text, a finite number, true, false or null; write one of these")


Value = Annotated[Scalar, BeforeValidator(_check_scalar)]


class Axis(StrictModel):
    """A searched key: exactly one of the five kinds of values, and when it applies."""

    added_later: ClassVar[Mapping[str, Any]] = {"logint": None, "step": None}

    choice: Annotated[list[Value] | None, Field(min_length=1)] = None
    int_: Annotated[tuple[int, int] | None, Field(alias="int", strict=False)] = None
    logint: Annotated[tuple[int, int] | None, Field(strict=False, description="whole numbers on a log scale")] = (
        None
    )
    uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    loguniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    step: Annotated[
        float | None, Field(gt=0, description="int and uniform: only low, low + step, and so on, up to high")
    ] = None
    when: Annotated[
        dict[str, list[Value]], Field(description="keys and their values for which this axis applies")
    ] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        ranges = {"int": self.int_, "logint": self.logint, "uniform": self.uniform, "loguniform": self.loguniform}
        if sum(kind is not None for kind in (self.choice, *ranges.values())) != 1:
            raise ValueError(f"give exactly one of choice, {', '.join(ranges)}")
        if self.choice is not None and len(set(self.choice)) < len(self.choice):
            raise ValueError("choice: a value is given twice; keep one")
        for name, bounds in ranges.items():
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: the range {list(bounds)} is empty; write [low, high] with low < high")
            if bounds is not None and name.startswith("log") and bounds[0] <= 0:
                other = name.removeprefix("log")
                raise ValueError(f"{name}: low must be above 0; use {other} or raise it")
        self._check_step()
        return self

    def _check_step(self) -> None:
        if self.step is None:
            return
        if self.int_ is None and self.uniform is None:
            raise ValueError("step: only int and uniform have one; remove it, or list the values as choice")
        low, high = self.int_ or self.uniform or (0, 0)
        if self.int_ is not None and not self.step.is_integer():
            raise ValueError(f"step: {self.step:g} is not a whole number, as the values of int are; fix it")
        if self.step > high - low:
            raise ValueError(f"step: {self.step:g} is more than the range from {low:g} to {high:g}; lower it")

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of a range; with a step, the upper one is the last value."""
        low, high = self.int_ or self.logint or self.uniform or self.loguniform or (0, 0)
        if self.step is not None:
            # 0.3 / 0.1 is 2.9999999999999996.
            high = low + math.floor((high - low) / self.step + 1e-9) * self.step
            high = int(high) if isinstance(low, int) else round(high, DIGITS)
        return low, high

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Scalar:
        """Return the value that Optuna suggests."""
        if self.choice is not None:
            value: Scalar = trial.suggest_categorical(key, self.choice)
            return value
        low, high = self.bounds
        if self.int_ is not None or self.logint is not None:
            step = int(self.step or 1)
            return trial.suggest_int(key, int(low), int(high), step=step, log=self.logint is not None)
        log = self.loguniform is not None
        value = float(trial.suggest_float(key, low, high, step=self.step, log=log))  # may be a NumPy float
        return value if self.step is None else round(value, DIGITS)

    def distribution(self, value: Scalar) -> optuna.distributions.BaseDistribution:
        """Return Optuna's distribution, given any value of the axis."""
        trial = optuna.trial.FixedTrial({"axis": value})
        self.suggest(trial, "axis")
        return trial.distributions["axis"]

    def choices_or_bounds(self) -> list[Scalar]:
        """Return all choices or both bounds: the values that are checked before anything runs."""
        return list(self.choice) if self.choice is not None else list(self.bounds)

    def values(self) -> Iterator[Scalar]:
        """Yield all values of an axis; of a range of floats without a step, ever finer steps without end."""
        low, high = self.bounds
        if self.choice is not None:
            yield from self.choice
        elif self.size < math.inf:
            for number in range(int(self.size)):
                value = low + number * (self.step or 1)
                yield int(value) if isinstance(low, int) else round(value, DIGITS)
        else:
            yield from _between(low, high)

    @property
    def size(self) -> float:
        """The number of values; infinite for a range of floats without a step."""
        if self.choice is not None:
            return len(self.choice)
        if self.step is None and (self.uniform or self.loguniform):
            return math.inf
        low, high = self.bounds
        return round((high - low) / (self.step or 1)) + 1

    def contains(self, value: Scalar) -> bool:
        """Return whether the axis can take a value."""
        if self.choice is not None:
            return value in self.choice
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low, high = self.bounds
        if not low <= value <= high or (isinstance(low, int) and value != int(value)):
            return False
        share = (value - low) / (self.step or 1)
        return self.step is None or abs(share - round(share)) < 1e-9


def _between(low: float, high: float) -> Iterator[float]:
    """Yield the bounds, then the middles between neighbors, until no two neighbors have a float between them."""
    seen, parts = {low, high}, 2
    yield from sorted(seen)
    while True:
        shares = [i / parts for i in range(1, parts, 2)]
        middles = {low * (1 - share) + high * share for share in shares} - seen
        if not middles:
            return
        yield from sorted(middles)
        seen |= middles
        parts *= 2
