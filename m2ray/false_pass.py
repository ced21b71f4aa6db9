"""Command `python -m m2ray.false_pass`; see `m2ray.cli.false_pass`."""

from m2ray.cli.false_pass import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
