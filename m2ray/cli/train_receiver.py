"""Train a receiver on the text form of the task, then freeze and save it in Hugging Face format.

    python -m m2ray.train_receiver --out m2ray/receiver/embedded/mini          # the embedded receiver, from scratch
    python -m m2ray.train_receiver --base FOLDER --lora 16 --out OUT   # adapt a pretrained one

A base that this script made itself is trained on: with fresh seeds, after those on its card.

The message is present, or withheld in `--withhold` of the samples, so that the receiver learns both what to do
with a message and to guess evenly without one. Targets are exact: instead of one sampled solution, the
distribution of each value over the solutions left, given the values before it. Seeds are training seeds, and
messages are those of the training part: no message of an evaluation split is ever seen.

With --lora the adapter is kept as well, and the receiver is made of base and adapter file, so that the two, and
nothing else, are what it takes to make it again, to the bit.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ray.cli.runner import DONE, Parser
from m2ray.judging.statistics import wilson
from m2ray.receiver.loading import default_device, load_receiver
from m2ray.receiver.prompts import CARD
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.lora import adapted, merged, save_adapter
from m2ray.training.receiver_training import count_solved, from_scratch, seeds_before, state_file, train
from m2ray.util.errors import UserError
from m2ray.util.files import write_json


def make(args: argparse.Namespace, until: float = math.inf) -> dict[str, Any]:
    """Train, measure on held-out episodes, save with a card. The training's state stays beside `args.out`.

    Args:
        args: What `parser` reads, and `command`, which the card names.
        until: When to stop, on the monotonic clock.

    Returns:
        The card, with the receiver's digest.

    Raises:
        OutOfTime: see `train`.
    """
    if args.lora and not args.base:
        raise UserError("--lora: adapts a pretrained model; name one with --base")
    size = level(args.level)
    receiver = (
        adapted(args.base, args.lora, args.seed)
        if args.base
        else from_scratch(size, args.width, args.layers, args.seed)
    )
    receiver.model.to(default_device())
    before = seeds_before(receiver, size)
    commands = train(receiver, size, args, before.stop, until)
    if args.lora:
        adapter = args.adapter or args.out / "adapter"
        save_adapter(receiver, args.base, adapter)
        receiver = merged(args.base, adapter)

    played = episodes(size, range(args.held_out), "search")
    solved = {"P1": count_solved(receiver, played, True), "P0": count_solved(receiver, played, False)}
    seen = range(before.start, before.stop + args.samples // args.batch * args.batch)
    card = {
        "style": receiver.style_name,
        "level": size.name,
        "base": receiver.card["base"] if before else args.base,
        "train_seeds": f"{seen.start}:{seen.stop}",
        "samples": len(seen),
        "parameters": sum(p.numel() for p in receiver.model.parameters()),
        "held_out": {"part": "search", "seeds": f"0:{args.held_out}"},
        "commands": commands,
    }
    for name, count in solved.items():
        low, high = wilson(count, args.held_out)
        card[name] = {"successes": count, "n": args.held_out, "ci95": [round(low, 4), round(high, 4)]}
    digest = save(receiver, card, args.out)
    measured = "  ".join(f"{name} {count}/{args.held_out}" for name, count in solved.items())
    print(f"{measured}  digest {digest}  saved in {args.out}")
    return {**card, "digest": digest}


def save(receiver: Receiver, card: dict[str, Any], out: Path) -> str:
    """Write a receiver in Hugging Face format, with its card. Returns the digest of what was written."""
    out.mkdir(parents=True, exist_ok=True)
    receiver.model.save_pretrained(out)
    receiver.tokenizer.save_pretrained(out)
    write_json(out / CARD, card)
    load_receiver.cache_clear()
    digest = load_receiver(str(out), device="cpu").digest
    (out / "README.md").write_text(model_card(card, digest))
    return digest


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m m2ray.train_receiver", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to save the receiver in")
    parser.add_argument("--base", default=None, help="hub name or folder to start from; default: from scratch")
    parser.add_argument("--lora", type=int, default=0, help="LoRA rank; 0 trains all weights")
    parser.add_argument("--adapter", type=Path, help="with --lora: where its weights go; default: OUT/adapter")
    parser.add_argument("--level", default="easy")
    parser.add_argument("--samples", type=int, default=480_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--withhold", type=float, default=0.3, help="share of samples without the message")
    parser.add_argument("--width", type=int, default=128, help="from scratch: width of the model")
    parser.add_argument("--layers", type=int, default=4, help="from scratch: number of layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", type=int, default=1000, help="held-out episodes that P0 and P1 are measured on"
    )
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint; with more --samples, for longer"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Train a receiver; its state file is of no more use then."""
    args = parser().parse_args(argv)
    args.command = shlex.join(["python", "python -m m2ray.train_receiver", *argv])
    make(args)
    state_file(args.out).unlink()
    return DONE


def model_card(card: dict[str, Any], digest: str) -> str:
    """The README that a model on a hub has."""
    base = card["base"]
    rows = "\n".join(
        f"| {name} ({what}) | {100 * card[name]['successes'] / card[name]['n']:.1f} % "
        f"| [{100 * card[name]['ci95'][0]:.1f}, {100 * card[name]['ci95'][1]:.1f}] % | {card[name]['n']} |"
        for name, what in (("P1", "message as text"), ("P0", "no message"))
    )
    return f"""---
license: apache-2.0
library_name: transformers
{f"base_model: {base}" if base else "tags: [m2ray]"}
---
# A receiver for m2ray

A frozen causal LM ({card["parameters"]:,} parameters) that answers the split-information task, level
`{card["level"]}`, prompt style `{card["style"]}`. {"Adapted from " + base if base else "Trained from scratch"} on
{card["samples"]:,} episodes, seeds {card["train_seeds"]}, messages of the training part only.

| condition | success | 95 % CI | n |
|---|---|---|---|
{rows}

Held-out episodes: part `{card["held_out"]["part"]}`, seeds {card["held_out"]["seeds"]}, greedy decoding.

Digest {digest}. Made by, in this order:

{chr(10).join("    " + command for command in card["commands"])}
"""
