"""The malformed inputs of `tests/fuzz/fuzz.py`: those made by hand, and generated ones."""

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
from fuzz_bench import (
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
from fuzz_by_hand import by_hand

from m2ray.config.gate_file import REFERENCE

POOL = 500  # cases, a smaller number of which is drawn from

CUTS = {"space.yaml": SWEEP, "trial.yaml": TRAIN, "gate.yaml": (*GATE, "--gate", "gate.yaml")}
NUMBERS = {
    "sweep": ("--trials", "--seeds"),
    "train": ("--seed",),
    "evaluate": ("--seeds", "--conditions", "--split"),
    "gate": ("--seed", "--split", "--config"),
    "diagnose": ("--ceilings", "--seeds", "--split"),
}
SOUND = {"sweep": SWEEP, "train": TRAIN, "evaluate": EVALUATE, "gate": GATE, "diagnose": DIAGNOSE}


def spots(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from spots(value, (*path, key))


def mutated(tree: Any, dice: random.Random) -> tuple[str, Any]:
    """A tree with a value of a type that no key takes, or with a key that does not exist; and where."""
    tree = json.loads(json.dumps(tree))
    # A point may have any name, and a criterion may compare with any condition.
    places = [path for path in spots(tree) if not {"above", "share_of", "about"} & set(path)]
    *path, last = dice.choice(places)
    node = tree
    for part in path:
        node = node[part]
    where = "/".join(map(str, [*path, last]))
    if isinstance(last, str) and path != ["points"] and dice.random() < 0.4:
        node[last + dice.choice(string.ascii_lowercase)] = node.pop(last)
        return f"misspelt {where}", tree
    node[last] = 7 if isinstance(node[last], (dict, list)) else {"a": [1]}
    return f"type of {where}", tree


def spoilt(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """Bytes that are cut, or that hold one which no text may."""
    at = dice.randrange(1, len(data) - 2)
    if dice.random() < 0.5:
        return f"cut at {at}", data[:at]
    byte = dice.choice([0x00, 0x07, 0x80, 0xFF])
    return f"byte {byte:#x} at {at}", data[:at] + bytes([byte]) + data[at:]


def generated(dice: random.Random) -> Iterator[Case]:
    """Cases without end."""
    while True:
        yield from (one_tree(dice), one_text(dice), one_record(dice), one_weights(dice), one_rows(dice))
        yield one_argument(dice)


def one_tree(dice: random.Random) -> Case:
    """A YAML file with one fault in its tree."""
    name = dice.choice(list(CUTS))
    trees = {"space.yaml": SPACE, "trial.yaml": TRIAL, "gate.yaml": yaml.safe_load(REFERENCE.read_text())}
    where, tree = mutated(trees[name], dice)
    return Case(f"{name}: {where}", CUTS[name], content(name, yaml.safe_dump(tree)))


def one_text(dice: random.Random) -> Case:
    """A YAML file with a fault in its text; in flow style, so that no part of it is whole."""
    name = dice.choice([*CUTS, "results/begun/sweep.yaml", "results/done/sweep.yaml"])
    argv = CUTS.get(name) or (RESUME if "begun" in name else REPORT)
    where, data = spoilt(json.dumps(SPACE).encode(), dice)
    return Case(f"{name}: {where}", argv, content(name, data))


def one_record(dice: random.Random) -> Case:
    """A checkpoint whose record is not what it should be."""
    argv = dice.choice([EVALUATE, DIAGNOSE])
    if dice.random() < 0.5:
        at, byte = dice.randrange(1, 300), dice.random() < 0.5

        def change(data: bytes) -> bytes:
            return data[:at] + (b"\xff" + data[at:] if byte else b"")

        return Case(
            f"config.json: {'byte' if byte else 'cut'} at {at}",
            argv,
            lambda folder: (folder / "checkpoint/config.json").write_bytes(
                change((folder / "checkpoint/config.json").read_bytes())
            ),
        )
    key = dice.choice(["codec", "codec/k", "codec/encoder", "receiver_digest", "digest", "config", "seed", "step"])
    key = dice.choice([key, "trial", "trial/task", "trial/codec", "trial/splits/search", "trial/receiver"])
    value = dice.choice([None, 7.5, ["x"], {"x": "y"}, "nobody/../nobody"])
    return Case(f"config.json: {key} = {value!r}", argv, value_at("checkpoint/config.json", key, value))


def one_weights(dice: random.Random) -> Case:
    """A checkpoint whose weights are not what was saved."""
    at, kind = dice.randrange(0, 4000), dice.choice(["cut", "bit", "dtype", "value"])

    def plant(folder: Path) -> None:
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

    return Case(f"codec.safetensors: {kind} at {at}", dice.choice([EVALUATE, DIAGNOSE]), plant)


def one_rows(dice: random.Random) -> Case:
    """A rows file that is cut, or has a column that is missing, empty or of another type."""
    file, argv = dice.choice([("rows.parquet", GATE), ("results/done/rows.parquet", REPORT)])
    if dice.random() < 0.3:
        at = dice.randrange(0, 2000)
        return Case(f"{file}: cut at {at}", argv, lambda folder: os.truncate(folder / file, at))
    name = dice.choice(
        ["config", "seed", "k", "condition", "episode", "success", "partial", "split", "checkpoint"]
    )
    value = dice.choice([None, [["a"]] * 140, pd.Timestamp("2026-01-01"), [b"\xff"] * 140, [None] * 140])
    said = "missing" if value is None else repr(value[0]) if isinstance(value, list) else repr(value)
    return Case(f"{file}: column {name} {said}", argv, column(file, name, value))


def one_argument(dice: random.Random) -> Case:
    """An option with a value that it does not take."""
    command = dice.choice(list(NUMBERS))
    option = dice.choice(NUMBERS[command])
    junk = ["", "-1:-5", "x" * 300, "1e9", "10:5", "∞", "a\nb", "\x1b[31m", "99999999999999999999", "../..", "[]"]
    return Case(f"{command} {option}", (*SOUND[command], f"{option}={dice.choice(junk)}"), nothing)


def cases(count: int, seed: int) -> list[Case]:
    """So many cases: all by hand and generated ones, or a draw of them where fewer are asked for."""
    dice = random.Random(seed)
    made, known = list(by_hand()), generated(dice)
    made += [next(known) for _ in range(max(count, POOL) - len(made))]
    return made if count >= len(made) else dice.sample(made, count)
