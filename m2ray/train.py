"""Command `python -m m2ray.train`; see `m2ray.cli.train`."""

from m2ray.cli.runner import run_command
from m2ray.cli.train import main

if __name__ == "__main__":
    run_command(main)
