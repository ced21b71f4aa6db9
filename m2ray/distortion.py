"""Command `python -m m2ray.distortion`; see `m2ray.cli.distortion`."""

from m2ray.cli.distortion import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
