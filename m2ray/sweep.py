"""Command `python -m m2ray.sweep` (`m2ray.cli.sweep`), and the function `m2ray.sweep` (`m2ray.api`)."""

from m2ray.cli.runner import call_the_function, run_command
from m2ray.util.stopping import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the import below, which takes a second

from m2ray.cli.sweep import main

call_the_function(__name__)

if __name__ == "__main__":
    run_command(main)
