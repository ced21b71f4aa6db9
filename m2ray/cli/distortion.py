"""Command `python -m m2ray.distortion CHECKPOINT...`: success against bits per message, of codecs and of text."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, EPISODES, Parser
from m2ray.codec.checkpoints import trial_of
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.distortion import (
    MESSAGES,
    Transmission,
    codec_name,
    send_prefixes,
    send_text,
    write_distortion,
)
from m2ray.diagnosis.messages import held_out_episodes
from m2ray.receiver.loading import load_trial_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable


def main(argv: Sequence[str]) -> int:
    """Send prefixes and text with different numbers of bits; write and print what B solves."""
    args = parse_arguments(argv)
    trials = load_trials(args.checkpoints, args.receiver)
    first = next(iter(trials.values()))
    receiver = load_trial_receiver(first)
    episodes = held_out_episodes(first, receiver, None, args.episodes)
    sent: list[Transmission] = []
    for folder, trial in trials.items():
        sent += send_prefixes(receiver, trial, folder, episodes, args.messages)
    sent += send_text(receiver, first, episodes, [each.bits for each in sent])
    print(write_distortion(args.out, sent, episodes, receiver))
    print(f"\nwritten: {args.out}/distortion.md, .csv, .png, .svg, outcomes.parquet")
    return DONE


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Read the command line; refuse a number or a folder that cannot be used."""
    parser = Parser(prog="python -m m2ray.distortion", description="Success against bits per message.")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="folders with codec.safetensors and config.json")
    parser.add_argument(*EPISODES, help="seeds A:B of messages never seen in training; default: fresh ones")
    parser.add_argument(
        "--messages",
        type=int,
        default=MESSAGES,
        help=f"largest number of training messages that fit ranges and codebooks; default: {MESSAGES}",
    )
    parser.add_argument("--receiver", help="folder or name of the receiver, if it has moved")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, picture and outcomes")
    args = parser.parse_args(argv)
    if args.messages < 4:
        raise UserError(f"--messages {args.messages}: too few to fit anything; give 4 or more")
    check_writable(f"--out {args.out}", args.out)
    return args


def load_trials(folders: Sequence[Path], receiver: str | None) -> dict[Path, TrialConfig]:
    """Read the checkpoints' configurations; `receiver` is its folder or name, if it has moved.

    Raises:
        UserError: checkpoints cannot be compared, or two of them have the same name.
    """
    trials = {folder: trial_of(folder) for folder in folders}
    if receiver:
        trials = {folder: trial.model_copy(update={"receiver": receiver}) for folder, trial in trials.items()}
    first_folder, first = next(iter(trials.items()))
    for folder, trial in trials.items():
        if any(getattr(trial, key) != getattr(first, key) for key in ("receiver", "task", "evaluation")):
            raise UserError(
                f"{folder}: of another receiver, task or evaluation than {first_folder}; run it in another call"
            )
    if len({codec_name(folder) for folder in trials}) < len(trials):
        raise UserError("CHECKPOINT: two are of the same configuration, seed and step; keep one")
    return trials
