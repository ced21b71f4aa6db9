"""Cases of `tests/fuzz/fuzz.py` that are written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzz_input import (
    DIAGNOSE,
    EVALUATE,
    GATE,
    REPORT,
    RESUME,
    SWEEP,
    TRAIN,
    Case,
    column,
    content,
    custom_code,
    damaged_part,
    header,
    link,
    nothing,
    pickled,
    receiver,
    sparse,
    tensors,
    value_at,
)
from fuzz_values import ARGUMENTS, GATE_VALUES, LINE, READERS, RECORD_VALUES, SPACE_VALUES, TEXTS

ROWS = "rows.parquet"


def by_hand() -> Iterator[Case]:
    """Yield inputs as people, crashes and attackers make them."""
    for argv in ARGUMENTS:
        yield Case("arguments", argv, nothing)
    for name, argv in READERS.items():
        for what, text in TEXTS.items():
            if name != "trial.yaml" or what not in ("empty", "comment"):
                yield Case(f"{name}: {what}", argv, content(name, text))
        yield Case(f"{name}: a gigabyte", argv, sparse(name))
        yield Case(f"{name}: unreadable", argv, link(name, "/proc/self/mem"))
        yield Case(f"{name}: link to nothing", argv, link(name, "nothing"))
        yield Case(f"{name}: link to itself", argv, link(name, Path(name).name))
        yield Case(f"{name}: a device", argv, link(name, "/dev/zero"))
    for key, value in SPACE_VALUES:
        yield Case(f"space.yaml: {key} = {str(value)[:60]}", SWEEP, value_at("space.yaml", key, value))
    for key, value in GATE_VALUES:
        yield Case(
            f"gate.yaml: {key} = {str(value)[:60]}", READERS["gate.yaml"], value_at("gate.yaml", key, value)
        )
    for key, value in RECORD_VALUES:
        damage = value_at("checkpoint/config.json", key, value)
        yield Case(f"config.json: {key} = {value}", EVALUATE, damage)
    yield from weights_by_hand()
    yield from rows_by_hand()
    yield from folders_by_hand()


def weights_by_hand() -> Iterator[Case]:
    """Yield checkpoints that cannot be loaded."""
    huge = {"gate": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    for argv in (EVALUATE, DIAGNOSE):
        yield Case("codec.safetensors: empty", argv, header(b"", 0))
        yield Case("codec.safetensors: endless header", argv, header(b"{}", 2**63))
        yield Case("codec.safetensors: header not JSON", argv, header(b"{" * 64))
        yield Case("codec.safetensors: tensor beyond the end", argv, header(huge))
        yield Case("codec.safetensors: no tensors", argv, header({"__metadata__": {"m2ray": "{}"}}))
        yield Case("codec.safetensors: deep", argv, header(b'{"a":' * 50_000))
        yield Case(
            "codec.safetensors: a pickle", argv, content("checkpoint/codec.safetensors", b"\x80\x04cos\nsystem\n")
        )
        yield Case("codec.safetensors: a folder", argv, link("checkpoint/codec.safetensors", "."))
        yield Case("codec.safetensors: unreadable", argv, link("checkpoint/codec.safetensors", "/proc/self/mem"))
        yield Case("codec.safetensors: integers", argv, tensors(lambda s: {n: t.int() for n, t in s.items()}))
        yield Case("codec.safetensors: one left out", argv, tensors(lambda s: dict(list(s.items())[1:])))
        yield Case("codec.safetensors: one more", argv, tensors(lambda s: {**s, "evil": torch.ones(1)}))
        yield Case("config.json: unreadable", argv, link("checkpoint/config.json", "/proc/self/mem"))
        for what in ("empty", "a list", "zeros", "deep", "utf-16"):
            yield Case(f"config.json: {what}", argv, content("checkpoint/config.json", TEXTS[what]))


def rows_by_hand() -> Iterator[Case]:
    """Yield rows that cannot be judged."""
    for file, argv in ((ROWS, GATE), (f"results/done/{ROWS}", REPORT)):
        for what in ("empty", "zeros", "elf", "parquet", "comment"):
            yield Case(f"{file}: {what}", argv, content(file, TEXTS[what]))
        yield Case(f"{file}: unreadable", argv, link(file, "/proc/self/mem"))
        yield Case(f"{file}: no condition normal", argv, column(file, "condition", "P0"))
        yield Case(f"{file}: k = 0", argv, column(file, "k", 0))
    for name in ("../../up", "/etc/x", "a\nb", "x" * 300):
        yield Case(f"rows: config {name[:20]!r}", REPORT, column(f"results/done/{ROWS}", "config", name))
    yield Case("rows: a damaged part", REPORT, damaged_part)
    for key, value in (("receiver", 5), ("gate", {"name": 5}), ("gate", []), ("space", 5)):
        damage = value_at("results/done/sweep.yaml", key, value)
        if key != "space":  # a report does not need it
            yield Case(f"sweep.yaml: {key} = {value}", REPORT, damage)
        yield Case(f"sweep.yaml: {key} = {value}", RESUME, value_at("results/begun/sweep.yaml", key, value))


def folders_by_hand() -> Iterator[Case]:
    """Yield receivers, episodes and results folders that are damaged or unsafe."""
    argv = (*SWEEP, "--receiver", "./receiver")
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "m2ray.json")
    for name in files:
        yield Case(f"receiver: {name} cut", argv, receiver(lambda at, name=name: os.truncate(at / name, 40)))  # type: ignore[misc]
        if name not in ("m2ray.json", "tokenizer_config.json"):
            yield Case(f"receiver: no {name}", argv, receiver(lambda at, name=name: (at / name).unlink()))  # type: ignore[misc]
    yield Case("receiver: pickled weights", argv, receiver(pickled))
    yield Case("receiver: code for an unknown type", argv, receiver(custom_code(known=False)))
    yield Case("receiver: code for a known type", argv, receiver(custom_code(known=True)))
    yield Case("receiver: empty folder", argv, lambda folder: (folder / "receiver").mkdir())
    yield Case("receiver: style", argv, receiver(lambda at: (at / "m2ray.json").write_text('{"style": "none"}')))
    yield Case("results: a link elsewhere", (*SWEEP, "--name", "link"), link("results/link", "/tmp"))
    for what, line in (
        ("not JSON", "{"),
        ("no object", "[]"),
        ("no such variable", json.dumps({**LINE, "receiver_context": "x9 = 1"})),
        ("wrong answer", json.dumps(LINE)),
        ("key too many", json.dumps({**LINE, "evil": 1})),
        ("nothing", ""),
        ("deep", "[" * 50_000),
    ):
        damage = value_at("trial.yaml", "task", {"file": "episodes.jsonl"})
        yield Case(
            f"episodes: {what}",
            TRAIN,
            lambda folder, damage=damage, line=line: (
                damage(folder),
                (folder / "episodes.jsonl").write_text(line),
            ),  # type: ignore[misc]
        )
