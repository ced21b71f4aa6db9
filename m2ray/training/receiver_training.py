# NEWDOC
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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from m2ray.codec.tensor_file import load_tensors, restore_training, save_tensors, training_tensors
from m2ray.config.trial import parse_seeds
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode, draw_episode
from m2ray.tasks.level import Level
from m2ray.util.errors import UserError

FIRST_SEED = 10_000_000


# Width from which a step in bfloat16 costs less than one in float32: at 64 it costs 1.6 times as much.
CASTS_PAY = 128


class OutOfTime(Exception):
    """The time that was given is over; what was done is kept, and the same call goes on from there."""


def build_tokenizer(size: Level) -> Any:
    """A word-level tokenizer over the words that a level's episodes can hold."""
    words = ["<end>", "A", "B", "?", ";", *size.words, "<unknown>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(";"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )


def from_scratch(size: Level, width: int, layers: int, seed: int) -> Receiver:
    """A randomly initialised Qwen2 of about a million parameters for the compact prompt style."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(size)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return Receiver(transformers.Qwen2ForCausalLM(config), tokenizer, "compact", "scratch", {})


def batch_loss(receiver: Receiver, batch: Sequence[Episode], withheld: Sequence[bool]) -> Tensor:
    """Mean cross-entropy per answer token of a batch, in nats, each row with its message or without."""
    layout = receiver.layout(batch, ["" if gone else e.message for e, gone in zip(batch, withheld, strict=True)])
    # What all rows start with is read anew each time: the weights that read it are being trained.
    layout = layout._replace(cached_B=torch.zeros_like(layout.cached_B))
    frame = receiver.answer_frame(batch[0].level)
    targets_BVN = torch.where(
        torch.tensor(withheld, device=receiver.device)[:, None, None],
        receiver.targets(batch, with_message=False),
        receiver.targets(batch),
    )
    logits_BAW = receiver.logits(layout, None, len(frame.ids_A))
    return answer_nll(logits_BAW.float(), frame, targets_BVN).mean()


def count_solved(receiver: Receiver, played: Sequence[Episode], with_message: bool) -> int:
    """Episodes solved greedily."""
    solved = 0
    for start in range(0, len(played), 250):
        batch = played[start : start + 250]
        texts = receiver.decode(batch, [e.message if with_message else "" for e in batch])
        pairs = zip(batch, texts, strict=True)
        solved += sum(verify(e, text, receiver.style.answer).success for e, text in pairs)
    return solved


def seeds_before(receiver: Receiver, size: Level) -> range:
    """The training seeds of the level that a base has seen already; empty for a base from elsewhere."""
    if receiver.card.get("level") != size.name:
        return range(FIRST_SEED, FIRST_SEED)
    return parse_seeds(receiver.card["train_seeds"])


def state_file(out: Path) -> Path:
    """Where a training that is under way keeps its state."""
    return out.with_name(out.name + ".training.safetensors")


def train(receiver: Receiver, size: Level, args: argparse.Namespace, first_seed: int, until: float) -> list[str]:
    """Optimise the receiver; with a state file from an interrupted or shorter run, go on from there.

    Returns:
        The commands, in order, that made it what it is.

    Raises:
        OutOfTime: the clock reached `until`; the step that was under way is finished and saved.
    """
    model = receiver.model
    trained = [p for n, p in model.named_parameters() if not args.lora or "lora_" in n]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    weights = torch.nn.ParameterList(trained)  # all that a checkpoint needs: the rest is the base
    resume_file = state_file(args.out)
    steps, first, commands = args.samples // args.batch, 0, [*receiver.card.get("commands", []), args.command]
    undecisive = ("resume", "out", "adapter", "samples", "command")
    settings = {k: str(v) for k, v in sorted(vars(args).items()) if k not in undecisive}
    if args.resume and resume_file.is_file():
        tensors, meta = load_tensors(resume_file)
        if meta["settings"] != settings:
            raise UserError(f"{resume_file}: made with other settings; repeat them or remove the file")
        restore_training(tensors, weights, optimizer)
        first, commands = meta["step"], meta["commands"]
        if commands[-1] != args.command:
            commands = [*commands, args.command]
    started, mean_loss = time.time(), 0.0
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = (
            args.lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        )
        seeds = range(first_seed + step * args.batch, first_seed + (step + 1) * args.batch)
        batch = [draw_episode(size, seed, "train") for seed in seeds]
        chance = torch.rand(args.batch, generator=torch.Generator().manual_seed(args.seed * 1_000_003 + step))
        with torch.autocast(receiver.device.type, torch.bfloat16, enabled=receiver.width >= CASTS_PAY):
            loss = batch_loss(receiver, batch, (chance < args.withhold).tolist())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"step {step}: the loss is {loss.item()}; lower --lr")
        mean_loss = loss.item() if step == first else 0.98 * mean_loss + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rate = (step + 1 - first) / (time.time() - started)
            left = (steps - step - 1) / rate / 60
            print(
                f"step {step + 1}/{steps}  loss {mean_loss:.4f}  {rate * args.batch:.0f} samples/s  "
                f"{left:.1f} min left",
                flush=True,
            )
        late = time.monotonic() >= until
        if (step + 1) % args.save_every == 0 or step + 1 == steps or late:
            meta = {"step": step + 1, "settings": settings, "commands": commands}
            save_tensors(resume_file, training_tensors(weights, optimizer), meta)
        if late:
            raise OutOfTime(f"after training step {step + 1} of {steps}")
    model.requires_grad_(False)
    return commands
