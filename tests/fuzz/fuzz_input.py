"""Valid input for every command in one folder, and ways to damage it, for `tests/fuzz/fuzz.py`."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from m2ray.codec.codec import Codec
from m2ray.config.gate_file import REFERENCE, load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import write_sweep_record
from m2ray.config.trial import CodecConfig, TrialConfig
from m2ray.engine.record import describe_sweep
from m2ray.evaluation.rows import RowStore, write_rows
from m2ray.receiver.loading import EMBEDDED, load_receiver
from m2ray.util.strict_yaml import load_yaml

Damage = Callable[[Path], object]  # changes a folder of valid input

TRIAL: dict[str, Any] = {
    "splits": {"train": "100000:101000", "search": "1000:1020", "select": "4000:4020", "confirm": "2000:2020"},
    "codec": {"encoder": "segments", "k": 8, "width": 32, "layers": 1},
    "training": {"epochs": 1, "epoch_samples": 32, "batch_size": 16, "lr": 1e-3, "warmup": 0},
    "losses": {"ce": {"weight": 1.0}, "contrast": {"weight": 0.5, "margin": 1.0}},
    "evaluation": {
        "conditions": ["normal", "null", "random", "shuffle", "P0", "P1", "identity"],
        "text_bytes": [16],
        "scale_gates": [1.0],
    },
}
SPACE: dict[str, Any] = {
    "name": "small",
    "trial": TRIAL,
    "points": {"control": {"set": {"codec.encoder": "last_token", "codec.place": "before"}}},
    "axes": {"codec.k": {"choice": [8, 12]}, "training.lr": {"loguniform": [1e-4, 1e-3]}},
    "search": {"trials": 2, "seeds": [0], "pruner": "none"},
    "judge": {"select": 1, "confirm": 1},
    "resources": {"evaluators": 1, "retries": 1},
}
# Command lines, with paths relative to the folder.
SWEEP, RESUME = ("sweep", "space.yaml"), ("sweep", "space.yaml", "--name", "begun", "--resume")
TRAIN, GATE, REPORT = ("train", "trial.yaml"), ("gate", "rows.parquet"), ("report", "results/done")
EVALUATE, DIAGNOSE = ("evaluate", "checkpoint"), ("diagnose", "checkpoint")


class Case(NamedTuple):
    """A command line, and the damage to its input."""

    name: str
    argv: tuple[str, ...]
    damage: Damage


def make_input(folder: Path) -> None:
    """Write valid input for every command; the codec is untrained, the rows are random."""
    folder.mkdir()
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "trial.yaml").write_text(yaml.safe_dump(TRIAL))
    (folder / "gate.yaml").write_text(REFERENCE.read_text())
    receiver, trial = load_receiver("mini"), load_yaml(TrialConfig, folder / "trial.yaml")
    torch.manual_seed(0)
    record = {"config": "a", "params": {}, "seed": 0, "step": 2, "trial": trial.model_dump(), "receiver": "mini"}
    codec = Codec(CodecConfig(**TRIAL["codec"]), receiver)
    codec.save(folder / "checkpoint", {**record, "metrics": {"score": 0.0}})
    generator, rows = np.random.default_rng(0), []
    for name in TRIAL["evaluation"]["conditions"]:
        own = name not in ("P0", "P1", "identity")
        for i in range(20):
            solved = bool(generator.random() < 0.5)
            rows.append(
                {"config": "a" if own else "", "seed": 0 if own else -1, "checkpoint": codec.digest if own else ""}
                | {"step": 2 if own else 0, "receiver": receiver.digest, "task": "easy", "split": "confirm"}
                | {"k": 8 if own else 0, "place": "message" if own else "", "decoding": "greedy"}
                | {"condition": name, "episode": 2000 + i, "partner": -1, "success": solved, "parsed": True}
                | {"partial": float(solved), "nll": float(generator.random()), "answer": "0 0 0 0"}
                | {"params": "{}" if own else ""}
            )
    write_rows(folder / "rows.parquet", pd.DataFrame(rows))
    write_rows(folder / "results" / "done" / "rows.parquet", pd.DataFrame(rows))
    plan = load_plan(folder / "space.yaml")
    for name in ("begun", "done"):
        write_sweep_record(folder / "results" / name, describe_sweep(plan, load_plan_gate(plan), ["space.yaml"]))


# --- damage ---------------------------------------------------------------------------------------------------


def content(name: str, data: bytes | str) -> Damage:
    """Replace a file by this content."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def value_at(name: str, key: str, value: Any) -> Damage:
    """Set a key of a YAML or JSON file; the parts of the key are separated by /."""

    def damage(folder: Path) -> None:
        read: Any = json.loads if name.endswith(".json") else yaml.safe_load
        tree = read((folder / name).read_text())
        *path, last = key.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
        (folder / name).write_text(json.dumps(tree) if name.endswith(".json") else yaml.safe_dump(tree))

    return damage


def nothing(_: Path) -> None:
    """Leave the input valid: the fault is in the arguments."""


def link(name: str, target: str) -> Damage:
    """Replace a file by a symbolic link."""

    def damage(folder: Path) -> None:
        if (folder / name).is_file():
            (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def sparse(name: str) -> Damage:
    """Extend a file to a gigabyte that takes no disk space."""
    return lambda folder: os.truncate(folder / name, 1_000_000_000)


def header(data: dict[str, Any] | bytes, length: int | None = None) -> Damage:
    """Replace the checkpoint's weights by a safetensors header, with a length that may be wrong."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return content("checkpoint/codec.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw)


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Change the checkpoint's weights in a valid file."""

    def damage(folder: Path) -> None:
        file = folder / "checkpoint" / "codec.safetensors"
        save_file(change(load_file(file)), file, metadata={"m2ray": "{}"})

    return damage


def column(file: str, name: str, values: Any) -> Damage:
    """Replace a column of a rows file, or leave it out if `values` is None."""

    def damage(folder: Path) -> None:
        table = pd.read_parquet(folder / file)
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
        pq.write_table(pa.Table.from_pandas(table), folder / file)

    return damage


def receiver(change: Callable[[Path], object]) -> Damage:
    """Copy the embedded receiver to the folder `receiver` and change it."""

    def damage(folder: Path) -> None:
        shutil.copytree(EMBEDDED / "mini", folder / "receiver")
        change(folder / "receiver")

    return damage


def pickled(folder: Path) -> None:
    """Replace the safetensors weights by a pickle."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def custom_code(known: bool) -> Callable[[Path], None]:
    """Add code to a receiver, for a model type that transformers knows or for one that it does not."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        config["model_type"] = config["model_type"] if known else "evil"
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("open('owned', 'w')\nclass Config: ...\nclass Model: ...\n")

    return change


def damaged_part(folder: Path) -> None:
    """Change a byte in a part of the row store."""
    store = RowStore(folder / "results" / "done")
    store.append(store.read())
    (part,) = store.parts.glob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
