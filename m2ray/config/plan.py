"""Plan of a sweep: a search space resolved to configurations, and Optuna's suggestions as configurations."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from m2ray.config.axis import Axis, Scalar
from m2ray.config.settings import OPTION, is_set, overlap, with_settings
from m2ray.config.space import Point, Space
from m2ray.config.trial import CodecConfig, TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml, read_yaml, validate
from m2ray.util.trees import get_key, merge_trees, set_key

optuna.logging.set_verbosity(optuna.logging.WARNING)

# For each choice or bound of an axis: random draws to find configurations where it applies, and how many to check.
_CHECK_DRAWS, _CHECK_TIMES = 256, 3
MAX_GRID = 10_000  # combinations


class Sampled(NamedTuple):
    """A sampled configuration: its name, and its settings, or why the suggested values do not fit together."""

    name: str
    config: TrialConfig | None
    error: str


class Plan:
    """A space and its file: resolves points and suggestions to configurations.

    Attributes:
        overrides: Dotted keys with the values that all configurations have whatever the file says.
        base: The keys that all configurations share, overrides included.
        points: The configurations of the points, by name.
        checked: Configurations in which every choice and bound of every axis occurs.
        added_seeds: Training seeds that were added to the sweep, for what it judges.
        receiver_dtype: The receiver's numeric type in the whole sweep, which trials and evaluators are told; None
            until it is decided.
    """

    def __init__(self, space: Space, file: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.space, self.file = _with_overrides(space, self.overrides), file
        self.added_seeds: list[int] = []
        self.receiver_dtype: str | None = None
        self.base = self.space.trial
        # What `when` is compared with: a key that the file omits has its default. Losses have no defaults.
        defaults = {**TrialConfig().model_dump(exclude={"losses"}), "codec": dict(CodecConfig())}
        self._defaults = merge_trees(defaults, self.base)
        # Fails if an axis names a key below a plain value of `trial`.
        self._with(self.base, dict.fromkeys(space.axes), "trial")
        self.checked = self._check_axes()
        self.points: dict[str, TrialConfig] = {
            name: self._point(name, point) for name, point in space.points.items()
        }
        if space.search.sampler == "grid":
            _ = self._grid  # refused now if it is too large

    @property
    def example(self) -> TrialConfig:
        """A configuration for what all share: task, splits, receiver and its numeric type."""
        return self.told(self.all[0])

    @property
    def diagnosed(self) -> int:
        """The messages of each diagnosis; 0 where none is made, as of tasks in free text."""
        return 0 if self.example.task.is_text else self.space.judge.diagnose

    def told(self, config: TrialConfig) -> TrialConfig:
        """Return a configuration with the numeric type of the receiver that the sweep has."""
        return config.model_copy(update={"receiver_dtype": self.receiver_dtype or config.receiver_dtype})

    @property
    def all(self) -> list[TrialConfig]:
        """The points, and configurations in which every choice and bound of every axis occurs."""
        return [*self.points.values(), *self.checked]

    def extended(self, trials: int, seeds: Sequence[int], source: str = "--add-trials") -> Plan:
        """Return the plan with trials, and with training seeds of what is judged, added.

        Raises:
            UserError: there are no axes to sample, or a seed is among the others.
        """
        if trials and self.space.search.sampler == "grid":
            raise UserError(
                f"{source}: {self.file} is a grid, which has every combination; add training seeds instead"
            )
        if trials and not self.space.axes:
            raise UserError(f"{source}: {self.file} has no axes to sample; add training seeds instead")
        if twice := [seed for seed in seeds if seed in self.judged_seeds or seeds.count(seed) > 1]:
            raise UserError(f"--add-seeds: {twice[0]} is a training seed already; give others")
        plan, search = copy.copy(self), self.space.search
        search = search.model_copy(update={"trials": search.trials + trials})
        plan.space = self.space.model_copy(update={"search": search})
        plan.added_seeds = [*self.added_seeds, *seeds]
        return plan

    @property
    def judged_seeds(self) -> list[int]:
        """The training seeds of what is judged on confirm."""
        return [*self.space.search.seeds, *self.added_seeds]

    @property
    def workers(self) -> int:
        """The largest number of processes of any training."""
        return max(config.workers for config in self.all)

    @property
    def samples(self) -> int:
        """The number of configurations to sample: `search.trials`, or fewer where the axes have no more.

        Of a grid, that of all combinations.
        """
        if self.space.search.sampler == "grid":
            return self._grid
        trials = self.space.search.trials
        enough = trials + len(self.points)
        if not trials or math.prod(axis.size for axis in self.space.axes.values() if not axis.when) >= enough:
            return trials
        few = list(itertools.islice(self.combinations(), enough))
        if len(few) == enough:
            return trials
        points = {config_name(config) for config in self.points.values()}
        return min(trials, len({self.sampled(chosen).name for chosen in few} - points))

    @cached_property
    def _grid(self) -> int:
        """The number of combinations of the axes that are not points.

        Raises:
            UserError: there are too many.
        """
        found = list(itertools.islice(self.combinations(), MAX_GRID + 1))
        if len(found) > MAX_GRID:
            raise UserError(
                f"{self.file}: search.sampler: a grid of more than {MAX_GRID:,} combinations; shorten the axes, "
                "or sample some with search.trials"
            )
        points = {config_name(config) for config in self.points.values()}
        return len({self.sampled(chosen).name for chosen in found} - points)

    def combinations(self) -> Iterator[dict[str, Scalar]]:
        """Yield every combination of the axes' values once, as `suggest` returns them.

        There is no end to them where an axis is a range of floats.
        """
        return self._combinations(list(self.space.axes.items()), merge_trees(self._defaults, {}), {})

    def _combinations(
        self, axes: list[tuple[str, Axis]], tree: dict[str, Any], chosen: dict[str, Scalar]
    ) -> Iterator[dict[str, Scalar]]:
        """Yield the combinations of the remaining axes, with what was chosen for those before them."""
        if not axes:
            yield chosen
            return
        (key, axis), *rest = axes
        if not self._applies(axis, tree):
            yield from self._combinations(rest, tree, chosen)
            return
        for value in axis.values():
            own = merge_trees(tree, {})
            set_key(own, key, value)
            yield from self._combinations(rest, own, {**chosen, key: value})

    @staticmethod
    def _applies(axis: Axis, tree: Mapping[str, Any]) -> bool:
        return all(get_key(tree, other) in values for other, values in axis.when.items())

    def on_axes(self, config: TrialConfig) -> dict[str, Scalar]:
        """Return a configuration's values on the axes that apply to it and can take them."""
        tree = config.model_dump()
        applying = {key: get_key(tree, key) for key, axis in self.space.axes.items() if self._applies(axis, tree)}
        return {key: value for key, value in applying.items() if self.space.axes[key].contains(value)}

    def _check_axes(self) -> list[TrialConfig]:
        """Validate every choice and bound of each axis in some of the configurations where it applies.

        Returns:
            These configurations.

        Raises:
            UserError: a value is not valid, or an axis never applies.
        """
        rng, configs = random.Random(0), []
        pools = {key: self._pool(key, axis) for key, axis in self.space.axes.items()}
        for key, axis in self.space.axes.items():
            for value in axis.choices_or_bounds():
                found = list(self._configs_with(key, value, pools, rng))
                if not found:
                    raise UserError(f"{self.file}: axes.{key}.when: never holds; fix the keys or values it names")
                configs += found
        return configs

    def _configs_with(
        self, key: str, value: Scalar, pools: Mapping[str, list[Scalar]], rng: random.Random
    ) -> Iterator[TrialConfig]:
        """Yield a few random configurations in which an axis applies and has this value."""
        times = 0
        for _ in range(_CHECK_DRAWS):
            drawn = {other: rng.choice(pool) for other, pool in pools.items()}
            chosen = self.suggest(optuna.trial.FixedTrial({**drawn, key: value}))
            if key in chosen:
                yield self.config(chosen)
                times += 1
            if times == _CHECK_TIMES:
                return

    def _pool(self, key: str, axis: Axis) -> list[Scalar]:
        """Return an axis's choices or bounds, and the values between the bounds that a `when` names."""
        named = [value for other in self.space.axes.values() for value in other.when.get(key, [])]
        whole = axis.int_ is not None or axis.logint is not None
        return axis.choices_or_bounds() + [value for value in named if whole and axis.contains(value)]

    def _point(self, name: str, point: Point) -> TrialConfig:
        """Return the configuration of a point."""
        where = f"points.{name}"
        tree = merge_trees(self.base, {})
        if point.use is not None:
            try:
                other = load_yaml(Space, self.file.parent / point.use)
            except UserError as error:
                raise UserError(f"{self.file}: {where}.use: {error}") from None
            for section in ("codec", "losses", "training"):
                tree.pop(section, None)
                if section in other.trial:
                    tree[section] = other.trial[section]
        tree = with_settings(self._with(tree, point.set, where), self.overrides)
        sets_all = point.use is not None
        return validate(TrialConfig, tree, lambda key: self._source(key, where, point.set, sets_all))

    def _with(self, base: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return a copy of a tree with dotted keys set."""
        return with_settings(base, values, f"{self.file}: {where}")

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
        """Return Optuna's suggestions by dotted key, for each axis that applies, in file order."""
        tree, chosen = merge_trees(self._defaults, {}), {}
        for key, axis in self.space.axes.items():
            if self._applies(axis, tree):
                chosen[key] = axis.suggest(trial, key)
                set_key(tree, key, chosen[key])
        return chosen

    def config(self, chosen: Mapping[str, Scalar]) -> TrialConfig:
        """Return the configuration with suggested values.

        Raises:
            UserError: the values are not valid together.
        """
        tree = self._with(self.base, chosen, _axes_text(chosen))

        def source(key: str) -> str:
            # Without a key the values do not fit together, and any of them may be the cause.
            involved = {axis: value for axis, value in chosen.items() if not key or overlap(key, axis)}
            return self._source(key, _axes_text(involved), involved)

        return validate(TrialConfig, tree, source)

    def sampled(self, chosen: Mapping[str, Scalar]) -> Sampled:
        """Return the configuration with suggested values, or why there is none, and its name."""
        try:
            config = self.config(chosen)
        except UserError as error:
            digest = hashlib.sha256(json.dumps(dict(chosen), sort_keys=True).encode()).hexdigest()[:8]
            return Sampled(f"invalid-{digest}", None, str(error))
        return Sampled(config_name(config), config, "")

    def _source(self, key: str, where: str, chosen: Iterable[str], sets_all: bool = False) -> str:
        """Return what sets a faulty key: the command line, else `where` if it does, else the file's `trial`."""
        if is_set(key, self.overrides):
            return OPTION
        sets_key = any(overlap(key, other) for other in chosen)
        return f"{self.file}: {where if sets_key or sets_all or not key else 'trial'}"


def _with_overrides(space: Space, overrides: Mapping[str, Any]) -> Space:
    """Return a space with overridden keys set, and without their axes, as they have one value."""
    axes = {key: axis for key, axis in space.axes.items() if not is_set(key, overrides)}
    if space.axes and not axes and not space.points:
        raise UserError(
            f"{OPTION}: sets every searched key, so that nothing is left to search; run the configuration by "
            "m2ray.train"
        )
    search = space.search if axes else space.search.model_copy(update={"trials": 0})
    trial = with_settings(space.trial, overrides)
    return space.model_copy(update={"trial": trial, "axes": axes, "search": search})


def _axes_text(values: Mapping[str, Scalar]) -> str:
    return "axes " + ", ".join(f"{key} = {value}" for key, value in values.items())


def config_name(config: TrialConfig) -> str:
    """Return the name of a sampled configuration: its encoder, its k, and four bytes of a digest.

    The digest covers all keys except `evaluation`, `splits` and `trackers`.
    """
    text = json.dumps(config.model_dump(exclude={"evaluation", "splits", "trackers"}), sort_keys=True)
    return f"{config.codec.encoder}-k{config.codec.k}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def refuse_sweep_record(file: Path, data: Mapping[str, Any]) -> None:
    """Refuse the record of a sweep, which is neither a space nor a configuration.

    Raises:
        UserError: `data` is such a record.
    """
    if {"space", "command", "gate"} <= set(data):
        raise UserError(
            f"{file}: the record of a sweep, not a space or configuration; give the space its key file names, "
            f"or give the folder {file.parent} to m2ray.status, m2ray.report or m2ray.gate"
        )


def _space_path(key: str) -> list[str]:
    """Return the path of a key in a space, where the keys of axes and of a point's `set` have dots themselves."""
    path = key.split(".")
    depth = {"axes": 1, "points": 3}.get(path[0], len(path))
    return [*path[:depth], ".".join(path[depth:])] if len(path) > depth else path


def load_plan(
    file: Path,
    overrides: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Read a space file and check it, including every choice and bound of every axis.

    Args:
        file: The YAML file.
        overrides: Dotted keys that replace those of every configuration, also of the points.
        search: Keys that replace those of the file's `search`.
        settings: Dotted keys of the space, such as `judge.confirm`, or else of every configuration, such as
            `codec.k`, which become overrides.

    Raises:
        UserError: names file, key and fix.
    """
    data, search, settings = read_yaml(file), search or {}, settings or {}
    refuse_sweep_record(file, data)
    if "name" not in data and (stray := sorted(set(data) & set(TrialConfig.model_fields))):
        raise UserError(
            f"{file}: {stray[0]}: a key of one configuration, not of a space; run `python -m m2ray.train {file}`, "
            "or move all such keys below `trial`"
        )
    of_space = {key: value for key, value in settings.items() if key.partition(".")[0] in Space.model_fields}
    of_all = {key: value for key, value in settings.items() if key not in of_space}
    for key, value in of_space.items():
        *path, last = _space_path(key)
        inner: dict[str, Any] = {last: value}
        for part in reversed(path):
            inner = {part: inner}
        data = merge_trees(data, inner)
    if search:
        data = merge_trees(data, {"search": search})

    def source(key: str) -> str:
        if is_set(key, of_space):
            return OPTION
        option = key.split(".")[1] if key.startswith("search.") else ""
        return f"--{option}" if option in search else str(file)

    return Plan(validate(Space, data, source), file, {**(overrides or {}), **of_all})
