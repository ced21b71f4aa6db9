"""The result of a receiver's check, kept in the user's cache under all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from m2ray.receiver.conformance.check import check, extend
from m2ray.receiver.conformance.measurement import Conformance
from m2ray.receiver.model.causal_model import Ways
from m2ray.receiver.receiver import Receiver
from m2ray.util.code_digest import code_digest
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root, keep_json


def tested(receiver: Receiver) -> Conformance:
    """Return a receiver's check: the kept one, or a new one that is kept."""
    file = kept_file(receiver)
    result = _read(file)
    if result is None:
        result = check(receiver)
        keep_json(file, asdict(result))
    return result


def use_tested_ways(receiver: Receiver) -> Receiver:
    """Return the receiver, run in the ways that give its model's own numbers.

    Raises:
        UserError: no way does.
    """
    result = tested(receiver)
    if result.refusal:
        raise UserError(result.refusal)

    def test_longer(columns: int) -> Ways:
        nonlocal result
        file = kept_file(receiver)
        result = _read(file) or result  # another process may have tested them
        target = max(result.ways.tested, 1)
        while target < columns:
            target *= 2
        if target > result.ways.tested:
            result = extend(receiver, result, target)
            keep_json(file, asdict(result))
        return result.ways

    receiver.set_model(receiver.model, result.ways)
    receiver.causal.test_ways = test_longer
    return receiver


def versions() -> dict[str, str]:
    """Return the versions that a check depends on; of this package, the digest of its code."""
    return {"m2ray": code_digest(), "torch": torch.__version__, "transformers": transformers.__version__}


def kept_file(receiver: Receiver, about: Sequence[Any] = ()) -> Path:
    """Return the file of a receiver's check, or of another test of it, named by what it is about."""
    key: list[Any] = [receiver.digest, str(receiver.dtype), receiver.device.type, versions(), *about]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_root() / "receiver-checks" / f"{receiver.digest}-{digest}.json"


def _read(file: Path) -> Conformance | None:
    """Return a kept check; None where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Conformance.from_json(json.loads(file.read_bytes()))
    return None
