"""Command `python -m m2ray.train` (`m2ray.cli.train`), and the function `m2ray.train` (`m2ray.api`)."""

from m2ray.cli.runner import call_the_function, run_command
from m2ray.cli.train import main

call_the_function(__name__)

if __name__ == "__main__":
    run_command(main)
