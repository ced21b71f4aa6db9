"""Command `python -m m2ray.export`; see `m2ray.cli.export`."""

from m2ray.cli.export import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
