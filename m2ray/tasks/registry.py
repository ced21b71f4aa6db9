"""Task families by name: m2ray's own and those of plugins."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from m2ray.tasks import arithmetic, constraints
from m2ray.tasks.level import Level
from m2ray.tasks.sentences.family import level_of as sentences_level
from m2ray.util import plugins
from m2ray.util.errors import UserError

# Families, by the part of a level's name before the first `-`. Each function returns the level of a name, or None.
FAMILIES: dict[str, Callable[[str], Level | None]] = {
    **dict.fromkeys(("easy", "medium", "hard", "lookup"), constraints.level_of),
    "arithmetic": arithmetic.level_of,
}
EXAMPLES = (*FAMILIES, "lookup-6x10", "arithmetic-6x10")  # listed in the error for an unknown name


@lru_cache
def level(name: str) -> Level:
    """Return the level of a name.

    Names are `easy`, `medium`, `hard`, `lookup`, `arithmetic`, `lookup-VxD`, `arithmetic-VxD` (V variables with D
    values each) and those of plugins.

    Raises:
        UserError: the level does not exist, or is out of bounds: V even and from 2 to 26, D from 2 (arithmetic: 3)
            to 100.
    """
    family, added, found = name.partition("-")[0], plugins.installed(plugins.TASKS), None
    if family in FAMILIES or family in added:
        make = plugins.load(plugins.TASKS, FAMILIES, family)
        with plugins.blame(plugins.TASKS, family):
            found = make(name)
        if not isinstance(found, Level | None):
            fault = f"returned {found!r:.60} for {name!r:.60}, which is not a Level"
            raise plugins.plugin_error(plugins.TASKS, family, fault)
    if found is None:
        known = ", ".join([*EXAMPLES, *added])
        if sentences_level(name) is not None:
            raise UserError(f"level {name!r:.60} is in free text; draw its episodes with m2ray.task_episodes")
        raise UserError(f"level {name!r:.60} does not exist; use one of {known}")
    return found
