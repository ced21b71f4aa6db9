"""Command `python -m m2ray.fetch`; see `m2ray.cli.receivers.fetch`."""

from m2ray.cli.receivers.fetch import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
