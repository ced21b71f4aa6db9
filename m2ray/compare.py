"""Command `python -m m2ray.compare`; see `m2ray.cli.compare`."""

from m2ray.cli.compare import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
