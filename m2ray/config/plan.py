"""A search space: which configurations a sweep trains. YAML in, configurations and Optuna suggestions out."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna

from m2ray.config.axis import Axis, Scalar
from m2ray.config.space import Point, Space
from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml, read_yaml, validate
from m2ray.util.trees import get_key, merge_trees, set_key

optuna.logging.set_verbosity(optuna.logging.WARNING)


_CHECK_DRAWS, _CHECK_TIMES = 256, 3


class Plan:
    """A space with its file: resolves points and suggestions to configurations."""

    def __init__(self, space: Space, file: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.space, self.file = space, file
        self.base = merge_trees(space.trial, overrides or {})
        self._overrides = overrides or {}
        # What `when` looks at: a key that the file leaves out has its default. The losses have none of their own.
        self._seen = merge_trees(TrialConfig().model_dump(exclude={"losses"}), self.base)
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
                    raise UserError(f"{self.file}: axes.{key}.when: never holds; fix the keys or values it names")
        return configs

    def _pool(self, key: str, axis: Axis) -> list[Scalar]:
        """An axis's choices or bounds, and what lies between that a `when` asks for."""
        asked = [value for other in self.space.axes.values() for value in other.when.get(key, [])]
        low, high = axis.int_ or (1, 0)
        return axis.sample() + [value for value in asked if isinstance(value, int) and low <= value <= high]

    def _point(self, name: str, point: Point) -> TrialConfig:
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
        tree = merge_trees(self._with(tree, point.set, where), self._overrides)
        return validate(TrialConfig, tree, lambda key: self._blamed(key, where, point.set, point.use is not None))

    def _with(self, base: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
        tree = merge_trees(base, {})
        for key, value in values.items():
            try:
                set_key(tree, key, value)
            except ValueError as error:
                raise UserError(f"{self.file}: {where}: {error}") from None
        return tree

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
        """Ask Optuna for each axis that applies, in file order.

        Returns:
            The suggested keys and values.
        """
        tree, chosen = merge_trees(self._seen, {}), {}
        for key, axis in self.space.axes.items():
            if all(get_key(tree, other) in wanted for other, wanted in axis.when.items()):
                chosen[key] = axis.suggest(trial, key)
                set_key(tree, key, chosen[key])
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


def config_name(config: TrialConfig) -> str:
    """A sampled configuration's name: what it is and four bytes of what exactly it is."""
    text = json.dumps(config.model_dump(exclude={"evaluation", "splits", "trackers"}), sort_keys=True)
    return f"{config.codec.encoder}-k{config.codec.k}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def refuse_sweep_record(file: Path, data: Mapping[str, Any]) -> None:
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
        UserError: names file, key and fix.
    """
    data, search = read_yaml(file), search or {}
    refuse_sweep_record(file, data)
    if "name" not in data and (stray := sorted(set(data) & set(TrialConfig.model_fields))):
        raise UserError(
            f"{file}: {stray[0]}: a key of one configuration, not of a space; run `python -m m2ray.train {file}`, "
            "or move all such keys below `trial`"
        )
    if search:
        data = merge_trees(data, {"search": search})

    def source(key: str) -> str:
        option = key.split(".")[1] if key.startswith("search.") else ""
        return f"--{option}" if option in search else str(file)

    return Plan(validate(Space, data, source), file, overrides)
