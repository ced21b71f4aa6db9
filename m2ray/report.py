"""Command `python -m m2ray.report`; see `m2ray.cli.report`."""

from m2ray.cli.report import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
