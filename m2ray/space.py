"""A search space: which configurations a sweep trains. YAML in, configurations and Optuna suggestions out."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from pydantic import Field, field_validator, model_validator

from m2ray.axis import Axis, Scalar
from m2ray.command import UserError
from m2ray.config import Count, NonNegative, TrialConfig
from m2ray.strict import Strict, load, read_yaml, validate

optuna.logging.set_verbosity(optuna.logging.WARNING)
_CHECK_DRAWS, _CHECK_TIMES = 256, 3

# What all configurations of a sweep have in common: their rows are paired across configurations, their curves are
# in one place.
SHARED = ("receiver", "task", "splits", "evaluation", "trackers")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Point(Strict):
    """A named configuration that always runs and is always judged on confirm (pre-registered)."""

    use: Annotated[str | None, Field(description="take codec, losses, training from this space's trial")] = None
    set: Annotated[dict[str, Any], Field(description="dotted keys over the trial's")] = {}


class Search(Strict):
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


class Judge(Strict):
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


class Resources(Strict):
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


class Space(Strict):
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


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries, making those on the way.

    Raises:
        ValueError: something other than a dictionary is on the way.
    """
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise ValueError(f"{key}: {part} is {tree!r:.60}, expected a mapping of keys; mend either")
    tree[last] = value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, `over` winning."""
    out = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def fetch(tree: Mapping[str, Any], key: str) -> Any:
    """A dotted key's value, None where it is not set."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


