"""The training loop of one codec, in one process or in many that see the same global batch."""

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

from m2ray.codec.codec import Codec, load_codec
from m2ray.codec.tensor_file import load_tensors, restore_training, save_tensors, training_tensors
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.search_score import search_score
from m2ray.receiver.episode_source import EpisodeSource, check_receiver_seeds
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import value_nll
from m2ray.tasks.episodes import Episode
from m2ray.training.distributed import world, world_mean
from m2ray.training.microbatch import MicrobatchSize
from m2ray.training.objectives import Heads
from m2ray.training.schedule import SlotAnnealer, is_collapsed, learning_rate, training_batch
from m2ray.training.step import CodecLoss, run_batched
from m2ray.training.trackers import check_installed, tracking
from m2ray.util.errors import UserError
from m2ray.util.files import write_json
from m2ray.util.memory import free_memory, is_out_of_memory
from m2ray.util.strict_yaml import validate

Report = Callable[[dict[str, Any], Path], None]


OUT_OF_MEMORY = "out of memory with one row at a time; use a smaller batch_size, codec or receiver"


SAVE_S = 60.0  # what a kill costs at most, besides an epoch's evaluation


class TrainingFailed(RuntimeError):
    """The optimisation broke down; the message says at which step and how."""


class Trainer:
    """One codec's training, a step at a time; goes on from `folder` where an interrupted run left its state.

    Args:
        config: The configuration.
        seed: Of initialisation and sample order.
        receiver: Frozen.
        folder: For `epoch-NN/` checkpoints and the state to resume from. All workers see the same folder.
        report: Called by every worker after each epoch with metrics and the checkpoint's folder.
        about: More to write into each checkpoint's record; `config`, the configuration's name, at least.

    Raises:
        UserError: the state in `folder` is of other settings, or a tracker is not installed or does not start.
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
        self.source = EpisodeSource(config.task)
        self.source.check_disjoint(config.splits)
        check_receiver_seeds(config, receiver)
        self.config, self.seed, self.receiver, self.folder = config, seed, receiver, folder
        self.report, self.about = report, about
        self.rank, self.workers = world()
        self.seeds = config.splits.seeds("train")
        self.search = self.source.get(config.splits.seeds("search"), "search")
        decisive = config.model_dump(exclude={"trackers"})
        self.settings = json.dumps([decisive, seed, receiver.digest], sort_keys=True)
        probe = training_batch(self.source, self.seeds, range(64), seed)
        self._worth = [
            float(value_nll(receiver, probe, texts, None, "message").mean())
            for texts in ([""] * len(probe), [episode.message for episode in probe])
        ]
        self.microbatch = MicrobatchSize(folder, 2 * config.training.batch_size // self.workers)
        self._closing = ExitStack()
        tensors, meta = self._saved()
        goes_on = bool(meta and meta["step"])
        self._begin(meta["restart"] if meta else 0, None if goes_on else config.training.start)
        if goes_on:
            restore_training(tensors, self.loss_module, self.optimizer)
            self.step, self.spent = meta["step"], meta["seconds"]
            self.history += meta["history"]
            self.annealer.k, self.annealer.held, self.annealer.nll = meta["anneal"]
        # One worker tells them for all.
        tracked = config if self.rank == 0 else config.model_copy(update={"trackers": []})
        self._track = self._closing.enter_context(tracking(tracked, seed, about["config"], folder, self.step))

    def _saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        file = self.folder / "training.safetensors"
        if not file.is_file():
            return {}, {}
        tensors, meta = load_tensors(file)
        trial, *rest = json.loads(meta["settings"])
        # Through the model, for the settings that an earlier version did not have yet.
        trial = validate(TrialConfig, trial, f"{file}: settings").model_dump(exclude={"trackers"})
        if [trial, *rest] != json.loads(self.settings):
            raise UserError(f"{file}: made with other settings; choose another name or remove the folder")
        return tensors, meta

    def _begin(self, restart: int, start: str | None) -> None:
        """Fresh weights, or those of a checkpoint."""
        config, training, receiver = self.config, self.config.training, self.receiver
        torch.manual_seed(self.seed + 1_000_003 * restart)
        codec = Codec(config.codec, receiver).to(receiver.device)
        if start:
            load_start_weights(Path(start), codec, config, receiver)
        heads = Heads(config, receiver).to(receiver.device)
        self.loss_module = CodecLoss(config, codec, heads, receiver)
        self._wrapped: nn.Module = (
            DistributedDataParallel(self.loss_module) if self.workers > 1 else self.loss_module
        )
        self.optimizer = torch.optim.AdamW(
            self.loss_module.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        self.annealer = SlotAnnealer(config, training.steps, *self._worth)
        self.restart, self.step, self.spent = restart, 0, 0.0
        self.history: list[dict[str, float]] = []
        self._since = self._kept = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether all its steps are made."""
        return self.step >= self.config.training.steps

    @property
    def checkpoint(self) -> Path:
        """The last epoch's folder."""
        return self.folder / f"epoch-{self.step // self.config.training.epoch_steps:02d}"

    @property
    def _log(self) -> bool:
        training = self.config.training
        return self.step % training.log_every == 0 or (self.step + 1) % training.epoch_steps == 0

    def next_batch(self) -> tuple[list[Episode], int, int, bool]:
        """What `Trainee.ask` takes."""
        size = self.config.training.batch_size
        samples = range(self.step * size, (self.step + 1) * size)
        self.loss_module.train()
        return training_batch(self.source, self.seeds, samples, self.seed), self.annealer.k, self.step, self._log

    def apply_step(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Follow the gradient that a backward pass left, and whatever is due after the step.

        Raises:
            TrainingFailed: the loss or its gradient is not finite.
        """
        config, training, log = self.config, self.config.training, self._log
        lr = learning_rate(config, self.step, training.steps, training.epoch_steps) * 0.5**self.restart
        self.optimizer.param_groups[0]["lr"] = lr
        norm = float(torch.nn.utils.clip_grad_norm_(self.loss_module.parameters(), training.grad_clip))
        means = world_mean(torch.stack([loss.detach(), *parts.values()]))
        values = dict(zip(["loss", *parts], means.tolist(), strict=True))
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise TrainingFailed(f"loss {values['loss']} and gradient norm {norm} at step {self.step}; lower lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if "nll" in values:
            self.annealer.update(self.step, values["nll"])
        self.step += 1
        ends_epoch = self.step % training.epoch_steps == 0
        if log:
            self.history.append({"step": self.step, "k": self.annealer.k, "grad_norm": norm, "lr": lr, **values})
            if not ends_epoch:
                self._track(self.history[-1])
        if ends_epoch:
            self._end_epoch()
        elif self.rank == 0 and time.monotonic() - self._kept > SAVE_S:
            self._save(gives_up=False)

    def _end_epoch(self) -> None:
        """Score on the search split, save, report; start afresh where the codec ignores its message."""
        config, training, receiver = self.config, self.config.training, self.receiver
        self.loss_module.eval()
        epoch = self.step // training.epoch_steps
        metrics: dict[str, Any] = {
            **self.history[-1],
            **search_score(receiver, self.loss_module.codec, self.search, config.evaluation),
            "recovered": self.annealer.recovered(),
            "collapsed": is_collapsed(self.history, self.annealer.nll_without - self.annealer.nll_text),
            "restart": self.restart,
            "epoch": epoch,
            "seconds": self._seconds(),
            **({"rows_at_once": self.microbatch.rows} if self.microbatch.rows else {}),
        }
        self._track(metrics)
        at_half = epoch == math.ceil(training.epochs / 2) < training.epochs
        gives_up = at_half and metrics["collapsed"] and self.restart < training.restarts
        checkpoint = self.checkpoint
        if self.rank == 0:
            record = {**self.about, "seed": self.seed, "step": self.step, "trial": config.model_dump()}
            brief = {name: value for name, value in metrics.items() if name != "episode_nll"}
            self.loss_module.codec.save(checkpoint, {**record, "receiver": receiver.name, "metrics": brief})
            write_json(self.folder / "history.json", self.history)
            self._save(gives_up)
        self.report(metrics, checkpoint)
        if gives_up:
            self._begin(self.restart + 1, training.start)

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self._since

    def _save(self, gives_up: bool) -> None:
        meta = {
            "settings": self.settings,
            "step": 0 if gives_up else self.step,
            "history": self.history,
            "restart": self.restart + gives_up,
            "anneal": [self.annealer.k, self.annealer.held, self.annealer.nll],
            "seconds": self._seconds(),
        }
        tensors = training_tensors(self.loss_module, self.optimizer)
        save_tensors(self.folder / "training.safetensors", tensors, meta)
        self._kept = time.monotonic()

    def autocast(self) -> Any:
        """The context of its forward passes."""
        if self.config.training.precision == "bfloat16":
            return torch.autocast(self.receiver.device.type, torch.bfloat16)
        return nullcontext()

    def run(self) -> Path:
        """All steps that are left, with whatever workers there are; the last checkpoint's folder."""
        with self._closing:
            while not self.done:
                self.apply_step(*(joint_backward([self])[0] if self.workers == 1 else self._common_gradient()))
            return self.checkpoint

    def _common_gradient(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of the next step, with the other workers.

        Raises:
            TrainingFailed: memory does not suffice. The other workers wait for this one in the middle of the step,
                so that all begin again, with half as many rows at once.
        """
        self.loss_module.rows_at_once = self.microbatch.rows
        try:
            with self.autocast():
                loss, parts = self._wrapped(*self.next_batch())
            loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.microbatch.halve():
                raise TrainingFailed(f"out of memory; {self.microbatch.rows} rows at once from now on") from None
            raise TrainingFailed(OUT_OF_MEMORY) from None
        return loss, parts

    def close(self) -> None:
        """End what follows it."""
        self._closing.close()


def train(
    config: TrialConfig,
    training_seed: int,
    receiver: Receiver,
    folder: Path,
    report: Report,
    about: dict[str, Any],
) -> Path:
    """Train one codec to its end; the arguments are those of `Training`.

    Returns:
        The last checkpoint's folder.

    Raises:
        TrainingFailed: the loss is no longer finite.
        UserError: see `Training`.
    """
    return Trainer(config, training_seed, receiver, folder, report, about).run()


def joint_backward(trainings: Sequence[Trainer]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Forward and backward of the next step of each, their rows in common passes: what `Training.learn` takes.

    Where memory does not suffice the receiver reads half as many rows at once, from then on.

    Args:
        trainings: On one receiver, of one precision, without workers.

    Raises:
        TrainingFailed: memory does not suffice for one row at a time either.
    """
    buffers = [(buffer, buffer.clone()) for training in trainings for buffer in training.loss_module.buffers()]
    while True:
        try:
            return _joint_backward(trainings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        trainings[0].receiver.clear_caches()
        free_memory()
        if not all([training.microbatch.halve() for training in trainings]):
            raise TrainingFailed(OUT_OF_MEMORY)
        for training in trainings:
            training.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _joint_backward(trainings: Sequence[Trainer]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    at_once = min((training.microbatch.rows for training in trainings if training.microbatch.rows), default=None)
    with trainings[0].autocast():
        asking = [training.loss_module.loss_steps(*training.next_batch()) for training in trainings]
        results = run_batched(trainings[0].receiver, asking, at_once)
    torch.stack([loss for loss, _ in results]).sum().backward()  # type: ignore[no-untyped-call]
    return results


def load_start_weights(folder: Path, codec: Codec, config: TrialConfig, receiver: Receiver) -> None:
    """Give a codec the weights of a checkpoint, of the same form but for its k.

    Raises:
        UserError: there is none, it is of another receiver or form, or it was trained on another task, whose
            training messages may be those that this one is judged on.
    """
    start = load_codec(folder, receiver)
    if (start.record.get("trial") or {}).get("task") != config.task.model_dump():
        raise UserError(f"training.start: {folder}: trained on another task; use a checkpoint of the same")
    theirs, ours = (one.model_dump(exclude={"k"}) for one in (start.config, config.codec))
    if theirs != ours:
        differ = [f"codec.{key} is {theirs[key]}, not {ours[key]}" for key in ours if theirs[key] != ours[key]]
        raise UserError(
            f"training.start: {folder}: more than its k differs: {', '.join(differ)}; give both the same"
        )
    try:
        codec.load_state_dict(start.state_dict())
    except RuntimeError:
        raise UserError(
            f"training.start: {folder}: the encoder {config.codec.encoder} is made for one k; use {start.config.k}"
        ) from None
