"""Command `python -m m2ray.gate`; see `m2ray.cli.gate`."""

from m2ray.cli.gate import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