class Plan:
    """A space with its file: resolves points and suggestions to configurations."""

    def __init__(self, space: Space, file: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.space, self.file = space, file
        self.base = merged(space.trial, overrides or {})
        self._overrides = overrides or {}
        # What `when` looks at: a key that the file leaves out has its default. The losses have none of their own.
        self._seen = merged(TrialConfig().model_dump(exclude={"losses"}), self.base)
        self._with(self.base, dict.fromkeys(space.axes), "trial")
        # Every choice and bound of every axis occurs in one of these.
        self.checked = self._check_axes()
        self.points: dict[str, TrialConfig] = {
            name: self._point(name, point) for name, point in space.points.items()
        }

    @property
    def example(self) -> TrialConfig:
        """A configuration that stands for all where only what they share is asked: task, splits, receiver."""
        return self.all[0]

    @property
    def all(self) -> list[TrialConfig]:
        """The points, and configurations in which every choice and bound of every axis occurs."""
        return [*self.points.values(), *self.checked]

    @property
    def workers(self) -> int:
        """Processes of the training that has most of them."""
        return max(config.workers for config in self.all)

    def _check_axes(self) -> list[TrialConfig]:
        """Try every choice and every bound of each axis in some of the configurations where it applies.

        Returns:
            These configurations.

        Raises:
            UserError: a value that no training accepts, or an axis that never applies.
        """
        rng, configs = random.Random(0), []
        pools = {key: self._pool(key, axis) for key, axis in self.space.axes.items()}
        for key, axis in self.space.axes.items():
            for value in axis.sample():
                times = 0
                for _ in range(_CHECK_DRAWS):
                    drawn = {other: rng.choice(pool) for other, pool in pools.items()}
                    chosen = self.suggest(optuna.trial.FixedTrial({**drawn, key: value}))
                    if key in chosen:
                        configs.append(self.config(chosen))
                        times += 1
                    if times == _CHECK_TIMES:
                        break
                if not times:
                    raise UserError(f"{self.file}: axes.{key}.when: never holds; mend the keys or values it names")
        return configs

    def _pool(self, key: str, axis: Axis) -> list[Scalar]:
        """An axis's choices or bounds, and what lies between that a `when` asks for."""
        asked = [value for other in self.space.axes.values() for value in other.when.get(key, [])]
        low, high = axis.int_ or (1, 0)
        return axis.sample() + [value for value in asked if isinstance(value, int) and low <= value <= high]

    def _point(self, name: str, point: Point) -> TrialConfig:
        where = f"points.{name}"
        tree = merged(self.base, {})
        if point.use is not None:
            try:
                other = load(Space, self.file.parent / point.use)
            except UserError as error:
                raise UserError(f"{self.file}: {where}.use: {error}") from None
            for section in ("codec", "losses", "training"):
                tree.pop(section, None)
                if section in other.trial:
                    tree[section] = other.trial[section]
        tree = merged(self._with(tree, point.set, where), self._overrides)
        return validate(TrialConfig, tree, lambda key: self._blamed(key, where, point.set, point.use is not None))

    def _with(self, base: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
        tree = merged(base, {})
        for key, value in values.items():
            try:
                put(tree, key, value)
            except ValueError as error:
                raise UserError(f"{self.file}: {where}: {error}") from None
        return tree

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
        """Ask Optuna for each axis that applies, in file order.

        Returns:
            The suggested keys and values.
        """
        tree, chosen = merged(self._seen, {}), {}
        for key, axis in self.space.axes.items():
            if all(fetch(tree, other) in wanted for other, wanted in axis.when.items()):
                chosen[key] = axis.suggest(trial, key)
                put(tree, key, chosen[key])
        return chosen

    def config(self, chosen: Mapping[str, Scalar]) -> TrialConfig:
        """The configuration that suggested values make."""
        where = "axes " + ", ".join(f"{key} = {value}" for key, value in chosen.items())
        tree = self._with(self.base, chosen, where)
        return validate(TrialConfig, tree, lambda key: self._blamed(key, where, chosen))

    def _blamed(self, key: str, where: str, chosen: Iterable[str], all_of_it: bool = False) -> str:
        """Whose a faulty key is: of `where`, which sets the chosen keys, or of `trial`, which sets the others."""
        own = any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in chosen)
        return f"{self.file}: {where if own or all_of_it or not key else 'trial'}"

    def distributions(self, chosen: Mapping[str, Scalar]) -> dict[str, optuna.distributions.BaseDistribution]:
        """Optuna's distributions of the keys of a past suggestion, to tell a fresh study about it."""
        recorder = optuna.trial.FixedTrial(dict(chosen))
        self.suggest(recorder)
        return dict(recorder.distributions)


def name_of(config: TrialConfig) -> str:
    """A sampled configuration's name: what it is and four bytes of what exactly it is."""
    text = json.dumps(config.model_dump(exclude={"evaluation", "splits", "trackers"}), sort_keys=True)
    return f"{config.codec.encoder}-k{config.codec.k}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def refuse_record(file: Path, data: Mapping[str, Any]) -> None:
    """Refuse the record that a sweep keeps in its folder, which is neither a space nor a configuration.

    Raises:
        UserError: it is one.
    """
    if {"space", "command", "gate"} <= set(data):
        raise UserError(
            f"{file}: the record of a sweep, not what one is made from; give the space that its key file names, "
            f"or the folder {file.parent} to m2ray.status, m2ray.report or m2ray.gate"
        )


def load_plan(
    file: Path, overrides: Mapping[str, Any] | None = None, search: Mapping[str, Any] | None = None
) -> Plan:
    """Read and check a space file, every choice and bound of every axis included.

    Args:
        file: The YAML.
        overrides: Over every configuration, the points' too.
        search: Over the file's `search`.

    Raises:
        UserError: names file, key and mend.
    """
    data, search = read_yaml(file), search or {}
    refuse_record(file, data)
    if "name" not in data and (stray := sorted(set(data) & set(TrialConfig.model_fields))):
        raise UserError(
            f"{file}: {stray[0]}: a key of one configuration, not of a space; run `python -m m2ray.train {file}`, "
            "or move all such keys below `trial`"
        )
    if search:
        data = merged(data, {"search": search})

    def source(key: str) -> str:
        option = key.split(".")[1] if key.startswith("search.") else ""
        return f"--{option}" if option in search else str(file)

    return Plan(validate(Space, data, source), file, overrides)
