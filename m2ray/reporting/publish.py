# NEWDOC
"""`python -m m2ray.publish results/NAME CONFIG`: a trained codec as a folder of its own, for anybody to play."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from m2ray.config.record import read_sweep_record
from m2ray.util.errors import UserError


def publish(sweep: Path, config: str, seed: int, name: str) -> Path:
    """Copy a configuration's last checkpoint to `sweep / name`, with the settings and commands that remake it.

    The folder is complete: `codec.safetensors`, `config.json`, `trial.yaml` for m2ray.train, and a README that
    says what was judged. Its record is marked as published: playing it again spends no look at a confirm split.

    Raises:
        UserError: no such configuration, no such seed, or the name is no plain folder name.
    """
    import pandas as pd
    import yaml

    from m2ray.codec.checkpoints import last_checkpoints, read_record
    from m2ray.codec.model_card import model_card
    from m2ray.reporting.build import PLAIN_NAME
    from m2ray.util.files import write_atomic, write_json

    if PLAIN_NAME.fullmatch(name) is None:
        raise UserError(f"--as: {name!r} is no plain folder name; use letters, digits, - and _")
    latest = last_checkpoints(sweep / "checkpoints")
    if (config, seed) not in latest:
        known = ", ".join(sorted({one for one, _ in latest})) or "none"
        raise UserError(f"{sweep}: no checkpoint of {config}, seed {seed}; configurations there: {known}")
    source, target = latest[config, seed], sweep / name
    record = read_record(source)
    board = pd.read_csv(sweep / "leaderboard.csv")
    line = board[(board.config == config) & (board.seed == seed)].iloc[0]
    verdict = f"{line.verdict} on {line.split}, n = {line.n}: normal {100 * line.normal:.1f} %"
    made = str(read_sweep_record(sweep)["command"])

    target.mkdir(exist_ok=True)
    record = {**record, "published": {"verdict": verdict, "made": made}}
    shutil.copyfile(source / "codec.safetensors", target / "codec.safetensors")
    write_json(target / "config.json", record)
    write_atomic(target / "trial.yaml", yaml.safe_dump(record["trial"], sort_keys=False).encode())
    train = ["python", "-m", "m2ray.train", str(target / "trial.yaml"), "--seed", str(seed)]
    remake = shlex.join([*train, "--out", f"results/train/{name}"])
    write_atomic(target / "README.md", str(model_card(record, str(target), remake)).encode())
    return target
