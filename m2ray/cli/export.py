"""Command `python -m m2ray.export results/NAME CONFIG`: one configuration of a sweep as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.reporting.export import configuration_yaml, find_configuration, point_yaml
from m2ray.util.errors import UserError
from m2ray.util.files import check_file, write_atomic


def main(argv: Sequence[str]) -> int:
    """Print a configuration, or write it to a file."""
    parser = Parser(
        prog="python -m m2ray.export",
        description="Write a configuration of a sweep as YAML that m2ray.train takes, or as a point of a space.",
    )
    parser.add_argument("sweep", type=Path, help="results/NAME of a sweep, also of one that runs")
    parser.add_argument("config", help="configuration on its leaderboard")
    parser.add_argument("--point", action="store_true", help="a point that goes below `points` of a space")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file; default: print it")
    args = parser.parse_args(argv)
    if args.out is not None:
        if args.out.exists():
            raise UserError(f"--out {args.out}: already there; choose another name, or remove it first")
        check_file("--out", args.out, (".yaml", ".yml"))
    config = find_configuration(args.sweep, args.config)
    text = point_yaml(args.config, config) if args.point else configuration_yaml(config)
    use = "goes below `points` of a space" if args.point else "for python -m m2ray.train"
    text = f"# {args.config} of {args.sweep.resolve().name}; {use}\n{text}"
    if args.out is None:
        print(text, end="")
        return DONE
    write_atomic(args.out, text.encode())
    print(f"written: {args.out}")
    if not args.point:
        print(f"next: python -m m2ray.train {args.out}")
    return DONE
