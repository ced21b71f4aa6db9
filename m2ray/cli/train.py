"""Command `python -m m2ray.train CONFIG.yaml`: train one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ray.cli.runner import DONE, Parser
from m2ray.config.plan import refuse_sweep_record
from m2ray.config.settings import HELP, OPTION, is_set, parse_settings, with_settings
from m2ray.config.space import Resources
from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable
from m2ray.util.strict_yaml import read_yaml, validate


def main(argv: Sequence[str]) -> int:
    """Train, print one line per epoch, and name the command that evaluates the checkpoint."""
    parser = Parser(prog="python -m m2ray.train", description="Train one codec.")
    parser.add_argument("config", type=Path, help="YAML with the keys of `trial` in a search space")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=HELP)
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--out", type=Path, help="folder; default: results/train/<name of the file>")
    parser.add_argument("--resume", action="store_true", help="continue from the last epoch in the folder")
    args = parser.parse_args(argv)
    config = load_config(args.config, parse_settings(args.set))
    out = args.out or Path("results/train") / args.config.stem
    folder = output_folder(out, args.seed, args.resume)
    try:
        run_training(config, args.seed, folder, {"config": args.config.stem, "params": {}})
    except UserError as error:
        raise UserError(f"{args.config}: {error}") from None
    checkpoint = folder / f"epoch-{config.training.epochs:02d}"
    print(f"checkpoint: {checkpoint}\nnext: python -m m2ray.evaluate {checkpoint} --split search")
    return DONE


def load_config(file: Path, settings: Mapping[str, Any]) -> TrialConfig:
    """Read a configuration, with the settings of the command line; refuse a space, or the record of a sweep."""
    data = read_yaml(file)
    refuse_sweep_record(file, data)
    if {"name", "trial", "points", "axes"} & set(data):
        raise UserError(
            f"{file}: a search space, not one configuration; run `python -m m2ray.sweep {file}`, or "
            "put the keys below its `trial` into a file of their own"
        )
    tree = with_settings(data, settings)
    return validate(TrialConfig, tree, lambda key: OPTION if is_set(key, settings) else str(file))


def output_folder(out: Path, seed: int, resume: bool) -> Path:
    """Return the folder of the training seed; refuse a new one that exists, and one to resume that does not."""
    folder = out.resolve() / f"seed-{seed}"
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: out of range; use 0 to {2**32 - 1}")
    check_writable("--out", folder)
    if folder.exists() and not resume:
        raise UserError(f"{folder}: already there; continue with --resume, or choose another --out")
    if resume and not folder.exists():
        raise UserError(f"--resume: {folder} does not exist; check --out and --seed, or leave --resume out")
    return folder


def run_training(config: TrialConfig, seed: int, folder: Path, about: dict[str, Any]) -> None:
    """Train in this process, or with several workers on a local Ray.

    Raises:
        UserError: the settings do not fit, or the training failed.
    """
    # Loads torch: bad input is refused before that.
    from m2ray.receiver.loading import load_trial_receiver
    from m2ray.training.trackers import check_installed
    from m2ray.training.trainer import TrainingFailed, train

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        print_epoch(config, metrics)

    try:
        check_installed(config.trackers)
        if config.workers > 1:
            # Loads Ray, which training in this process does not need.
            from m2ray.engine import cluster
            from m2ray.engine.trial import train_distributed

            cluster.start(None, nested=True)
            train_distributed(config, seed, folder, about, Resources())
            cluster.stop()
        else:
            receiver = load_trial_receiver(config)
            # Recorded with the checkpoint: another machine may find another type faster.
            typed = config.model_copy(update={"receiver_dtype": receiver.dtype_name})
            train(typed, seed, receiver, folder, report, about)
    except TrainingFailed as error:
        raise UserError(str(error)) from None


def print_epoch(config: TrialConfig, metrics: dict[str, Any]) -> None:
    """Print an epoch's metrics in one line."""
    print(
        f"epoch {metrics['epoch']}/{config.training.epochs}  k {metrics['k']}  loss {metrics['loss']:.3f}  "
        f"score {metrics['score']:+.3f} {metrics['unit']}  "
        f"shuffle gap {metrics.get('shuffle_gap', float('nan')):.3f}  "
        f"prefix cosine {metrics['prefix_cosine']:.3f}  {metrics['seconds']:.0f} s"
        + ("  COLLAPSED: ignores its message" if metrics["collapsed"] else ""),
        flush=True,
    )
