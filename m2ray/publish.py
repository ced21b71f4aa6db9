"""`python -m m2ray.publish results/NAME CONFIG`: a trained codec as a folder of its own, for anybody to play."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from m2ray.command import DONE, Parser, UserError, run

PLAYED = "5000000:5001000"  # in example commands; any other seeds do as well


def publish(sweep: Path, config: str, seed: int, name: str) -> Path:
    """Copy a configuration's last checkpoint to `sweep / name`, with the settings and commands that remake it.

    The folder is complete: `codec.safetensors`, `config.json`, `trial.yaml` for m2ray.train, and a README that
    says what was judged. Its record is marked as published: playing it again spends no look at a confirm split.

    Raises:
        UserError: no such configuration, no such seed, or the name is no plain folder name.
    """
    import pandas as pd
    import yaml

    from m2ray import manifest
    from m2ray.codec import read_record
    from m2ray.files import write_atomic, write_json
    from m2ray.hub import card_of
    from m2ray.jobs import last_checkpoints
    from m2ray.report import PLAIN_NAME

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
    made = str(manifest.read(sweep)["command"])

    target.mkdir(exist_ok=True)
    record = {**record, "published": {"verdict": verdict, "made": made}}
    shutil.copyfile(source / "codec.safetensors", target / "codec.safetensors")
    write_json(target / "config.json", record)
    write_atomic(target / "trial.yaml", yaml.safe_dump(record["trial"], sort_keys=False).encode())
    train = ["python", "-m", "m2ray.train", str(target / "trial.yaml"), "--seed", str(seed)]
    remake = shlex.join([*train, "--out", f"results/train/{name}"])
    write_atomic(target / "README.md", str(card_of(record, str(target), remake)).encode())
    return target


def main(argv: Sequence[str]) -> int:
    """Publish one codec of a sweep."""
    parser = Parser(prog="python -m m2ray.publish", description="Give a trained codec a folder of its own.")
    parser.add_argument("sweep", type=Path, help="results/NAME of a finished sweep")
    parser.add_argument("config", help="configuration on its leaderboard")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--as", dest="name", help="folder inside the sweep's, such as best-k8", required=True)
    args = parser.parse_args(argv)
    if not (args.sweep / "leaderboard.csv").is_file():
        raise UserError(f"{args.sweep}: no leaderboard.csv; give results/NAME of a finished sweep")
    print(publish(args.sweep, args.config, args.seed, args.name))
    return DONE


if __name__ == "__main__":
    run(main)
