"""Command `python -m m2ray.diagnose CHECKPOINT`: find where a codec loses its message, and whether B reads it.

Everything is measured on messages of the search part, or of the select split, that no training saw; never on those
of confirm.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, EPISODES, OTHER_RECEIVER, Parser
from m2ray.codec.checkpoints import checkpoint_id, trial_of
from m2ray.codec.codec import load_codec
from m2ray.diagnosis.free_vectors import FREE_EPISODES
from m2ray.diagnosis.measure import diagnose
from m2ray.diagnosis.messages import HELD_OUT_MESSAGES, held_out_episodes
from m2ray.diagnosis.report import report_sections, write_report
from m2ray.evaluation.conditions import derangement
from m2ray.receiver.loading import load_trial_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root, check_writable


def main(argv: Sequence[str]) -> int:
    """Diagnose a checkpoint, print figures and findings, and write them if requested."""
    args = parse_arguments(argv)
    trial, checkpoint = trial_of(args.checkpoint), checkpoint_id(args.checkpoint, args.other_receiver)
    if args.receiver:
        trial = trial.model_copy(update={"receiver": args.receiver})
    receiver = load_trial_receiver(trial)
    codec = load_codec(args.checkpoint, receiver, args.other_receiver)
    episodes = held_out_episodes(trial, receiver, args.split, args.episodes)
    derangement(episodes)  # refuses too few messages before anything is measured
    constants = cache_root() / "constants"
    diagnosis, shown = diagnose(receiver, codec, trial, episodes, checkpoint, constants, args.ceilings)
    print("\n\n".join(report_sections(diagnosis)))
    if args.out is not None:
        write_report(args.out, diagnosis, shown)
        print(f"\nwritten: {args.out}/diagnosis.json, diagnosis.md, maps.png, stages.png")
    return DONE


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Read the command line; refuse a number or a folder that cannot be used."""
    parser = Parser(
        prog="python -m m2ray.diagnose",
        description="Find where a codec loses its message, and whether the receiver reads it.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder with codec.safetensors and config.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=("search", "select"), help=f"default: {HELD_OUT_MESSAGES} fresh seeds")
    which.add_argument(*EPISODES, help="seeds A:B, end excluded; messages of the search part")
    parser.add_argument("--receiver", help="folder or name of the receiver, if it has moved")
    parser.add_argument("--other-receiver", action="store_true", help=OTHER_RECEIVER)
    parser.add_argument(
        "--ceilings",
        type=int,
        default=FREE_EPISODES,
        metavar="N",
        help=f"episodes to fit free vectors to (default {FREE_EPISODES}); 0 leaves all ceilings out",
    )
    parser.add_argument("--out", type=Path, help="folder for diagnosis.json, diagnosis.md and pictures")
    args = parser.parse_args(argv)
    if args.other_receiver and not args.receiver:
        raise UserError("--other-receiver: needs a receiver; name it with --receiver")
    if args.ceilings < 0:
        raise UserError(f"--ceilings {args.ceilings}: give a number of episodes, or 0 for none")
    if args.out is not None:
        check_writable(f"--out {args.out}", args.out)
    return args
