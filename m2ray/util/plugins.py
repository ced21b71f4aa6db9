"""Plugins: task families, encoders, objectives and conditions that other packages add by entry point.

Names come from the metadata of the installed packages, so a configuration is checked without importing any plugin.
A plugin is imported where it is used, also in Ray's workers. Its errors become one line that names its package.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from m2ray.util.errors import UserError, describe_error
from m2ray.util.memory import is_out_of_memory

# Entry point groups.
TASKS, ENCODERS, LOSSES, CONDITIONS = (f"m2ray.{kind}" for kind in ("tasks", "encoders", "losses", "conditions"))


@cache
def installed(group: str) -> Mapping[str, list[EntryPoint]]:
    """Return the entry points of a group by name; several where packages claim the same name."""
    found = defaultdict(list)
    for entry in sorted(entry_points(group=group), key=lambda entry: (_describe(entry), entry.value)):
        found[entry.name].append(entry)
    return dict(found)


def resolve(group: str, built_in: Collection[str], name: str) -> EntryPoint | None:
    """Return the plugin of a name, or None where m2ray itself defines it.

    Args:
        group: One of the four groups above.
        built_in: The names that m2ray itself defines in the group.
        name: The name in a configuration.

    Raises:
        UserError: the name does not exist, or is defined more than once.
    """
    entries = installed(group).get(name, [])
    claims = [*(["m2ray itself"] if name in built_in else []), *map(_describe, entries)]
    if not claims:
        known = [*built_in, *installed(group)]
        choices = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise UserError(f"{name!r:.60} does not exist; use {choices}, or install the package that adds it")
    if len(claims) > 1:
        raise UserError(
            f"{name!r} is claimed by {' and by '.join(claims)}; uninstall one, or rename its entry point"
        )
    return None if name in built_in else entries[0]


def load(group: str, built_in: Mapping[str, Any], name: str) -> Any:
    """Return the object of a name: m2ray's own, or a plugin, which is imported now.

    Args:
        group: One of the four groups above.
        built_in: What m2ray itself defines in the group, by name.
        name: The name in a configuration.

    Raises:
        UserError: see `resolve`; or the plugin cannot be imported.
    """
    entry = resolve(group, built_in, name)
    if entry is None:
        return built_in[name]
    with blame(group, name):
        return entry.load()


@contextmanager
def blame(group: str, name: str) -> Iterator[None]:
    """Turn an error inside the block into a user error that names the plugin's package, entry point and line.

    Errors pass unchanged where `name` is not a plugin, and so do user errors and out-of-memory errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if name not in installed(group) or is_out_of_memory(error):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__}: {describe_error(error)} ({last.filename}, line {last.lineno})"
        raise plugin_error(group, name, fault) from error


def plugin_error(group: str, name: str, fault: str) -> UserError:
    """Return the user error for a fault of a plugin."""
    return UserError(f"plugin of {_describe(installed(group)[name][0])}: {fault}; fix or uninstall it")


def packages() -> dict[str, str]:
    """Return the packages that add plugins, with their versions."""
    names = [installed(group) for group in (TASKS, ENCODERS, LOSSES, CONDITIONS)]
    entries = [entry for by_name in names for claimed in by_name.values() for entry in claimed]
    return {entry.dist.name: entry.dist.version for entry in entries if entry.dist}


def _describe(entry: EntryPoint) -> str:
    package = f"package {entry.dist.name}" if entry.dist else "a package"
    return f"{package}, {entry.group}: {entry.name} = {entry.value}"
