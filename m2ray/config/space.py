# NEWDOC
"""A search space: which configurations a sweep trains. YAML in, configurations and Optuna suggestions out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from m2ray.config.axis import Axis
from m2ray.util.strict_yaml import Count, NonNegative, StrictModel

# What all configurations of a sweep have in common: their rows are paired across configurations, their curves are
# in one place.
SHARED = ("receiver", "task", "splits", "evaluation", "trackers")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Point(StrictModel):
    """A named configuration that always runs and is always judged on confirm (pre-registered)."""

    use: Annotated[str | None, Field(description="take codec, losses, training from this space's trial")] = None
    set: Annotated[dict[str, Any], Field(description="dotted keys over the trial's")] = {}


class Search(StrictModel):
    """How the axes are searched. Optuna sees the search split only, and there a continuous paired score."""

    trials: Annotated[
        int, Field(ge=0, le=1_000_000, description="configurations to sample, beyond the points")
    ] = 0
    seeds: Annotated[list[Seed], Field(min_length=1, description="training seeds of each; the mean counts")] = [0]
    startup: Annotated[int, Field(ge=1, description="random configurations before TPE models anything")] = 4
    sampler_seed: Seed = 0
    pruner: Literal["none", "asha", "wilcoxon"] = "none"
    deterministic: Annotated[
        bool,
        Field(
            description="suggest the same whichever trial ends first; one trial at a time, or as many as "
            "resources.trials_at_once says"
        ),
    ] = False

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice; keep one")
        return seeds

    @model_validator(mode="after")
    def _unpruned(self) -> Search:
        if self.deterministic and self.pruner != "none":
            raise ValueError("deterministic: what a pruner stops depends on what ended before; set pruner to none")
        return self


class Judge(StrictModel):
    """Who is judged: the best by search score go to select, its best to confirm, with all points."""

    select: Annotated[int, Field(ge=0, description="sampled configurations that go to the select split")] = 4
    confirm: Annotated[int, Field(ge=0, description="of those, judged once on the confirm split")] = 2
    gate: Annotated[str | None, Field(description="gate YAML beside this file; default: the reference's")] = None
    diagnose: Annotated[
        int, Field(ge=0, description="held-out messages on which each judged codec is diagnosed; 0: on none")
    ] = 200
    diagnose_seeds: Annotated[
        Literal["first", "all"], Field(description="training seeds of each configuration that are diagnosed")
    ] = "first"


class Resources(StrictModel):
    """What one trial and one evaluator ask of Ray."""

    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: NonNegative = 0
    accelerator: Annotated[str | None, Field(description="Ray accelerator type, such as A100")] = None
    evaluators: Count = 1
    gpus_per_evaluator: NonNegative = 0
    retries: Annotated[int, Field(ge=0, description="times a died worker's training resumes")] = 1
    placement: Annotated[
        Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"],
        Field(description="Ray's strategy for the workers of one training: on few nodes, or each on its own"),
    ] = "PACK"
    trials_at_once: Annotated[
        int | None,
        Field(ge=1, description="packs of trials at a time; not set, what the cluster has room for at the start"),
    ] = None
    pack: Annotated[
        int, Field(ge=1, le=64, description="trials that train in one process, on one receiver in common passes")
    ] = 1


class Space(StrictModel):
    """A sweep file."""

    name: Name
    about: str = ""
    trial: Annotated[dict[str, Any], Field(description="what all configurations share; see m2ray.train")] = {}
    points: dict[Name, Point] = {}
    axes: dict[str, Axis] = {}
    search: Search = Search()
    judge: Judge = Judge()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _something(self) -> Space:
        if self.search.trials and not self.axes:
            raise ValueError("search.trials: there are no axes to sample; add axes or set it to 0")
        if not self.search.trials and not self.points:
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
