"""Malformed input for `tests/fuzz/fuzz.py` that people and crashes make, and what somebody who means harm would."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fuzz_bench import (
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
    custom,
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

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
TEXTS: dict[str, bytes | str] = {
    "empty": "",
    "comment": "# nothing\n",
    "a list": "- 1\n- 2\n",
    "a word": "word\n",
    "open bracket": "name: [",
    "tab": "name: x\n\tpoints: {}\n",
    "key twice": "name: a\nname: b\n",
    "bomb": BOMB,
    "merge": "name: a\n<<: {name: b}\n",
    "python tag": "name: !!python/object/apply:os.system ['touch owned']\n",
    "zeros": b"\x00" * 4096,
    "latin-1": "name: \xe9\n".encode("latin-1"),
    "utf-16": "name: a\n".encode("utf-16"),
    "deep": "[" * 20_000,
    "deep keys": "a: " + "{a: " * 5_000,
    "two documents": "name: a\n---\nname: b\n",
    "no date": "name: 2020-13-45\n",
    "long number": "name: " + "9" * 20_000 + "\n",
    "long key": "k" * 10_000 + ": 1\n",
    "escape": '"\\e[31mred": 1\n',
    "key of a key": "{[1, 2]: 3}\n",
    "key of none": "null: 1\n",
    "elf": b"\x7fELF" + bytes(range(256)) * 16,
    "parquet": b"PAR1" + bytes(64) + b"PAR1",
}
READERS = {
    "space.yaml": SWEEP,
    "trial.yaml": TRAIN,
    "gate.yaml": (*GATE, "--gate", "gate.yaml"),
    "results/begun/sweep.yaml": RESUME,
}
SPACE_VALUES: list[tuple[str, Any]] = [
    ("name", "../x"),
    ("name", ".."),
    ("name", "a" * 65),
    ("name", None),
    ("points", {"../up": {}}),
    ("points", {"a/b": {}}),
    ("points", {".hidden": {}}),
    ("points", {"control": {"use": "nobody.yaml"}}),
    ("points", {"control": {"use": "."}}),
    ("points", {"control": {"use": "gate.yaml"}}),
    ("points", {"control": {"set": {"codec.k.x": 1}}}),
    ("points", {"control": {"set": {"": 1}}}),
    ("points", {"control": {"set": {"task.level": "easy"}}}),
    ("points/control/set", {"codec.kay": 4}),
    ("axes", {"codec.kk": {"choice": [1, 2]}}),
    ("axes", {"codec.k": {"choice": [4, 0]}}),
    ("axes", {"codec.k": {"choice": [4, 4]}}),
    ("axes", {"codec.k": {"choice": []}}),
    ("axes", {"codec.k": {"int": [5, 3]}}),
    ("axes", {"codec.k": {"uniform": [4, 8]}}),
    ("axes", {"codec.k": {}}),
    ("axes", {"codec.k": {"int": [4, 8], "choice": [4]}}),
    ("axes", {"training.lr": {"loguniform": [0, 1]}}),
    ("axes", {"training.lr": {"uniform": [0.1, float("inf")]}}),
    ("axes", {"training.lr": {"uniform": [float("nan"), 1]}}),
    ("axes", {"codec.width": {"choice": [32], "when": {"codec.encoder": ["memory"]}}}),
    ("axes", {"codec.width": {"choice": [32], "when": {"codec.bottleneck": "vq"}}}),
    ("axes", {"": {"choice": [1, 2]}}),
    ("axes", {"codec": {"choice": [1, 2]}}),
    ("axes", {"receiver": {"choice": ["mini", "other"]}}),
    ("trial/codec/k", 0),
    ("trial/codec/k", 4000),
    ("trial/codec/k", 2**70),
    ("trial/codec/k", True),
    ("trial/codec/width", 30),
    ("trial/codec/encoder", "mlp"),
    ("trial/codec/bottleneck", "vq"),
    ("trial/losses", {}),
    ("trial/losses", {"ce": {"weight": 0}}),
    ("trial/losses/contrast/margin", -1),
    ("trial/task", {"level": "esay"}),
    ("trial/task", {"level": "lookup-999x999"}),
    ("trial/task", {"file": "nobody.jsonl"}),
    ("trial/task", {"file": "checkpoint"}),
    ("trial/task", {"messages": "nobody"}),
    ("trial/task", {"messages": "mini"}),
    ("trial/splits/train", "1:2000"),
    ("trial/splits/train", "5:5"),
    ("trial/splits/confirm", "2000:2001"),
    ("trial/splits/confirm", "1010:1030"),
    ("trial/splits/confirm", "2000:99999999999999999999"),
    ("trial/receiver", "./nobody"),
    ("trial/receiver", ""),
    ("trial/receiver", "../../etc"),
    ("trial/receiver", "checkpoint"),
    ("trial/receiver", "a" * 5000),
    ("trial/training/batch_size", 10**12),
    ("trial/training/lr", "fast"),
    ("trial/training/lr", 0),
    ("trial/workers", 3),
    ("trial/trackers", ["tensorbord"]),
    ("trial/evaluation/conditions", ["normal", "P0"]),
    ("trial/evaluation/conditions", "normal"),
    ("trial/evaluation/text_bytes", [0]),
    ("search/trials", -1),
    ("search/seeds", []),
    ("search/seeds", [0, 0]),
    ("search/seeds", [2**32]),
    ("search/pruner", "median"),
    ("judge/confirm", 3),
    ("judge/gate", "nobody.yaml"),
    ("judge/gate", "trial.yaml"),
    ("judge/gate", "/proc/self/mem"),
    ("resources/evaluators", 0),
    ("resources/cpus_per_worker", float("nan")),
]
GATE_VALUES: list[tuple[str, Any]] = [
    ("criteria", []),
    ("criteria", [{"gate": "gate1", "name": "x", "kind": "below", "condition": "normal"}]),
    ("criteria", [{"gate": "gate1", "name": "x", "kind": "below", "condition": "nobody", "against": "P0"}]),
    ("criteria", [{"gate": "gate9", "name": "x", "kind": "below", "condition": "normal", "against": "P0"}]),
    ("alpha", 0.7),
    ("alpha", "small"),
]
RECORD_VALUES: list[tuple[str, Any]] = [
    ("codec/k", 10**9),
    ("codec/width", 64),
    ("codec/encoder", "memory"),
    ("receiver_digest", "0" * 16),
    ("digest", "0" * 16),
    ("trial/receiver", "./moved"),
    ("trial/task/level", "hard"),
]
ROWS = "rows.parquet"
ARGUMENTS: list[tuple[str, ...]] = [
    ("sweep", "nobody.yaml"),
    ("sweep", "results"),
    ("sweep", "checkpoint/codec.safetensors"),
    ("sweep", "rows.parquet"),
    ("sweep", "gate.yaml"),
    ("sweep", "trial.yaml"),
    *(
        (*SWEEP, *rest)
        for rest in (
            ("--trials", "-1"),
            ("--trials", "many"),
            ("--trials", "1.5"),
            ("--seeds", "0,x"),
            ("--seeds", "1,1"),
            ("--seeds", "-1"),
            ("--name", "a/b"),
            ("--name", ".."),
            ("--name", "x" * 300),
            ("--name", "begun"),
            ("--results", "space.yaml"),
            ("--results", "x" * 300),
            ("--results", "/proc/nowhere"),
            ("--receiver", "./nobody"),
            ("--receiver", "nobody/nowhere"),
            ("--receiver", "Qwen/../../x"),
            ("--resume",),
            ("--address", "127.0.0.1:1"),
            ("--address", "head"),
            ("--address", "127.0.0.1:99999999"),
            ("--tirals", "3"),
            ("extra",),
        )
    ),
    ("train",),
    ("train", "nobody.yaml"),
    ("train", "space.yaml"),
    ("train", "checkpoint/config.json"),
    (*TRAIN, "--seed", "-1"),
    (*TRAIN, "--seed", str(2**32)),
    (*TRAIN, "--out", "space.yaml"),
    (*TRAIN, "--out", "space.yaml/x"),
    (*TRAIN, "--out", "x" * 300),
    (*TRAIN, "--out", "/proc/nowhere"),
    ("evaluate", "nobody"),
    ("evaluate", "space.yaml"),
    ("evaluate", "results"),
    (*EVALUATE, "--conditions", "nobody"),
    (*EVALUATE, "--conditions", "text-0"),
    (*EVALUATE, "--conditions", "text-" + "9" * 5000),
    (*EVALUATE, "--conditions", "scale_gate=nan"),
    (*EVALUATE, "--conditions", "scale_gate=x"),
    (*EVALUATE, "--seeds", "5:1"),
    (*EVALUATE, "--seeds", "0:1"),
    (*EVALUATE, "--seeds", "0:5", "--split", "search"),
    (*EVALUATE, "--out", "x.csv"),
    (*EVALUATE, "--out", "space.yaml/x.parquet"),
    (*EVALUATE, "--receiver", "./nobody"),
    ("diagnose", "nobody"),
    (*DIAGNOSE, "--ceilings", "-1"),
    (*DIAGNOSE, "--seeds", "1:2"),
    (*DIAGNOSE, "--split", "confirm"),
    (*DIAGNOSE, "--out", "space.yaml"),
    (*DIAGNOSE, "--receiver", "./nobody"),
    ("gate",),
    ("gate", "nobody.parquet"),
    ("gate", "space.yaml"),
    ("gate", "checkpoint"),
    (*GATE, "--counts", "normal=1/2"),
    (*GATE, "--config", "nobody"),
    (*GATE, "--split", "nowhere"),
    (*GATE, "--k", "4"),
    (*GATE, "--gate", "nobody.yaml"),
    ("gate", "--counts", "normal=11/50"),
    ("gate", "--counts", "normal=51/50,P0=1/50"),
    ("gate", "--counts", "normal=1/0,P0=1/50"),
    ("gate", "--counts", "normal=-1/50"),
    ("gate", "--counts", "normal=1/50,normal=2/50"),
    ("gate", "--counts", "nobody=1/50"),
    ("gate", "--counts", ""),
    ("gate", "--counts", "normal=1/50,null=1/50,random=1/50,shuffle=1/50,P0=1/50", "--k", "0"),
    ("report",),
    ("report", "nobody"),
    ("report", "results"),
    ("report", "space.yaml"),
    (*REPORT, "--gate", "nobody.yaml"),
    (*REPORT, "--gate", "space.yaml"),
]
LINE = {"receiver_context": "x1 = 0", "sender_message": "x2 = 1", "receiver_output": '{"x1": 0}'}


def by_hand() -> Iterator[Case]:
    """What people and crashes make, and what somebody who means harm would."""
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
        plant = value_at("checkpoint/config.json", key, value)
        yield Case(f"config.json: {key} = {value}", EVALUATE, plant)
    yield from weights_by_hand()
    yield from rows_by_hand()
    yield from folders_by_hand()


def weights_by_hand() -> Iterator[Case]:
    """Checkpoints that are no checkpoints."""
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
    """Rows that cannot be judged."""
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
        plant = value_at("results/done/sweep.yaml", key, value)
        if key != "space":  # a report needs none
            yield Case(f"sweep.yaml: {key} = {value}", REPORT, plant)
        yield Case(f"sweep.yaml: {key} = {value}", RESUME, value_at("results/begun/sweep.yaml", key, value))


def folders_by_hand() -> Iterator[Case]:
    """Receivers, episodes and results folders that are not what they seem."""
    argv = (*SWEEP, "--receiver", "./receiver")
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "m2ray.json")
    for name in files:
        yield Case(f"receiver: {name} cut", argv, receiver(lambda at, name=name: os.truncate(at / name, 40)))  # type: ignore[misc]
        if name not in ("m2ray.json", "tokenizer_config.json"):
            yield Case(f"receiver: no {name}", argv, receiver(lambda at, name=name: (at / name).unlink()))  # type: ignore[misc]
    yield Case("receiver: pickled weights", argv, receiver(pickled))
    yield Case("receiver: code for an unknown type", argv, receiver(custom(known=False)))
    yield Case("receiver: code for a known type", argv, receiver(custom(known=True)))
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
        plant = value_at("trial.yaml", "task", {"file": "episodes.jsonl"})
        yield Case(
            f"episodes: {what}",
            TRAIN,
            lambda folder, plant=plant, line=line: (plant(folder), (folder / "episodes.jsonl").write_text(line)),  # type: ignore[misc]
        )
