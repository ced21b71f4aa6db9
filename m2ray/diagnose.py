"""Command `python -m m2ray.diagnose`; see `m2ray.cli.diagnose`."""

from m2ray.cli.diagnose import main
from m2ray.cli.runner import run_command

if __name__ == "__main__":
    run_command(main)
