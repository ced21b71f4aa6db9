"""Publishing a trained codec: its last checkpoint as a self-contained folder, with settings and a model card."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import yaml

from m2ray.codec.checkpoints import last_checkpoints, read_record
from m2ray.codec.local_paths import command_without_folders, record_without_folders
from m2ray.codec.model_card import model_card
from m2ray.config.split_names import is_confirm
from m2ray.config.sweep_record import read_sweep_record
from m2ray.util.errors import UserError
from m2ray.util.files import write_atomic, write_json

# Folders of a results folder that a sweep, or scripts/adapt_and_sweep.py, writes.
RESERVED = ("adapter", "attempts", "checkpoints", "diagnoses", "figures", "ray", "rows")
UNCONFIRMED = "-not-confirmed"  # end of the folder's name of a codec without a verdict
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def publish(sweep: Path, config: str, seed: int, name: str, replace: bool = False) -> Path:
    """Copy a configuration's last checkpoint to `sweep / name`, with settings and a command to train it again.

    The folder is self-contained: `codec.safetensors`, `config.json`, `trial.yaml` for m2ray.train, and a README
    with the verdict. Its record is marked as published: `m2ray.evaluate` records looks at confirm messages by
    it, but never refuses them. Paths of this machine are not published: receiver, task file and the rest are named
    without their folders, and told by their digests.

    Args:
        sweep: Results folder of a finished sweep.
        config: Configuration on its leaderboard.
        seed: Training seed.
        name: Name of the new folder; that of a codec that was not judged on confirm ends in `-not-confirmed`.
        replace: Write into a folder of that name that is already there, as after an interrupted call.

    Returns:
        The new folder.

    Raises:
        UserError: The sweep has no checkpoint of this configuration and seed, or the name is not a plain folder
            name, is taken, or is one that sweeps use.
    """
    _check_name(name)
    source = _last_checkpoint(sweep, config, seed)
    verdict, confirmed = _leaderboard_verdict(sweep, config, seed)
    if not confirmed and not name.endswith(UNCONFIRMED):
        name += UNCONFIRMED
    target = sweep / name
    if target.exists() and not replace:
        raise UserError(f"--as: {target} is already there; choose another name, or remove it first")
    published = {
        "verdict": verdict,
        "made": command_without_folders(str(read_sweep_record(sweep)["command"])),
    }
    record = {**record_without_folders(read_record(source)), "published": published}

    target.mkdir(exist_ok=replace)
    shutil.copyfile(source / "codec.safetensors", target / "codec.safetensors")
    write_json(target / "config.json", record)
    trial = {"receiver_dtype": "auto", **record["trial"]}  # older ones name no type: that of the receiver's file
    write_atomic(target / "trial.yaml", yaml.safe_dump(trial, sort_keys=False).encode())
    where = f"results/{sweep.resolve().name}/{name}"  # not the folder here, which means nothing elsewhere
    train = ["python", "-m", "m2ray.train", f"{where}/trial.yaml", "--seed", str(seed)]
    train_command = shlex.join([*train, "--out", f"results/train/{name}"])
    write_atomic(target / "README.md", str(model_card(record, where, train_command)).encode())
    return target


def _check_name(name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise UserError(f"--as: {name!r} is not a plain folder name; use letters, digits, - and _")
    if name in RESERVED:
        raise UserError(f"--as: {name!r} is a folder that sweeps use; choose another name, such as best")


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


def _leaderboard_verdict(sweep: Path, config: str, seed: int) -> tuple[str, bool]:
    """Return the verdict of a training seed, and whether it was given on confirm.

    Where its configuration has several seeds, the configuration's comes before it.
    """
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
        return text, is_confirm(of_seed.iloc[0].split)
    seeds = str(own.seeds.iloc[0]).replace(" ", ", ")
    both = f"{_verdict_text(own.iloc[0])} over training seeds {seeds}; of this seed: {text}"
    return both, is_confirm(of_seed.iloc[0].split)


def _verdict_text(line: pd.Series) -> str:
    if not is_confirm(line.split):
        return (
            f"none: NOT CONFIRMED, evaluated on {line.split} only, which it may have been chosen by, "
            f"n = {line.n:.0f}: normal {100 * line.normal:.1f} %"
        )
    return f"{line.verdict} on {line.split}, n = {line.n:.0f}: normal {100 * line.normal:.1f} %"
