"""Search spaces that are part of the package: copies of search_spaces/, for an installed wheel.

`make spaces` copies them, and a test compares the copies with the originals.
"""

from __future__ import annotations

from pathlib import Path

from m2ray.util.strict_yaml import read_yaml

FOLDER = Path(__file__).parent / "spaces"
DEFAULT = "quickstart"


def find_space(name: str) -> Path:
    """Return the file of a space, given as a path or as the name of a space in the package."""
    packaged = FOLDER / f"{name}.yaml"
    return packaged if not Path(name).exists() and packaged.is_file() else Path(name)


def packaged_spaces() -> dict[str, str]:
    """Return the names of the spaces in the package, each with its `about` line."""
    return {file.stem: str(read_yaml(file).get("about", "")) for file in sorted(FOLDER.glob("*.yaml"))}
