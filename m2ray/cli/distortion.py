# NEWDOC
"""`python -m m2ray.distortion CHECKPOINT...`: success against bits per message, codecs beside text.

Codecs send their prefixes in the ways of `m2ray.quantisers`, fitted on messages that they were trained on, never
on those that are played. Their rivals have the same bits: the message as text, cut to whole bytes; and the first
of A's facts in a fixed code that both sides know, log2(number of possible facts) bits each, read by B as text. The
code knows what a message can say; codec and cut do not.

Shapes: E episodes, K slots, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.codec.checkpoints import trial_of
from m2ray.diagnosis.distortion import MESSAGES, Played, codec_name, play_codec, play_text, write_distortion
from m2ray.diagnosis.messages import held_out_episodes
from m2ray.receiver.loading import load_receiver
from m2ray.util.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Play checkpoints and text in many numbers of bits; write and print what they solve."""
    parser = Parser(prog="python -m m2ray.distortion", description="Success against bits per message.")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="folders with codec.safetensors and config.json")
    parser.add_argument(
        "--seeds", help="episode seeds A:B of messages never seen in training; default: fresh ones"
    )
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"that fit quantisers; default: {MESSAGES}")
    parser.add_argument("--receiver", help="where the receiver is now, if it moved")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, picture and outcomes")
    args = parser.parse_args(argv)
    if args.messages < 4:
        raise UserError(f"--messages {args.messages}: too few to fit anything; give 4 or more")
    if blocked := next((p for p in [args.out, *args.out.parents] if p.is_file()), None):
        raise UserError(f"--out {args.out}: {blocked} is a file; choose a folder")
    trials = {folder: trial_of(folder) for folder in args.checkpoints}
    if args.receiver:
        trials = {folder: t.model_copy(update={"receiver": args.receiver}) for folder, t in trials.items()}
    one, first = next(iter(trials.items()))
    for folder, trial in trials.items():
        if any(getattr(trial, part) != getattr(first, part) for part in ("receiver", "task", "evaluation")):
            raise UserError(f"{folder}: of another receiver, task or evaluation than {one}; play them apart")
    if len({codec_name(folder) for folder in trials}) < len(trials):
        raise UserError("CHECKPOINT: two are of the same configuration, seed and step; keep one")
    receiver = load_receiver(first.receiver)
    episodes = held_out_episodes(first, receiver, None, args.seeds)
    played: list[Played] = []
    for folder, trial in trials.items():
        played += play_codec(receiver, trial, folder, episodes, args.messages)
    played += play_text(receiver, first, episodes, [sent.bits for sent in played])
    print(write_distortion(args.out, played, episodes, receiver))
    print(f"\nwritten: {args.out}/distortion.md, .csv, .png, .svg, outcomes.parquet")
    return DONE
