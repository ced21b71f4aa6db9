"""Cases of `tests/fuzz/fuzz.py`: those written by hand, and generated ones."""

from __future__ import annotations

import json
import os
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from fuzz_by_hand import by_hand
from fuzz_input import (
    DIAGNOSE,
    EVALUATE,
    GATE,
    REPORT,
    RESUME,
    SPACE,
    SWEEP,
    TRAIN,
    TRIAL,
    Case,
    column,
    content,
    nothing,
    tensors,
    value_at,
)

from m2ray.config.gate_file import REFERENCE

POOL = 500  # cases; smaller numbers are sampled from them

FILES = {"space.yaml": SWEEP, "trial.yaml": TRAIN, "gate.yaml": (*GATE, "--gate", "gate.yaml")}
OPTIONS = {
    "sweep": ("--trials", "--seeds"),
    "train": ("--seed",),
    "evaluate": ("--seeds", "--conditions", "--split"),
    "gate": ("--seed", "--split", "--config"),
    "diagnose": ("--ceilings", "--seeds", "--split"),
}
VALID = {"sweep": SWEEP, "train": TRAIN, "evaluate": EVALUATE, "gate": GATE, "diagnose": DIAGNOSE}


def paths_in(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths_in(value, (*path, key))


def mutated(tree: Any, generator: random.Random) -> tuple[str, Any]:
    """Return a tree with a value of a wrong type or with an unknown key, and a name for the fault."""
    tree = json.loads(json.dumps(tree))
    # A point may have any name, and a criterion may compare with any condition.
    candidates = [path for path in paths_in(tree) if not {"above", "share_of", "about"} & set(path)]
    *path, last = generator.choice(candidates)
    node = tree
    for part in path:
        node = node[part]
    where = "/".join(map(str, [*path, last]))
    if isinstance(last, str) and path != ["points"] and generator.random() < 0.4:
        node[last + generator.choice(string.ascii_lowercase)] = node.pop(last)
        return f"misspelt {where}", tree
    node[last] = 7 if isinstance(node[last], (dict, list)) else {"a": [1]}
    return f"type of {where}", tree


def damaged(data: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Return bytes that are cut or contain a byte that is invalid in text, and a name for the fault."""
    at = generator.randrange(1, len(data) - 2)
    if generator.random() < 0.5:
        return f"cut at {at}", data[:at]
    byte = generator.choice([0x00, 0x07, 0x80, 0xFF])
    return f"byte {byte:#x} at {at}", data[:at] + bytes([byte]) + data[at:]


def generated_cases(generator: random.Random) -> Iterator[Case]:
    """Yield cases without end."""
    while True:
        yield from (
            one_tree(generator),
            one_text(generator),
            one_record(generator),
            one_weights(generator),
            one_rows(generator),
        )
        yield one_argument(generator)


def one_tree(generator: random.Random) -> Case:
    """Return a case of a YAML file with one fault in its tree."""
    name = generator.choice(list(FILES))
    trees = {"space.yaml": SPACE, "trial.yaml": TRIAL, "gate.yaml": yaml.safe_load(REFERENCE.read_text())}
    where, tree = mutated(trees[name], generator)
    return Case(f"{name}: {where}", FILES[name], content(name, yaml.safe_dump(tree)))


def one_text(generator: random.Random) -> Case:
    """Return a case of a YAML file with a fault in its text, in flow style, so that no part of it is complete."""
    name = generator.choice([*FILES, "results/begun/sweep.yaml", "results/done/sweep.yaml"])
    argv = FILES.get(name) or (RESUME if "begun" in name else REPORT)
    where, data = damaged(json.dumps(SPACE).encode(), generator)
    return Case(f"{name}: {where}", argv, content(name, data))


def one_record(generator: random.Random) -> Case:
    """Return a case of a checkpoint with a faulty record."""
    argv = generator.choice([EVALUATE, DIAGNOSE])
    if generator.random() < 0.5:
        at, byte = generator.randrange(1, 300), generator.random() < 0.5

        def change(data: bytes) -> bytes:
            return data[:at] + (b"\xff" + data[at:] if byte else b"")

        return Case(
            f"config.json: {'byte' if byte else 'cut'} at {at}",
            argv,
            lambda folder: (folder / "checkpoint/config.json").write_bytes(
                change((folder / "checkpoint/config.json").read_bytes())
            ),
        )
    key = generator.choice(
        ["codec", "codec/k", "codec/encoder", "receiver_digest", "digest", "config", "seed", "step"]
    )
    key = generator.choice([key, "trial", "trial/task", "trial/codec", "trial/splits/search", "trial/receiver"])
    value = generator.choice([None, 7.5, ["x"], {"x": "y"}, "nobody/../nobody"])
    return Case(f"config.json: {key} = {value!r}", argv, value_at("checkpoint/config.json", key, value))


def one_weights(generator: random.Random) -> Case:
    """Return a case of a checkpoint with other weights than were saved."""
    at, kind = generator.randrange(0, 4000), generator.choice(["cut", "bit", "dtype", "value"])

    def damage(folder: Path) -> None:
        file = folder / "checkpoint" / "codec.safetensors"
        data = file.read_bytes()
        if kind == "cut":
            file.write_bytes(data[:at])
        elif kind == "bit":
            file.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        else:
            tensors(
                lambda saved: {
                    name: tensor.to(torch.int8) if kind == "dtype" else torch.full_like(tensor, float("nan"))
                    for name, tensor in saved.items()
                }
            )(folder)

    return Case(f"codec.safetensors: {kind} at {at}", generator.choice([EVALUATE, DIAGNOSE]), damage)


def one_rows(generator: random.Random) -> Case:
    """Return a case of a rows file that is cut, or with a column that is missing, empty or of another type."""
    file, argv = generator.choice([("rows.parquet", GATE), ("results/done/rows.parquet", REPORT)])
    if generator.random() < 0.3:
        at = generator.randrange(0, 2000)
        return Case(f"{file}: cut at {at}", argv, lambda folder: os.truncate(folder / file, at))
    name = generator.choice(
        ["config", "seed", "k", "condition", "episode", "success", "partial", "split", "checkpoint"]
    )
    value = generator.choice([None, [["a"]] * 140, pd.Timestamp("2026-01-01"), [b"\xff"] * 140, [None] * 140])
    fault = "missing" if value is None else repr(value[0]) if isinstance(value, list) else repr(value)
    return Case(f"{file}: column {name} {fault}", argv, column(file, name, value))


def one_argument(generator: random.Random) -> Case:
    """Return a case of an option with an invalid value."""
    command = generator.choice(list(OPTIONS))
    option = generator.choice(OPTIONS[command])
    junk = ["", "-1:-5", "x" * 300, "1e9", "10:5", "∞", "a\nb", "\x1b[31m", "99999999999999999999", "../..", "[]"]
    return Case(f"{command} {option}", (*VALID[command], f"{option}={generator.choice(junk)}"), nothing)


def cases(count: int, seed: int) -> list[Case]:
    """Return `count` cases: all written by hand and generated ones, or a sample if `count` is below `POOL`."""
    generator = random.Random(seed)
    found, generated = list(by_hand()), generated_cases(generator)
    found += [next(generated) for _ in range(max(count, POOL) - len(found))]
    return found if count >= len(found) else generator.sample(found, count)
