"""Search spaces that are part of the package: copies of search_spaces/, for an installed wheel.

`make spaces` copies them, and a test compares the copies with the originals.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import read_yaml

FOLDER = Path(__file__).parent / "spaces"
DEFAULT = "quickstart"


def find_space(name: str) -> Path:
    """Return the file of a space, given as a path or as the name of a space in the package.

    Raises:
        UserError: there is neither such a file nor such a space.
    """
    packaged = FOLDER / f"{name}.yaml"
    if Path(name).exists():
        return Path(name)
    if packaged.is_file():
        return packaged
    close = difflib.get_close_matches(Path(name).stem, [file.stem for file in FOLDER.glob("*.yaml")], n=1)
    advice = f"did you mean {close[0]}?" if close else "check the path."
    listing = "`python -m m2ray.sweep --list` prints all of them"
    raise UserError(f"{name}: no such file, and not a packaged space; {advice} {listing}")


def packaged_spaces() -> dict[str, str]:
    """Return the names of the spaces in the package, each with its `about` line."""
    return {file.stem: str(read_yaml(file).get("about", "")) for file in sorted(FOLDER.glob("*.yaml"))}
