"""Command `python -m m2ray.sweep`; see `m2ray.cli.sweep`."""

from m2ray.cli.runner import run_command
from m2ray.util.stopping import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the import below, which takes a second

from m2ray.cli.sweep import main

if __name__ == "__main__":
    run_command(main)
