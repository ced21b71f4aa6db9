"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.codec.checkpoints import checkpoint_id, trial_of
from m2ray.codec.codec import load_codec
from m2ray.diagnosis.free_vectors import FREE_EPISODES
from m2ray.diagnosis.measure import diagnose
from m2ray.diagnosis.messages import EPISODES, held_out_episodes
from m2ray.diagnosis.report import report_sections, write_report
from m2ray.evaluation.conditions import derangement
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root


def main(argv: Sequence[str]) -> int:
    """Diagnose, print figures and findings, write them where asked."""
    parser = Parser(
        prog="python -m m2ray.diagnose", description="Say where a codec loses its message and what reads it."
    )
    parser.add_argument("checkpoint", type=Path, help="folder with codec.safetensors and config.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=("search", "select"), help=f"default: {EPISODES} fresh seeds")
    which.add_argument("--seeds", help="episode seeds A:B, end excluded; messages of the search part")
    parser.add_argument("--receiver", help="where the receiver is now, if it moved")
    parser.add_argument(
        "--ceilings",
        type=int,
        default=FREE_EPISODES,
        metavar="N",
        help=f"episodes to fit free vectors to (default {FREE_EPISODES}); 0 leaves all ceilings out",
    )
    parser.add_argument("--out", type=Path, help="folder for diagnosis.json, diagnosis.md and pictures")
    args = parser.parse_args(argv)
    if args.ceilings < 0:
        raise UserError(f"--ceilings {args.ceilings}: give a number of episodes, or 0 for none")
    if args.out is not None and (blocked := next((p for p in [args.out, *args.out.parents] if p.is_file()), None)):
        raise UserError(f"--out {args.out}: {blocked} is a file; choose a folder")
    trial, subject = trial_of(args.checkpoint), checkpoint_id(args.checkpoint)
    if args.receiver:
        trial = trial.model_copy(update={"receiver": args.receiver})
    receiver = load_receiver(trial.receiver)
    codec = load_codec(args.checkpoint, receiver)
    episodes = held_out_episodes(trial, receiver, args.split, args.seeds)
    derangement(episodes)  # too few messages are refused before anything is measured
    diagnosis, shown = diagnose(
        receiver, codec, trial, episodes, subject, cache_root() / "constants", args.ceilings
    )
    print("\n\n".join(report_sections(diagnosis)))
    if args.out is not None:
        write_report(args.out, diagnosis, shown)
        print(f"\nwritten: {args.out}/diagnosis.json, diagnosis.md, maps.png, stages.png")
    return DONE
