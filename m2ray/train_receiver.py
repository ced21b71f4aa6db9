"""Command `python -m m2ray.train_receiver`; see `m2ray.cli.train_receiver`."""

from m2ray.cli.runner import run_command
from m2ray.cli.train_receiver import main

if __name__ == "__main__":
    run_command(main)
