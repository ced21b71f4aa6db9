"""Take the folders of this machine out of what is published: a codec's record, and the command of its sweep."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

# Keys of a configuration that may name a folder or file. Digests in the record tell which receiver and task file.
PATH_KEYS = ("receiver", "task.file", "task.messages", "training.start")
_LOCAL = ("/", "~", "./", "../")
_INSIDE = re.compile(r"""(?<=[\s\[{(,"'])(?:~|\.{1,2})?/[^\s,\]})"']+""")  # in a value such as {file: /a/b}


def without_folders(word: str) -> str:
    """Return a local path without its folders, also in `KEY=PATH` or an object; other words as they are."""
    option, equals, path = word.rpartition("=")
    if path.startswith(_LOCAL):
        return f"{option}{equals}{_last(path)}"
    return _INSIDE.sub(lambda match: _last(match[0]), word)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def command_without_folders(command: str) -> str:
    """Return a command line whose local paths have no folders."""
    return shlex.join(map(without_folders, shlex.split(command)))


def record_without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a codec's record whose local paths have no folders: of the receiver, and in its configuration."""
    found = dict(record)
    if "receiver" in found:
        found["receiver"] = without_folders(str(found["receiver"]))
    if isinstance(found.get("params"), dict):  # settings by dotted key
        params = found["params"]
        found["params"] = {key: _shortened(value) if key in PATH_KEYS else value for key, value in params.items()}
    if isinstance(found.get("trial"), dict):
        found["trial"] = _tree_without_folders(found["trial"])
    return found


def _tree_without_folders(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found[key] = _tree_without_folders(value, f"{prefix}{key}.")
        else:
            found[key] = _shortened(value) if prefix + key in PATH_KEYS else value
    return found


def _shortened(value: Any) -> Any:
    return without_folders(value) if isinstance(value, str) else value
