"""The training loop of one codec, in one process or in several that see the same global batch.

A step runs top to bottom: `Trainer.run` -> `next_batch` -> `joint_backward` (the loss of `m2ray.training.step` and
its gradient) -> `apply_step` (optimizer, log) -> `_end_epoch` (search score, checkpoint, report).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from m2ray.codec.checkpoints import SENT, TASK_FILE
from m2ray.codec.sent_size import sent_size
from m2ray.codec.tensor_file import load_tensors, restore_training, save_tensors, training_tensors
from m2ray.codec.untrained import untrained_codec
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.search_score import search_score
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import value_nll
from m2ray.tasks.episodes import AnyEpisode
from m2ray.training.distributed import world, world_mean
from m2ray.training.microbatch import MicrobatchSize
from m2ray.training.objectives import Heads
from m2ray.training.schedule import SlotAnnealer, is_collapsed, learning_rate, training_batch
from m2ray.training.start_weights import check_layers, load_start_weights
from m2ray.training.step import CodecLoss, Loss, backpropagate, run_batched
from m2ray.training.trackers import check_installed, tracking
from m2ray.util.errors import UserError
from m2ray.util.files import write_json
from m2ray.util.memory import free_memory, is_out_of_memory
from m2ray.util.strict_yaml import validate

Report = Callable[[dict[str, Any], Path], None]

STATE_FILE = "training.safetensors"
OUT_OF_MEMORY = "out of memory with one row at a time; use a smaller batch_size, codec or receiver"
SAVE_S = 60.0  # training time that a kill costs at most, besides an epoch's evaluation
PROBE_SAMPLES = 64  # messages on which the value of the text is measured


class TrainingFailed(RuntimeError):
    """The optimization broke down; the message says at which step and how."""


class Trainer:
    """Trains one codec a step at a time; resumes where an interrupted run left its state in `folder`.

    Args:
        config: The configuration.
        seed: Training seed: of initialization and sample order.
        receiver: The frozen receiver.
        folder: Folder for `epoch-NN/` checkpoints and the state to resume from. All workers see the same folder.
        report: Called by every worker after each epoch with metrics and the checkpoint's folder.
        about: More entries for each checkpoint's record; `config`, the configuration's name, at least.

    Raises:
        UserError: the state in `folder` has other settings, or a tracker is not installed or does not start.
    """

    def __init__(
        self,
        config: TrialConfig,
        seed: int,
        receiver: Receiver,
        folder: Path,
        report: Report,
        about: dict[str, Any],
    ) -> None:
        check_installed(config.trackers)
        check_layers(config, receiver)
        self.source = open_source(config.task)
        self._task_file = config.task.file_digest
        self.source.check_disjoint(config.splits)
        self.source.check_receiver(receiver, config.splits)
        self.config, self.seed, self.receiver, self.folder = config, seed, receiver, folder
        self.report, self.about = report, about
        self.rank, self.workers = world()
        self.seeds = self.source.seeds(config.splits, "train")
        self.search_episodes = self.source.get(self.source.seeds(config.splits, "search"), "search")
        self.microbatch = MicrobatchSize(folder, 2 * config.training.batch_size // self.workers)
        self._nll_without, self._nll_text = self._text_value()
        self._closing = ExitStack()
        self._begin_or_resume()
        # One worker tracks for all.
        tracked = config if self.rank == 0 else config.model_copy(update={"trackers": []})
        self._track = self._closing.enter_context(tracking(tracked, seed, about["config"], folder, self.step))

    # --- start ---

    def _text_value(self) -> tuple[float, float]:
        """Return the receiver's nats per token of the answer without the message, and with it as text."""
        probe = training_batch(self.source, self.seeds, range(PROBE_SAMPLES), self.seed)
        without = value_nll(self.receiver, probe, [""] * len(probe), None, "message")
        text = value_nll(self.receiver, probe, [episode.message for episode in probe], None, "message")
        return float(without.mean()), float(text.mean())

    def _begin_or_resume(self) -> None:
        tensors, meta = self._read_state()
        resumes = bool(meta and meta["step"])
        self._begin(meta["restart"] if meta else 0, None if resumes else self.config.training.start)
        if resumes:
            restore_training(tensors, self.loss_module, self.optimizer)
            self.step, self.spent = meta["step"], meta["seconds"]
            self.history += meta["history"]
            self.annealer.k, self.annealer.held, self.annealer.nll = meta["anneal"]

    def _read_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        file = self.folder / STATE_FILE
        if not file.is_file():
            return {}, {}
        tensors, meta = load_tensors(file)
        tree, *rest = json.loads(meta["settings"])
        # Validated, because an earlier version may not have had all settings.
        trial = validate(TrialConfig, tree, f"{file}: settings")
        now = [self.config.training_settings, self.seed, self.receiver.digest]
        if [trial.training_settings, *rest] != now:
            raise UserError(f"{file}: made with other settings; choose another name or remove the folder")
        if meta.get(TASK_FILE, self._task_file) != self._task_file:  # an earlier version did not record it
            raise UserError(
                f"{self.config.task.file}: changed since {file} was made; restore it, choose another name, or "
                "remove the folder"
            )
        return tensors, meta

    def _begin(self, restart: int, start: str | None) -> None:
        """Set up fresh weights, or those of the checkpoint `start`."""
        config, training, receiver = self.config, self.config.training, self.receiver
        codec = untrained_codec(config, self.seed, receiver, restart)
        if start:
            load_start_weights(Path(start), codec, config, receiver)
        heads = Heads(config, receiver).to(receiver.device)
        self.loss_module = CodecLoss(config, codec, heads, receiver)
        learns = any(parameter.requires_grad for parameter in self.loss_module.parameters())
        self._wrapped: nn.Module = (
            DistributedDataParallel(self.loss_module) if self.workers > 1 and learns else self.loss_module
        )
        self.optimizer = torch.optim.AdamW(
            self.loss_module.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        self.annealer = SlotAnnealer(config, training.steps, self._nll_without, self._nll_text)
        self.restart, self.step, self.spent = restart, 0, 0.0
        self.history: list[dict[str, float]] = []
        self._started = self._saved = time.monotonic()

    # --- the loop ---

    @property
    def done(self) -> bool:
        """True once all steps are done."""
        return self.step >= self.config.training.steps

    @property
    def checkpoint(self) -> Path:
        """Folder of the latest epoch's checkpoint."""
        return self.folder / f"epoch-{self.step // self.config.training.epoch_steps:02d}"

    def run(self) -> Path:
        """Run all remaining steps; return the last checkpoint's folder."""
        with self._closing:
            while not self.done:
                loss, metrics = joint_backward([self])[0] if self.workers == 1 else self._distributed_backward()
                self.apply_step(loss, metrics)
            return self.checkpoint

    def next_batch(self) -> tuple[Sequence[AnyEpisode], int, int, bool]:
        """Return the arguments of `CodecLoss.loss_steps` for the next step."""
        size = self.config.training.batch_size
        samples = range(self.step * size, (self.step + 1) * size)
        self.loss_module.train()
        batch = training_batch(self.source, self.seeds, samples, self.seed)
        return batch, self.annealer.k, self.step, self._logs_step

    @property
    def _logs_step(self) -> bool:
        training = self.config.training
        return self.step % training.log_every == 0 or (self.step + 1) % training.epoch_steps == 0

    def autocast(self) -> Any:
        """Return the context of the forward passes."""
        if self.config.training.precision == "bfloat16":
            return torch.autocast(self.receiver.device.type, torch.bfloat16)
        return nullcontext()

    def _distributed_backward(self) -> Loss:
        """Run forward and backward of the next step together with the other workers.

        Raises:
            TrainingFailed: memory ran out. The other workers wait for this one in the middle of the step, so all
                start again, with half as many rows at once.
        """
        self.loss_module.rows_at_once = self.microbatch.rows
        try:
            with self.autocast():
                loss, metrics = self._wrapped(*self.next_batch())
            backpropagate(loss)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.microbatch.halve():
                raise TrainingFailed(f"out of memory; {self.microbatch.rows} rows at once from now on") from None
            raise TrainingFailed(OUT_OF_MEMORY) from None
        return loss, metrics

    def apply_step(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Update the weights by the gradient that the backward pass left, then log, save or end the epoch.

        Raises:
            TrainingFailed: the loss or its gradient is not finite.
        """
        training, logs = self.config.training, self._logs_step
        lr = learning_rate(self.config, self.step, training.steps, training.epoch_steps) * 0.5**self.restart
        self.optimizer.param_groups[0]["lr"] = lr
        norm = float(torch.nn.utils.clip_grad_norm_(self.loss_module.parameters(), training.grad_clip))
        means = world_mean(torch.stack([loss.detach(), *metrics.values()]))
        values = dict(zip(["loss", *metrics], means.tolist(), strict=True))
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise TrainingFailed(f"loss {values['loss']} and gradient norm {norm} at step {self.step}; lower lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if "nll" in values:
            self.annealer.update(self.step, values["nll"])
        self.step += 1
        ends_epoch = self.step % training.epoch_steps == 0
        if logs:
            self.history.append({"step": self.step, "k": self.annealer.k, "grad_norm": norm, "lr": lr, **values})
            if not ends_epoch:
                self._track(self.history[-1])
        if ends_epoch:
            self._end_epoch()
        elif self.rank == 0 and time.monotonic() - self._saved > SAVE_S:
            self._save_state(gives_up=False)

    def _end_epoch(self) -> None:
        """Score on the search split, save, report; restart where the codec ignores its message."""
        self.loss_module.eval()
        metrics = self._epoch_metrics()
        self._track(metrics)
        training, epoch = self.config.training, metrics["epoch"]
        at_half = epoch == math.ceil(training.epochs / 2) < training.epochs
        gives_up = at_half and metrics["collapsed"] and self.restart < training.restarts
        checkpoint = self.checkpoint
        if self.rank == 0:
            record = {**self.about, "seed": self.seed, "step": self.step, "trial": self.config.model_dump()}
            if self._task_file:
                record[TASK_FILE] = self._task_file
            messages = [episode.message for episode in self.search_episodes]
            record[SENT] = sent_size(self.loss_module.codec, messages)
            kept = {name: value for name, value in metrics.items() if name != "episode_nll"}
            self.loss_module.codec.save(checkpoint, {**record, "receiver": self.receiver.name, "metrics": kept})
            write_json(self.folder / "history.json", self.history)
            self._save_state(gives_up)
        self.report(metrics, checkpoint)
        if gives_up:
            self._begin(self.restart + 1, training.start)

    def _epoch_metrics(self) -> dict[str, Any]:
        codec, evaluation = self.loss_module.codec, self.config.evaluation
        return {
            **self.history[-1],
            **search_score(self.receiver, codec, self.search_episodes, evaluation),
            "recovered": self.annealer.recovered(),
            "collapsed": is_collapsed(self.history, self._nll_without - self._nll_text),
            "restart": self.restart,
            "epoch": self.step // self.config.training.epoch_steps,
            "seconds": self._seconds(),
            **({"rows_at_once": self.microbatch.rows} if self.microbatch.rows else {}),
        }

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self._started

    def _save_state(self, gives_up: bool) -> None:
        settings = [self.config.model_dump(exclude={"trackers"}), self.seed, self.receiver.digest]
        meta = {
            "settings": json.dumps(settings, sort_keys=True),
            "step": 0 if gives_up else self.step,
            "history": self.history,
            "restart": self.restart + gives_up,
            "anneal": [self.annealer.k, self.annealer.held, self.annealer.nll],
            "seconds": self._seconds(),
            TASK_FILE: self._task_file,
        }
        save_tensors(self.folder / STATE_FILE, training_tensors(self.loss_module, self.optimizer), meta)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Close the trackers."""
        self._closing.close()


def train(
    config: TrialConfig,
    training_seed: int,
    receiver: Receiver,
    folder: Path,
    report: Report,
    about: dict[str, Any],
) -> Path:
    """Train one codec to its end; the arguments are those of `Trainer`.

    Returns:
        The last checkpoint's folder.

    Raises:
        TrainingFailed: the loss is no longer finite.
        UserError: see `Trainer`.
    """
    return Trainer(config, training_seed, receiver, folder, report, about).run()


def joint_backward(trainers: Sequence[Trainer]) -> list[Loss]:
    """Run forward and backward of each trainer's next step, their rows in common forward passes.

    Where memory runs out, the receiver runs half as many rows at once from then on.

    Args:
        trainers: Trainers on one receiver, of one precision, each without other workers.

    Returns:
        The arguments of each `Trainer.apply_step`.

    Raises:
        TrainingFailed: memory does not suffice for one row at a time either.
    """
    buffers = [(buffer, buffer.clone()) for trainer in trainers for buffer in trainer.loss_module.buffers()]
    while True:
        try:
            return _joint_backward(trainers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        trainers[0].receiver.clear_caches()
        free_memory()
        if not all([trainer.microbatch.halve() for trainer in trainers]):
            raise TrainingFailed(OUT_OF_MEMORY)
        # Undo what the failed attempt changed.
        for trainer in trainers:
            trainer.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _joint_backward(trainers: Sequence[Trainer]) -> list[Loss]:
    rows_at_once = min((t.microbatch.rows for t in trainers if t.microbatch.rows), default=None)
    with trainers[0].autocast():
        losses = [trainer.loss_module.loss_steps(*trainer.next_batch()) for trainer in trainers]
        results = run_batched(trainers[0].receiver, losses, rows_at_once)
    backpropagate(torch.stack([loss for loss, _ in results]).sum())
    return results
