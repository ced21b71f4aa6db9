"""What other installed packages add, by entry point: task families, encoders, objectives, conditions.

Names are known from the packages' metadata, so that a configuration is checked without importing anything; a plug
is imported where it is used, in Ray's workers too. What a plug does wrong is one line that names its package.
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

TASKS, ENCODERS, LOSSES, CONDITIONS = (f"m2ray.{kind}" for kind in ("tasks", "encoders", "losses", "conditions"))


@cache
def installed(group: str) -> Mapping[str, list[EntryPoint]]:
    """The entry points of a group, by name; more than one where packages claim the same."""
    found = defaultdict(list)
    for entry in sorted(entry_points(group=group), key=lambda entry: (_describe(entry), entry.value)):
        found[entry.name].append(entry)
    return dict(found)


def resolve(group: str, own: Collection[str], name: str) -> EntryPoint | None:
    """The plug of that name, or None where m2ray itself has it.

    Args:
        group: One of the four above.
        own: The names that m2ray itself has in it.
        name: What a configuration asks for.

    Raises:
        UserError: nobody has it, or more than one has.
    """
    entries = installed(group).get(name, [])
    claims = [*(["m2ray itself"] if name in own else []), *map(_describe, entries)]
    if not claims:
        known = [*own, *installed(group)]
        choices = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise UserError(f"{name!r:.60} does not exist; use {choices}, or install the package that adds it")
    if len(claims) > 1:
        raise UserError(
            f"{name!r} is claimed by {' and by '.join(claims)}; uninstall one, or rename its entry point"
        )
    return None if name in own else entries[0]


def load(group: str, table: Mapping[str, Any], name: str) -> Any:
    """What a name stands for: an entry of m2ray's own table, else a plug, imported now.

    Raises:
        UserError: as `check`; or the plug cannot be imported.
    """
    entry = resolve(group, table, name)
    if entry is None:
        return table[name]
    with blame(group, name):
        return entry.load()


@contextmanager
def blame(group: str, name: str) -> Iterator[None]:
    """Within it what breaks in a plug's code becomes a user error that names package, entry point and line; what
    breaks in m2ray's own goes through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if name not in installed(group) or is_out_of_memory(error):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {describe_error(error)} ({last.filename}, line {last.lineno})"
        raise plugin_error(group, name, said) from error


def plugin_error(group: str, name: str, said: str) -> UserError:
    """What is wrong with a plug, as a user error."""
    return UserError(f"plug {_describe(installed(group)[name][0])}: {said}; fix or uninstall it")


def packages() -> dict[str, str]:
    """The packages that add anything, with their versions."""
    entries = [
        e for group in (TASKS, ENCODERS, LOSSES, CONDITIONS) for es in installed(group).values() for e in es
    ]
    return {entry.dist.name: entry.dist.version for entry in entries if entry.dist}


def _describe(entry: EntryPoint) -> str:
    package = f"package {entry.dist.name}" if entry.dist else "a package"
    return f"{package}, {entry.group}: {entry.name} = {entry.value}"
