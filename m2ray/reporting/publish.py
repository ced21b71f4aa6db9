"""Publishing a trained codec: its last checkpoint as a self-contained folder, with settings and a model card."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import yaml

from m2ray.codec.checkpoints import last_checkpoints, read_record
from m2ray.codec.model_card import model_card
from m2ray.config.sweep_record import read_sweep_record
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic, write_json

# Folders of a results folder that a sweep, or scripts/adapt_and_sweep.py, writes.
RESERVED = ("adapter", "attempts", "checkpoints", "diagnoses", "figures", "ray", "rows")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def publish(sweep: Path, config: str, seed: int, name: str, replace: bool = False) -> Path:
    """Copy a configuration's last checkpoint to `sweep / name`, with settings and a command to train it again.

    The folder is self-contained: `codec.safetensors`, `config.json`, `trial.yaml` for m2ray.train, and a README
    with the verdict. Its record is marked as published: `m2ray.evaluate` records looks at confirm messages by
    it, but never refuses them.

    Args:
        sweep: Results folder of a finished sweep.
        config: Configuration on its leaderboard.
        seed: Training seed.
        name: Name of the new folder.
        replace: Write into a folder of that name that is already there, as after an interrupted call.

    Returns:
        The new folder.

    Raises:
        UserError: The sweep has no checkpoint of this configuration and seed, or the name is not a plain folder
            name, is taken, or is one that sweeps use.
    """
    target = sweep / name
    _check_name(target, name, replace)
    source = _last_checkpoint(sweep, config, seed)
    published = {
        "verdict": _leaderboard_verdict(sweep, config, seed),
        "made": str(read_sweep_record(sweep)["command"]),
    }
    record = {**read_record(source), "published": published}

    target.mkdir(exist_ok=replace)
    shutil.copyfile(source / "codec.safetensors", target / "codec.safetensors")
    write_json(target / "config.json", record)
    write_atomic(target / "trial.yaml", yaml.safe_dump(record["trial"], sort_keys=False).encode())
    train = ["python", "-m", "m2ray.train", str(target / "trial.yaml"), "--seed", str(seed)]
    train_command = shlex.join([*train, "--out", f"results/train/{name}"])
    write_atomic(target / "README.md", str(model_card(record, str(target), train_command)).encode())
    return target


def _check_name(target: Path, name: str, replace: bool) -> None:
    if NAME.fullmatch(name) is None:
        raise UserError(f"--as: {name!r} is not a plain folder name; use letters, digits, - and _")
    if name in RESERVED:
        raise UserError(f"--as: {name!r} is a folder that sweeps use; choose another name, such as best")
    if target.exists() and not replace:
        raise UserError(f"--as: {target} is already there; choose another name, or remove it first")


def _last_checkpoint(sweep: Path, config: str, seed: int) -> Path:
    latest = last_checkpoints(sweep / "checkpoints")
    if (config, seed) in latest:
        return latest[config, seed]
    seeds = sorted(known_seed for known_config, known_seed in latest if known_config == config)
    if seeds:
        choices = ", ".join(map(str, seeds))
        raise UserError(f"{sweep}: no checkpoint of {config}, seed {seed}; use one of its seeds: {choices}")
    configs = ", ".join(sorted({known_config for known_config, _ in latest})) or "none"
    raise UserError(f"{sweep}: no checkpoint of {config}; use one of the configurations: {configs}")


def _leaderboard_verdict(sweep: Path, config: str, seed: int) -> str:
    """Return the verdict of a training seed, and before it that of its configuration if it has several seeds."""
    leaderboard = pd.read_csv(sweep / "leaderboard.csv")
    lines = leaderboard[leaderboard.config == config]
    of_seed = lines[lines.seed == seed]
    if of_seed.empty:
        raise UserError(
            f"{sweep}/leaderboard.csv: no line of {config}, seed {seed}; finish the sweep with --resume first"
        )
    own = lines[lines.seed.isna()]
    text = _verdict_text(of_seed.iloc[0])
    if own.empty:
        return text
    seeds = str(own.seeds.iloc[0]).replace(" ", ", ")
    return f"{_verdict_text(own.iloc[0])} over training seeds {seeds}; of this seed: {text}"


def _verdict_text(line: pd.Series) -> str:
    return f"{line.verdict} on {line.split}, n = {line.n:.0f}: normal {100 * line.normal:.1f} %"
