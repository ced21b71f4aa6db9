"""Command `python -m m2ray.publish`; see `m2ray.cli.publish`."""

from m2ray.cli.publish import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
