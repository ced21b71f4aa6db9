"""Training of a receiver on the text form of the task.

The message is present, or withheld in a share of the samples, so that the receiver learns both to use a message
and to guess evenly without one. Targets are exact: instead of one sampled solution, the distribution of each value
over the remaining solutions, given the values before it. Seeds are training seeds, and messages are those of the
training split: no message of an evaluation split is ever seen.
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
from m2ray.config.task import parse_seeds
from m2ray.receiver.model.causal_model import FULL_ATTENTION
from m2ray.receiver.prompts import CARD
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode, draw_episode
from m2ray.tasks.level import Level
from m2ray.util.errors import UserError

FIRST_SEED = 10_000_000
SEED_STRIDE = 1_000_003  # keeps the withheld messages of different training seeds apart
WARMUP_STEPS, LOG_STEPS = 200, 100
FINAL_LR_SHARE = 0.02  # of --lr, at the end of the cosine schedule
BFLOAT16_MIN_WIDTH = 128  # below, a step in bfloat16 costs more than in float32: at 64, 1.6 times as much


class OutOfTime(Exception):
    """The time limit was reached. The state is saved, and the same call resumes from it."""


def build_tokenizer(level: Level) -> Any:
    """Return a word-level tokenizer with all words of a level's episodes."""
    words = ["<end>", "A", "B", "?", ";", *level.words, "<unknown>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(";"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )


def from_scratch(level: Level, width: int, layers: int, seed: int) -> Receiver:
    """Return a randomly initialized Qwen2 for the compact prompt style; a million parameters by default."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(level)
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
    return Receiver(transformers.Qwen2ForCausalLM(config), tokenizer, "compact", "scratch", {}, FULL_ATTENTION)


def batch_loss(receiver: Receiver, batch: Sequence[Episode], withheld: Sequence[bool]) -> Tensor:
    """Return the mean cross-entropy per answer token, in nats; rows whose message is withheld have no text."""
    layout = receiver.layout(batch, ["" if gone else e.message for e, gone in zip(batch, withheld, strict=True)])
    # No KV cache: the weights that compute it are being trained.
    layout = layout._replace(cached_B=torch.zeros_like(layout.cached_B))
    frame = receiver.answer_frame(batch[0].level)
    targets_BVN = torch.where(
        torch.tensor(withheld, device=receiver.device)[:, None, None],
        receiver.targets(batch, with_message=False),
        receiver.targets(batch),
    )
    logits_BAW = receiver.logits(layout, None, len(frame.ids_A))
    return answer_nll(logits_BAW.float(), frame, targets_BVN).mean()


def count_solved(receiver: Receiver, episodes: Sequence[Episode], with_message: bool) -> int:
    """Return the number of episodes solved by greedy decoding, with the message as text or without it."""
    solved = 0
    for start in range(0, len(episodes), 250):
        batch = episodes[start : start + 250]
        answers = receiver.decode(batch, [e.message if with_message else "" for e in batch])
        pairs = zip(batch, answers, strict=True)
        solved += sum(verify(e, answer, receiver.style.answer).success for e, answer in pairs)
    return solved


def seeds_before(receiver: Receiver, level: Level) -> range:
    """Return the level's seeds that a base was trained on, by its card; empty for a base from elsewhere.

    Raises:
        UserError: the card names the level but not its seeds.
    """
    if receiver.card.get("level") != level.name:
        return range(FIRST_SEED, FIRST_SEED)
    try:
        return parse_seeds(receiver.card["train_seeds"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"receiver {receiver.name}: {CARD} names level {level.name} but no valid train_seeds; write them as "
            "0:1000"
        ) from None


def state_file(out: Path) -> Path:
    """Return the file that holds the state of a training in progress."""
    out = out.resolve()  # so that it has a name, also where it is given as `.`
    return out.with_name(f"{out.name}.training.safetensors")


def train(receiver: Receiver, level: Level, args: argparse.Namespace, first_seed: int, until: float) -> list[str]:
    """Train a receiver in place; with --resume, from the state that an interrupted or shorter run saved.

    Args:
        receiver: The receiver; with --lora, only its LoRA weights are trained.
        level: The task.
        args: The options of `m2ray.cli.receivers.train_receiver.parser`, and `command`, which the card names.
        first_seed: Seed of the first training episode.
        until: Time limit, on the monotonic clock.

    Returns:
        The commands, in order, that trained the receiver.

    Raises:
        OutOfTime: `until` is reached; the current step is finished and saved first.
        UserError: the state to resume from was made with other settings, or the training diverged.
    """
    return ReceiverTraining(receiver, level, args, first_seed).run(until)


class ReceiverTraining:
    """Training of one receiver; the arguments are those of `train`."""

    def __init__(self, receiver: Receiver, level: Level, args: argparse.Namespace, first_seed: int) -> None:
        self.receiver, self.level, self.args, self.first_seed = receiver, level, args, first_seed
        self.trained = [p for n, p in receiver.model.named_parameters() if not args.lora or "lora_" in n]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.trained, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
        # All that a checkpoint needs: with LoRA, the other weights are those of the base.
        self.weights = torch.nn.ParameterList(self.trained)
        self.steps, self.step = args.samples // args.batch, 0
        self.commands = [*receiver.card.get("commands", []), args.command]
        may_change = ("resume", "out", "adapter", "samples", "command")
        self.settings = {key: str(value) for key, value in sorted(vars(args).items()) if key not in may_change}
        self.file = state_file(args.out)
        if args.resume and self.file.is_file():
            self._resume()

    def _resume(self) -> None:
        tensors, meta = load_tensors(self.file)
        for name, value in self.settings.items():
            earlier = meta["settings"].get(name)
            if earlier != value:
                option = name.replace("_", "-")
                raise UserError(
                    f"{self.file}: made with --{option} {earlier}, not {value}; use that, or remove the file"
                )
        restore_training(tensors, self.weights, self.optimizer)
        self.step, self.commands = meta["step"], meta["commands"]
        if self.commands[-1] != self.args.command:
            self.commands = [*self.commands, self.args.command]

    def run(self, until: float) -> list[str]:
        """Run the remaining steps; see `train`."""
        started, first, mean_loss = time.time(), self.step, 0.0
        while self.step < self.steps:
            loss = self._train_step()
            mean_loss = loss if self.step == first else 0.98 * mean_loss + 0.02 * loss
            self.step += 1
            last, late = self.step == self.steps, time.monotonic() >= until
            if self.step % LOG_STEPS == 0 or last:
                self._print_progress(mean_loss, (self.step - first) / (time.time() - started))
            if self.step % self.args.save_every == 0 or last or late:
                self._save()
            if late:
                raise OutOfTime(f"after training step {self.step} of {self.steps}")
        self.receiver.model.requires_grad_(False)
        return self.commands

    def _train_step(self) -> float:
        """Run one optimizer step and return its loss.

        Raises:
            UserError: the loss or its gradient is not finite. The weights are then those of the step before.
        """
        self.optimizer.param_groups[0]["lr"] = self._learning_rate()
        batch, withheld = self._batch()
        bfloat16 = self.receiver.width >= BFLOAT16_MIN_WIDTH
        with torch.autocast(self.receiver.device.type, torch.bfloat16, enabled=bfloat16):
            loss = batch_loss(self.receiver, batch, withheld)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        if not math.isfinite(loss.item() + norm.item()):
            values = f"loss {loss.item():.3g} and gradient norm {norm.item():.3g}"
            raise UserError(f"training step {self.step}: {values}; lower --lr")
        self.optimizer.step()
        return loss.item()

    def _learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * self.step / self.steps)) / 2
        lr: float = self.args.lr * warmup * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)
        return lr

    def _batch(self) -> tuple[list[Episode], list[bool]]:
        """Return the episodes of the next step, and which of them lose their message."""
        size = self.args.batch
        seeds = range(self.first_seed + self.step * size, self.first_seed + (self.step + 1) * size)
        batch = [draw_episode(self.level, seed, "train") for seed in seeds]
        generator = torch.Generator().manual_seed(self.args.seed * SEED_STRIDE + self.step)
        return batch, (torch.rand(size, generator=generator) < self.args.withhold).tolist()

    def _print_progress(self, mean_loss: float, steps_per_s: float) -> None:
        minutes = (self.steps - self.step) / steps_per_s / 60
        samples = steps_per_s * self.args.batch
        print(
            f"step {self.step}/{self.steps}  loss {mean_loss:.4f}  {samples:.0f} samples/s  "
            f"{minutes:.1f} min left",
            flush=True,
        )

    def _save(self) -> None:
        meta = {"step": self.step, "settings": self.settings, "commands": self.commands}
        save_tensors(self.file, training_tensors(self.weights, self.optimizer), meta)
