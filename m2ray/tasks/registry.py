# NEWDOC
"""Tasks: from seeds to episodes that two agents can only solve together, with their verifier.

Agent A holds one half of what must be known, agent B the other; neither alone pins the answer down. What the
halves say, and what answers them, is the business of a family of levels: `m2ray.constraints`, `m2ray.arithmetic`,
or a plug. What all families share is here.

Splits are disjoint twice over. By seed: every split has its own range. By content: every possible message (the
*set* of A's facts) belongs to exactly one part, by hash, and a seed of a split only yields messages of that part.
So a message judged on confirm was never seen in training, whichever seeds anybody picks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from m2ray.tasks import arithmetic, constraints
from m2ray.tasks.level import Level
from m2ray.util import plugins
from m2ray.util.errors import UserError

# By what a level's name has before its first `-`: what makes the level of a name, None where it has none such.
FAMILIES: dict[str, Callable[[str], Level | None]] = {
    **dict.fromkeys(("easy", "medium", "hard", "lookup"), constraints.level_of),
    "arithmetic": arithmetic.level_of,
}


EXAMPLES = (*FAMILIES, "lookup-6x10", "arithmetic-6x10")


@lru_cache
def level(name: str) -> Level:
    """A level by name: easy, medium, hard, lookup, `lookup-VxD` or `arithmetic-VxD` (V variables of D values), or
    one of a plug's family.

    Raises:
        UserError: no such level, or out of bounds (2 to 26 variables, even; 2, of arithmetic 3, to 100 values).
    """
    family, added, found = name.partition("-")[0], plugins.installed(plugins.TASKS), None
    if family in FAMILIES or family in added:
        make = plugins.load(plugins.TASKS, FAMILIES, family)
        with plugins.blame(plugins.TASKS, family):
            found = make(name)
        if not isinstance(found, Level | None):
            raise plugins.plugin_error(
                plugins.TASKS, family, f"made {found!r:.60} of {name!r:.60}, which is no Level"
            )
    if found is None:
        known = ", ".join([*EXAMPLES, *added])
        raise UserError(f"task: level {name!r:.60} does not exist; use one of {known}")
    return found
