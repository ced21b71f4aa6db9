"""`python -m m2ray.train CONFIG.yaml`: train one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ray.cli.runner import DONE, Parser
from m2ray.config.plan import refuse_sweep_record
from m2ray.config.trial import TrialConfig
from m2ray.training.trackers import check_installed
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable
from m2ray.util.strict_yaml import read_yaml, validate


def main(argv: Sequence[str]) -> int:
    """Train, print an epoch a line, and say how to evaluate the checkpoint."""
    parser = Parser(prog="python -m m2ray.train", description="Train one codec.")
    parser.add_argument("config", type=Path, help="YAML with the keys of `trial` in a search space")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--out", type=Path, help="folder; default: results/train/<name of the file>")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch in the folder")
    args = parser.parse_args(argv)
    data = read_yaml(args.config)
    refuse_sweep_record(args.config, data)
    if {"name", "trial", "points", "axes"} & set(data):
        raise UserError(
            f"{args.config}: a search space, not one configuration; run `python -m m2ray.sweep {args.config}`, or "
            "put the keys below its `trial` into a file of their own"
        )
    config = validate(TrialConfig, data, str(args.config))
    name = args.config.stem
    folder = (args.out or Path("results/train") / name).resolve() / f"seed-{args.seed}"
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: out of range; use 0 to {2**32 - 1}")
    check_writable("--out", folder)
    if folder.exists() and not args.resume:
        raise UserError(f"{folder}: already there; go on with --resume, or choose another --out")

    from m2ray.receiver.loading import load_receiver
    from m2ray.training.trainer import TrainingFailed, train

    def report(metrics: dict[str, Any], checkpoint: Path) -> None:
        print(
            f"epoch {metrics['epoch']}/{config.training.epochs}  k {metrics['k']}  loss {metrics['loss']:.3f}  "
            f"score {metrics['score']:+.3f} {metrics['unit']}  "
            f"shuffle gap {metrics.get('shuffle_gap', float('nan')):.3f}  "
            f"prefix cosine {metrics['prefix_cosine']:.3f}  {metrics['seconds']:.0f} s"
            + ("  COLLAPSED: ignores its message" if metrics["collapsed"] else ""),
            flush=True,
        )

    about = {"config": name, "params": {}}
    try:
        check_installed(config.trackers)
        if config.workers > 1:
            from m2ray.config.space import Resources
            from m2ray.engine import cluster
            from m2ray.engine.trial import train_distributed

            cluster.start(None, nested=True)
            train_distributed(config, args.seed, folder, about, Resources())
            cluster.stop()
        else:
            train(config, args.seed, load_receiver(config.receiver), folder, report, about)
    except (TrainingFailed, UserError) as error:
        raise UserError(f"{args.config}: {error}") from None
    checkpoint = folder / f"epoch-{config.training.epochs:02d}"
    print(f"checkpoint: {checkpoint}\nnext: python -m m2ray.evaluate {checkpoint} --split search")
    return DONE
