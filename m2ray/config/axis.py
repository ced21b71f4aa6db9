"""Axes of a search space: a key, the values that it may take, and when it applies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import optuna
from pydantic import BeforeValidator, Field, model_validator

from m2ray.util.strict_yaml import StrictModel

Scalar = str | int | float | bool | None


def _check_scalar(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r:.60} is not text, a finite number, true, false or null; write one of these")


Value = Annotated[Scalar, BeforeValidator(_check_scalar)]


class Axis(StrictModel):
    """A searched key: exactly one of the four kinds of values, and when it applies."""

    choice: Annotated[list[Value] | None, Field(min_length=1)] = None
    int_: Annotated[tuple[int, int] | None, Field(alias="int", strict=False)] = None
    uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    loguniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    when: Annotated[
        dict[str, list[Value]], Field(description="keys and their values for which this axis applies")
    ] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        given = [kind for kind in (self.choice, self.int_, self.uniform, self.loguniform) if kind is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of choice, int, uniform, loguniform")
        if self.choice is not None and len(set(self.choice)) < len(self.choice):
            raise ValueError("choice: a value is given twice; keep one")
        for name, bounds in (("int", self.int_), ("uniform", self.uniform), ("loguniform", self.loguniform)):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: the range {list(bounds)} is empty; write [low, high] with low < high")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("loguniform: low must be above 0; use uniform or raise it")
        return self

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Scalar:
        """Return the value that Optuna suggests."""
        if self.choice is not None:
            value: Scalar = trial.suggest_categorical(key, self.choice)
        elif self.int_ is not None:
            value = trial.suggest_int(key, *self.int_)
        elif self.uniform is not None:
            value = float(trial.suggest_float(key, *self.uniform))  # a NumPy float if the bounds nearly meet
        else:
            assert self.loguniform is not None
            value = float(trial.suggest_float(key, *self.loguniform, log=True))
        return value

    def choices_or_bounds(self) -> list[Scalar]:
        """Return all choices or both bounds: the values that are checked before anything runs."""
        if self.choice is not None:
            return list(self.choice)
        return list(self.int_ or self.uniform or self.loguniform or ())

    def values(self) -> Iterator[Scalar]:
        """Yield all values of a choice or of whole numbers; of a range of floats, ever finer steps without end."""
        if self.choice is not None:
            yield from self.choice
        elif self.int_ is not None:
            yield from range(self.int_[0], self.int_[1] + 1)
        else:
            yield from _between(*(self.uniform or self.loguniform or (0.0, 0.0)))

    @property
    def size(self) -> float:
        """The number of values; infinite for a range of floats."""
        if self.choice is not None:
            return len(self.choice)
        return self.int_[1] - self.int_[0] + 1 if self.int_ is not None else math.inf


def _between(low: float, high: float) -> Iterator[float]:
    """Yield the bounds, then the middles between neighbours, until no two neighbours have a float between them."""
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
