"""Command `python -m m2ray.train_receiver --out FOLDER`: train a receiver on the text form of the task.

    python -m m2ray.train_receiver --out my-receiver                        # from scratch, as mini was trained
    python -m m2ray.train_receiver --base FOLDER --lora 16 --out OUT       # adapt a pretrained model

The receiver is saved in Hugging Face format. A base that was trained with this command is trained further, on
fresh seeds after those on its card. With --lora the adapter is saved as well, and the receiver is computed from
base and adapter file, so that these two files alone reproduce it bit for bit. The training itself is in
`m2ray.training.receiver_training`.
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
from m2ray.tasks.level import Level
from m2ray.tasks.registry import level
from m2ray.training.lora import load_with_lora, merge_adapter, save_adapter
from m2ray.training.receiver_training import count_solved, from_scratch, seeds_before, state_file, train
from m2ray.util.errors import UserError
from m2ray.util.files import write_json


def make(args: argparse.Namespace, until: float = math.inf) -> dict[str, Any]:
    """Train a receiver, measure P0 and P1 on held-out episodes, and save it with a card.

    The training's state stays beside `args.out`.

    Args:
        args: Options that `parser` reads, and `command`, which the card names.
        until: Time limit, on the monotonic clock.

    Returns:
        The card, with the receiver's digest.

    Raises:
        OutOfTime: see `train`.
        UserError: --lora without --base.
    """
    if args.lora and not args.base:
        raise UserError("--lora: adapts a pretrained model; name one with --base")
    task_level = level(args.level)
    if args.base:
        receiver = load_with_lora(args.base, args.lora, args.seed)
    else:
        receiver = from_scratch(task_level, args.width, args.layers, args.seed)
    receiver.model.to(default_device())
    before = seeds_before(receiver, task_level)
    commands = train(receiver, task_level, args, before.stop, until)
    if args.lora:
        adapter = args.adapter or args.out / "adapter"
        save_adapter(receiver, args.base, adapter)
        receiver = merge_adapter(args.base, adapter)
    seen = range(before.start, before.stop + args.samples // args.batch * args.batch)
    card = {
        "style": receiver.style_name,
        "level": task_level.name,
        "base": receiver.card["base"] if before else args.base,
        "train_seeds": f"{seen.start}:{seen.stop}",
        "samples": len(seen),
        "parameters": sum(p.numel() for p in receiver.model.parameters()),
        "held_out": {"part": "search", "seeds": f"0:{args.held_out}"},
        "commands": commands,
        **_measure(receiver, task_level, args.held_out),
    }
    digest = save(receiver, card, args.out)
    measured = "  ".join(f"{name} {card[name]['successes']}/{card[name]['n']}" for name in ("P1", "P0"))
    print(f"{measured}  digest {digest}  saved in {args.out}")
    return {**card, "digest": digest}


def _measure(receiver: Receiver, task_level: Level, count: int) -> dict[str, Any]:
    """Return the card's entries for P1 and P0, measured on `count` held-out episodes."""
    held_out = episodes(task_level, range(count), "search")
    entries = {}
    for name, with_message in (("P1", True), ("P0", False)):
        successes = count_solved(receiver, held_out, with_message)
        low, high = wilson(successes, count)
        entries[name] = {"successes": successes, "n": count, "ci95": [round(low, 4), round(high, 4)]}
    return entries


def save(receiver: Receiver, card: dict[str, Any], out: Path) -> str:
    """Save a receiver in Hugging Face format, with its card; return the digest of the saved files."""
    out.mkdir(parents=True, exist_ok=True)
    receiver.model.save_pretrained(out)
    receiver.tokenizer.save_pretrained(out)
    write_json(out / CARD, card)
    load_receiver.cache_clear()
    digest = load_receiver(str(out), device="cpu").digest
    (out / "README.md").write_text(model_card(card, digest))
    return digest


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m m2ray.train_receiver",
        description="Train a receiver on the text form of the task, and save it in Hugging Face format.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to save the receiver in")
    parser.add_argument("--base", default=None, help="hub name or folder to start from; default: from scratch")
    parser.add_argument("--lora", type=int, default=0, help="LoRA rank; 0 trains all weights")
    parser.add_argument("--adapter", type=Path, help="with --lora: folder for its weights; default: OUT/adapter")
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
        "--resume",
        action="store_true",
        help="continue from the last checkpoint; with more --samples, train longer",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Train a receiver, then remove the training's state."""
    args = parser().parse_args(argv)
    args.command = shlex.join(["python", "-m", "m2ray.train_receiver", *argv])
    make(args)
    state_file(args.out).unlink()
    return DONE


def model_card(card: dict[str, Any], digest: str) -> str:
    """Return the receiver's README, in the format of the model hub."""
    base = card["base"]
    rows = "\n".join(
        f"| {name} ({meaning}) | {100 * card[name]['successes'] / card[name]['n']:.1f} % "
        f"| [{100 * card[name]['ci95'][0]:.1f}, {100 * card[name]['ci95'][1]:.1f}] % | {card[name]['n']} |"
        for name, meaning in (("P1", "message as text"), ("P0", "no message"))
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

Digest {digest}. Trained by these commands, in this order:

{chr(10).join("    " + command for command in card["commands"])}
"""
