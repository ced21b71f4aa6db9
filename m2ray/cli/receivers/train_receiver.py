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
import importlib.util
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from m2ray.cli.runner import DONE, Parser
from m2ray.judging.statistics import wilson
from m2ray.receiver.loading import default_device, load_receiver, resolve_receiver
from m2ray.receiver.prompts import CARD
from m2ray.tasks.episodes import draw_episode, episodes
from m2ray.tasks.level import Level
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable, write_json

if TYPE_CHECKING:
    from m2ray.receiver.receiver import Receiver  # loads torch

WIDTH_STEP = 8  # of a model from scratch: it has 4 heads, and rotary embeddings need an even width of each


class Bounds(NamedTuple):
    """The smallest and the largest value of an option."""

    low: int
    high: int


# The upper bounds only stop a slip of the finger, which would exhaust the memory or run for years.
BOUNDS = {
    "lora": Bounds(0, 4096),
    "samples": Bounds(1, 10**12),
    "batch": Bounds(1, 65_536),
    "withhold": Bounds(0, 1),
    "width": Bounds(WIDTH_STEP, 8192),
    "layers": Bounds(1, 128),
    "seed": Bounds(0, 2**32 - 1),
    "held_out": Bounds(1, 1_000_000),
    "save_every": Bounds(1, 10**9),
}


def make(args: argparse.Namespace, until: float = math.inf) -> dict[str, Any]:
    """Train a receiver, measure P0 and P1 on held-out episodes, and save it with a card.

    The training's state stays beside `args.out`.

    Args:
        args: Options that `parser` reads, and `command`, which the card names.
        until: Time limit, on the monotonic clock.

    Returns:
        The card, with the receiver's digest.

    Raises:
        OutOfTime: see `m2ray.training.receiver_training.train`.
        UserError: see `check_options` and `m2ray.training.receiver_training.train`.
    """
    check_options(args)
    # Loads torch: bad input is refused before that.
    from m2ray.training.lora import load_with_lora, merge_adapter, save_adapter
    from m2ray.training.receiver_training import from_scratch, seeds_before, train

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
        "base": receiver.card.get("base") if before else args.base,
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


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot work, before anything is loaded.

    Raises:
        UserError: names the option and the fix.
    """
    for name, (low, high) in BOUNDS.items():
        value = getattr(args, name)
        if not low <= value <= high:  # also true for nan
            raise UserError(f"--{_option(name)} {value}: out of range; use {low} to {high}")
    if not 0 < args.lr < math.inf:
        raise UserError(f"--lr {args.lr}: out of range; use a number above 0, such as 0.0015")
    if args.samples < args.batch:
        raise UserError(
            f"--samples {args.samples}: do not fill a batch of {args.batch}; use more, or lower --batch"
        )
    _check_model(args)
    _check_folders(args)
    try:
        for part in ("train", "search"):  # of the training and of the held-out episodes
            draw_episode(level(args.level), 0, part)
    except UserError as error:
        raise UserError(f"--level: {error}") from None


def _check_model(args: argparse.Namespace) -> None:
    """Refuse options on the model that contradict each other, and a base that is not there."""
    if args.base is None:
        if args.width % WIDTH_STEP:
            raise UserError(f"--width {args.width}: not a multiple of {WIDTH_STEP}; use one, such as 128")
        for name in ("lora", "adapter"):
            if getattr(args, name):
                raise UserError(f"--{name}: adapts a pretrained model; name one with --base, or leave it out")
        return
    for name in ("width", "layers"):
        if getattr(args, name) != parser().get_default(name):
            raise UserError(f"--{name}: the size of a model from scratch; leave it or --base out")
    if args.adapter and not args.lora:
        raise UserError("--adapter: the folder of LoRA weights; give their rank with --lora, or leave it out")
    if args.lora and importlib.util.find_spec("peft") is None:
        raise UserError("--lora: peft is not installed; run `pip install -e '.[receivers]'`")
    try:
        resolve_receiver(args.base)
    except UserError as error:
        raise UserError(f"--base: {error}") from None


def _check_folders(args: argparse.Namespace) -> None:
    """Refuse folders that cannot be written, and an --out that would replace the base."""
    if not args.out.resolve().name:
        raise UserError(f"--out {args.out}: has no name; give a folder below it")
    check_writable("--out", args.out)
    check_writable("--out", args.out.resolve().parent)  # the training's state is saved there
    if args.adapter:
        check_writable("--adapter", args.adapter)
    if args.base and Path(resolve_receiver(args.base)).resolve() == args.out.resolve():
        raise UserError(f"--out {args.out}: the folder of --base, which it would replace; choose another one")


def _option(name: str) -> str:
    """Return how an option is written on the command line."""
    return name.replace("_", "-")


def _measure(receiver: Receiver, task_level: Level, count: int) -> dict[str, Any]:
    """Return the card's entries for P1 and P0, measured on `count` held-out episodes."""
    from m2ray.training.receiver_training import count_solved  # loads torch: see `make`

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
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to save the receiver in")
    add("--base", help="hub name or folder to start from; default: from scratch")
    add("--lora", type=int, default=0, help="with --base: LoRA rank; 0 trains all weights")
    add("--adapter", type=Path, help="with --lora: folder for its weights; default: OUT/adapter")
    add("--level", default="easy", help="level of the task; default: easy")
    add("--samples", type=int, default=480_000, help="training samples; default: 480000")
    add("--batch", type=int, default=64, help="samples per step; default: 64")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate; default: 0.0015")
    add("--withhold", type=float, default=0.3, help="share of samples without the message; default: 0.3")
    add("--width", type=int, default=128, help="from scratch: width of the model, a multiple of 8; default: 128")
    add("--layers", type=int, default=4, help="from scratch: number of layers; default: 4")
    add("--seed", type=int, default=0, help="training seed; default: 0")
    add("--held-out", type=int, default=1000, help="held-out episodes for P0 and P1; default: 1000")
    add("--save-every", type=int, default=500, help="steps between saved states; default: 500")
    add("--resume", action="store_true", help="continue an interrupted training; --samples may be higher")
    return parser


def main(argv: Sequence[str]) -> int:
    """Train a receiver, then remove the training's state."""
    args = parser().parse_args(argv)
    args.command = shlex.join(["python", "-m", "m2ray.train_receiver", *argv])
    check_options(args)
    # Loads torch: bad input is refused before that.
    from m2ray.training.receiver_training import state_file

    state = state_file(args.out)
    if args.resume and not state.is_file():
        raise UserError(
            f"--resume: {state} does not exist, so there is no training to resume; leave --resume out, or train a "
            "finished receiver further with --base"
        )
    make(args)
    state.unlink()
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
