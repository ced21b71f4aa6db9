"""Configuration of the training objectives: the keys below `trial.losses` of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from m2ray.util import plugins
from m2ray.util.strict_yaml import Count, NonNegative, Positive, Share, StrictModel, UnknownKey


class LossTerm(StrictModel):
    """An objective: its weight, and how the weight rises and falls over the training."""

    weight: NonNegative = 1.0
    start: Annotated[Share, Field(description="share of all steps for which the weight is 0 at first")] = 0.0
    warmup: Annotated[int, Field(ge=0, description="steps over which the weight then rises")] = 0
    fade: Annotated[
        Share | None, Field(description="share of all steps over which the weight falls to 0; null: never")
    ] = None

    def weight_at(self, step: int, steps: int) -> float:
        """Return the weight at a step, counted from 0, of a training of `steps` steps."""
        elapsed = step - math.ceil(self.start * steps)
        if elapsed < 0:
            return 0.0
        rise = min(1.0, (elapsed + 1) / self.warmup) if self.warmup else 1.0
        fall = 1.0 if self.fade is None else max(0.0, 1 - step / max(1, self.fade * steps))
        return self.weight * rise * fall


class MarginTerm(LossTerm):
    """A hinge objective: zero beyond the margin (nats per answer token)."""

    margin: NonNegative = 1.0


class CrossEntropyTerm(LossTerm):
    """Cross-entropy of the answer; tokens of values have the weight `value_weight`, all others 1."""

    value_weight: Positive = 10.0


class NegativesTerm(LossTerm):
    """A contrast with several other messages of the batch."""

    negatives: Count = 4
    temperature: Positive = 1.0


class Losses(StrictModel):
    """The objectives in use, defined in `m2ray.training.objectives`; those of plugins are added by their name."""

    added_later: ClassVar[Mapping[str, Any]] = {"autoencoding": None}

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})
    __pydantic_extra__: dict[str, LossTerm | None] = Field(init=False)  # those of plugins

    ce: CrossEntropyTerm | None = None
    kl: LossTerm | None = None
    states: LossTerm | None = None
    slots: LossTerm | None = None
    help: MarginTerm | None = None
    contrast: MarginTerm | None = None
    infonce: NegativesTerm | None = None
    reconstruction: LossTerm | None = None
    reconstruction_tokens: LossTerm | None = None
    info_preserve: LossTerm | None = None
    commitment: LossTerm | None = None
    code_information: LossTerm | None = None
    latent_information: LossTerm | None = None
    diversity: LossTerm | None = None
    autoencoding: LossTerm | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields and name not in plugins.installed(plugins.LOSSES):
                raise UnknownKey(name)
            plugins.resolve(plugins.LOSSES, cls.model_fields, name)
        return data

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not any(term.weight > 0 for term in self.terms().values()):
            raise ValueError("no objective has a weight above 0; add one, such as ce")
        return self

    def terms(self) -> dict[str, LossTerm]:
        """Return the objectives that are set, by name."""
        terms = {name: getattr(self, name) for name in (*type(self).model_fields, *self.__pydantic_extra__)}
        return {name: term for name, term in terms.items() if term is not None}
