"""Command `python -m m2ray.status`; see `m2ray.cli.status`."""

from m2ray.cli.runner import run_command
from m2ray.cli.status import main

if __name__ == "__main__":
    run_command(main)
