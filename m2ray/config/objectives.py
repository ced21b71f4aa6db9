# NEWDOC
"""The configuration of one training, as pydantic models: the keys of `trial` in every space."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from m2ray.util import plugins
from m2ray.util.strict_yaml import Count, NonNegative, Positive, Share, StrictModel, UnknownKey


class LossTerm(StrictModel):
    """One objective: its weight, from when it counts, over how many steps that rises, and when it is back at 0."""

    weight: NonNegative = 1.0
    start: Annotated[Share, Field(description="share of all steps before which it does not count")] = 0.0
    warmup: Annotated[int, Field(ge=0, description="steps over which its weight then rises")] = 0
    fade: Annotated[
        Share | None, Field(description="share of all steps over which the weight falls to 0; not set, it stays")
    ] = None

    def weight_at(self, step: int, steps: int) -> float:
        """The weight at a step, counted from 0, of so many."""
        since = step - math.ceil(self.start * steps)
        if since < 0:
            return 0.0
        rise = min(1.0, (since + 1) / self.warmup) if self.warmup else 1.0
        return self.weight * rise * (1.0 if self.fade is None else max(0.0, 1 - step / max(1, self.fade * steps)))


class MarginTerm(LossTerm):
    """A hinge: nothing to gain beyond the margin (nats per answer token)."""

    margin: NonNegative = 1.0


class CrossEntropyTerm(LossTerm):
    """Cross-entropy of the answer; its values weigh `value_weight`, its other tokens 1."""

    value_weight: Positive = 10.0


class NegativesTerm(LossTerm):
    """Contrast with several other messages of the batch."""

    negatives: Count = 4
    temperature: Positive = 1.0


class Losses(StrictModel):
    """The objectives in use; `m2ray.losses` defines each. A plug's stands beside them under its own name."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})
    __pydantic_extra__: dict[str, LossTerm | None] = Field(init=False)  # the plugs'

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
        """The objectives that are set, by name."""
        every = {name: getattr(self, name) for name in (*type(self).model_fields, *self.__pydantic_extra__)}
        return {name: term for name, term in every.items() if term is not None}
