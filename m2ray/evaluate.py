"""Command `python -m m2ray.evaluate` (`m2ray.cli.evaluate`), and the function `m2ray.evaluate` (`m2ray.api`)."""

from m2ray.cli.evaluate import main
from m2ray.cli.runner import call_the_function, run_command

call_the_function(__name__)

if __name__ == "__main__":
    run_command(main)
