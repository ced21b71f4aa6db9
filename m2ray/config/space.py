"""The file of a search space: the points and axes of a sweep, and how they are searched and judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    Field,
    field_validator,
    model_validator,
)

from m2ray.config.axis import Axis
from m2ray.config.trial import TrialConfig
from m2ray.util.strict_yaml import Count, NonNegative, Positive, StrictModel

# The keys that are the same for all configurations of a sweep, so that rows can be paired across configurations
# and training curves are in one place.
SHARED = ("receiver", "receiver_dtype", "task", "splits", "evaluation", "trackers")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Point(StrictModel):
    """A named, pre-registered configuration, which is always trained and always judged on confirm."""

    use: Annotated[str | None, Field(description="space file whose trial gives codec, losses and training")] = None
    set: Annotated[dict[str, Any], Field(description="dotted keys that replace those of trial")] = {}


class Search(StrictModel):
    """Settings of the search over the axes. Optuna only sees a continuous paired score on the search split."""

    added_later: ClassVar[Mapping[str, Any]] = {"sampler": "tpe", "max_hours": None, "max_core_hours": None}

    trials: Annotated[
        int, Field(ge=0, le=1_000_000, description="configurations to sample, besides the points")
    ] = 0
    seeds: Annotated[
        list[Seed], Field(min_length=1, description="training seeds of each configuration; the mean score counts")
    ] = [0]
    sampler: Annotated[
        Literal["tpe", "grid"],
        Field(description="tpe: Optuna's; grid: every combination of the axes once, without trials"),
    ] = "tpe"
    max_hours: Annotated[
        Positive | None, Field(description="hours of training and search, after which no new trial starts")
    ] = None
    max_core_hours: Annotated[
        Positive | None, Field(description="the same in hours of the CPU cores that trials hold")
    ] = None
    startup: Annotated[int, Field(ge=1, description="random configurations before TPE starts")] = 4
    sampler_seed: Seed = 0
    pruner: Literal["none", "asha", "wilcoxon"] = "none"
    deterministic: Annotated[
        bool,
        Field(
            description="make suggestions that do not depend on which trial ends first; runs one trial at a time, "
            "or resources.trials_at_once"
        ),
    ] = False

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice; keep one")
        return seeds

    @model_validator(mode="after")
    def _all_of_a_grid(self) -> Search:
        if self.sampler == "grid" and self.trials:
            raise ValueError("trials: a grid has every combination of its axes; leave it out, or sampler")
        return self

    @model_validator(mode="after")
    def _unpruned(self) -> Search:
        if self.deterministic and self.pruner != "none":
            raise ValueError(
                "deterministic: a pruner's decisions depend on which trials ended before; set pruner to none"
            )
        return self


class Judge(StrictModel):
    """Settings of the judging: the best by search score go to select, the best there and all points to confirm."""

    select: Annotated[int, Field(ge=0, description="sampled configurations that go to the select split")] = 4
    confirm: Annotated[
        int, Field(ge=0, description="of those, configurations that are judged once on the confirm split")
    ] = 2
    gate: Annotated[
        str | None,
        Field(description="content, reference, or a gate file, relative to this file; default: content"),
    ] = None
    diagnose: Annotated[
        int, Field(ge=0, description="held-out messages on which each judged codec is diagnosed; 0: no diagnosis")
    ] = 200
    diagnose_seeds: Annotated[
        Literal["first", "all"], Field(description="training seeds of each configuration that are diagnosed")
    ] = "first"


class Resources(StrictModel):
    """Resources that trials and evaluators need, in Ray's terms."""

    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: NonNegative = 0
    accelerator: Annotated[str | None, Field(description="Ray accelerator type, such as A100")] = None
    evaluators: Count = 1
    gpus_per_evaluator: NonNegative = 0
    retries: Annotated[int, Field(ge=0, description="times that training resumes after a worker died")] = 1
    placement: Annotated[
        Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"],
        Field(description="Ray's placement strategy for the workers of one training: few nodes, or one node each"),
    ] = "PACK"
    trials_at_once: Annotated[
        int | None,
        Field(ge=1, description="packs of trials at a time; default: as many as fit the cluster at the start"),
    ] = None
    pack: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="trials that train in one process, with one receiver and shared forward passes",
        ),
    ] = 1


class Space(StrictModel):
    """A search space file."""

    checked_later: ClassVar[Mapping[str, type[BaseModel]]] = {"trial": TrialConfig}

    name: Name
    about: str = ""
    trial: Annotated[dict[str, Any], Field(description="keys that all configurations share; see m2ray.train")] = {}
    points: dict[Name, Point] = {}
    axes: dict[str, Axis] = {}
    search: Search = Search()
    judge: Judge = Judge()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _has_work(self) -> Space:
        if self.search.trials and not self.axes:
            raise ValueError("search.trials: there are no axes to sample; add axes or set it to 0")
        if self.search.sampler == "grid":
            if not self.axes:
                raise ValueError("search.sampler: there are no axes for a grid; add axes or leave it out")
            for key, axis in self.axes.items():
                if math.isinf(axis.size):
                    raise ValueError(f"axes.{key}: a grid needs values to combine; add a step, or write choice")
        elif not self.search.trials and not self.points:
            raise ValueError("points: nothing to run; add a point, or axes and search.trials")
        if self.judge.confirm > self.judge.select:
            raise ValueError("judge.confirm: more than judge.select; lower it")
        if self.resources.pack > 1 and self.search.pruner != "none":
            raise ValueError(
                "resources.pack: trials that train together cannot be pruned; set search.pruner to none"
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Space:
        for where, keys in [("axes", self.axes), *((f"points.{n}.set", p.set) for n, p in self.points.items())]:
            for key in keys:
                if key.partition(".")[0] in SHARED:
                    raise ValueError(
                        f"{where}.{key}: the same for all configurations of a sweep; move it to trial"
                    )
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Space:
        keys = list(self.axes)
        for i, (key, axis) in enumerate(self.axes.items()):
            for other in axis.when:
                if other in keys[i:]:
                    raise ValueError(f"axes.{key}.when.{other}: comes later in the file; move {other} above {key}")
        return self
