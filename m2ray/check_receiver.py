"""Command `python -m m2ray.check_receiver`; see `m2ray.cli.receivers.check_receiver`."""

from m2ray.cli.receivers.check_receiver import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
