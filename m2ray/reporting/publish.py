"""Publishing a trained codec: its last checkpoint as a self-contained folder, with settings and a model card."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pandas as pd
import yaml

from m2ray.codec.checkpoints import last_checkpoints, read_record
from m2ray.codec.model_card import model_card
from m2ray.config.sweep_record import read_sweep_record
from m2ray.reporting.document import PLAIN_NAME
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic, write_json


def publish(sweep: Path, config: str, seed: int, name: str) -> Path:
    """Copy a configuration's last checkpoint to `sweep / name`, with settings and a command to train it again.

    The folder is self-contained: `codec.safetensors`, `config.json`, `trial.yaml` for m2ray.train, and a README
    with the verdict. Its record is marked as published: evaluating the codec again does not count as a look at a
    confirm split.

    Returns:
        The new folder.

    Raises:
        UserError: The sweep has no checkpoint of this configuration and seed, or the name is not a plain folder
            name.
    """
    if PLAIN_NAME.fullmatch(name) is None:
        raise UserError(f"--as: {name!r} is not a plain folder name; use letters, digits, - and _")
    latest = last_checkpoints(sweep / "checkpoints")
    if (config, seed) not in latest:
        known = ", ".join(sorted({known_config for known_config, _ in latest})) or "none"
        raise UserError(f"{sweep}: no checkpoint of {config}, seed {seed}; use one of the configurations: {known}")
    source, target = latest[config, seed], sweep / name
    published = {
        "verdict": _leaderboard_verdict(sweep, config, seed),
        "made": str(read_sweep_record(sweep)["command"]),
    }
    record = {**read_record(source), "published": published}

    target.mkdir(exist_ok=True)
    shutil.copyfile(source / "codec.safetensors", target / "codec.safetensors")
    write_json(target / "config.json", record)
    write_atomic(target / "trial.yaml", yaml.safe_dump(record["trial"], sort_keys=False).encode())
    train = ["python", "-m", "m2ray.train", str(target / "trial.yaml"), "--seed", str(seed)]
    train_command = shlex.join([*train, "--out", f"results/train/{name}"])
    write_atomic(target / "README.md", str(model_card(record, str(target), train_command)).encode())
    return target


def _leaderboard_verdict(sweep: Path, config: str, seed: int) -> str:
    leaderboard = pd.read_csv(sweep / "leaderboard.csv")
    line = leaderboard[(leaderboard.config == config) & (leaderboard.seed == seed)].iloc[0]
    return f"{line.verdict} on {line.split}, n = {line.n}: normal {100 * line.normal:.1f} %"
