"""The training loop of one codec: in one process, or in many that see the same global batch.

Shapes: B rows of this worker, H rows of the global batch, K slots, D width, A answer tokens, W words, M negatives.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from m2ray.codec import Codec, Encoded, Segments, mean_state
from m2ray.command import UserError
from m2ray.config import TrialConfig
from m2ray.evaluation import search_score, value_nll
from m2ray.files import write_json
from m2ray.losses import (
    NEED_ANSWER,
    Heads,
    Signals,
    Slots,
    answer_nll,
    mean_cosine,
    row_nll,
    value_weight,
    weighted_sum,
)
from m2ray.probes import effective_rank
from m2ray.receiver import Reading, Receiver
from m2ray.source import Source
from m2ray.state import load_tensors, restore_training, save_tensors, training_tensors
from m2ray.task import Episode
from m2ray.trackers import check, tracking

Report = Callable[[dict[str, Any], Path], None]

COLLAPSE_SHARE, COLLAPSE_STEPS = 0.05, 5  # of what the text is worth; logged steps that are averaged


class TrainingFailed(RuntimeError):
    """The optimisation broke down; the message says at which step and how."""


def world() -> tuple[int, int]:
    """(rank, number of workers) of this process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(tensor_B: Tensor) -> Tensor:
    """The rows of all workers in order. Gradients flow back to where the rows came from, summed over workers,
    which is what the mean that DDP then takes needs for a loss that every worker computes on the whole batch.
    """
    if world()[1] == 1:
        return tensor_B
    return torch.cat(dist_nn.all_gather(tensor_B.contiguous()))  # type: ignore[no-untyped-call]


def gather_encoded(encoded: Encoded) -> Encoded:
    """The forward pass of the whole batch, from every worker's share."""
    rest = [None if field is None else gather(field) for field in encoded[2:]]
    return Encoded(gather(encoded.prefix_BKD), gather(encoded.latent_BKD), *rest)


class Trainee(nn.Module):
    """Codec and heads as one module with the loss as its forward pass, so that DDP can wrap it."""

    def __init__(self, config: TrialConfig, codec: Codec, heads: Heads, receiver: Receiver) -> None:
        super().__init__()
        self.codec, self.heads = codec, heads
        self.config = config
        self._receiver = (receiver,)  # in a tuple: frozen, no part of this module
        self._nulls: dict[
            tuple[int, int], Tensor
        ] = {}  # by episode and k: NLL [A] under zeros, which stays the same

    def forward(self, batch: Sequence[Episode], k: int, step: int, log: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and each objective, on the rows of a global batch that are this worker's."""
        (receiver,), losses = self._receiver, self.config.losses
        rank, workers = world()
        share = len(batch) // workers
        mine = slice(rank * share, (rank + 1) * share)
        message_ids = [receiver.tokens(episode.message) for episode in batch]
        reading = receiver.read_ids(message_ids[mine])
        encoded = self.codec(reading, k, gather)
        whole = gather_encoded(encoded)
        signals = Signals(
            frame=receiver.frame(batch[0].level),
            encoded=whole,
            inputs_HD=gather(mean_state(reading)),
            message_ids_HT=reading.ids_BT,
            message_mask_HT=reading.mask_BT,
            heads=self.heads,
        )
        if losses.reconstruction_tokens and workers > 1:
            whole_reading = receiver.read_ids(message_ids)
            signals.message_ids_HT, signals.message_mask_HT = whole_reading.ids_BT, whole_reading.mask_BT
        if losses.slots:
            signals.slots = self._slots(batch[mine], reading, encoded)
        steps, values = self.config.training.steps, dict[str, Tensor]()
        if log or any(term.weight_at(step, steps) for name, term in losses.terms().items() if name in NEED_ANSWER):
            values = self._listen(signals, batch, mine, encoded, log)
        total, metrics = weighted_sum(signals, losses, step, steps)
        metrics |= values
        if log:
            metrics |= diagnose(whole, receiver.embedding_norm)
        return total, {name: value.detach() for name, value in metrics.items()}

    def _slots(self, rows: Sequence[Episode], reading: Reading, encoded: Encoded) -> Slots:
        """What the receiver holds at the prefix, and at the words that its slots stand for."""
        (receiver,), place = self._receiver, self.config.codec.place
        encoder = self.codec.encoder
        assert isinstance(encoder, Segments)
        words_BK = encoder.stands_for(reading, encoded.prefix_BKD.shape[1])
        with torch.no_grad():
            told_BLTD = receiver.states_of(rows, reading.embeds_BTD, "message")
        rows_B1 = torch.arange(len(words_BK), device=words_BK.device)[:, None]
        theirs_BLKD = told_BLTD.transpose(1, 2)[rows_B1, words_BK.clamp(min=0)].transpose(1, 2)
        return Slots(receiver.states_of(rows, encoded.prefix_BKD, place), theirs_BLKD, words_BK >= 0)

    def _listen(
        self, signals: Signals, batch: Sequence[Episode], mine: slice, encoded: Encoded, log: bool
    ) -> dict[str, Tensor]:
        """Let the receiver read prefix and answer, and whatever else the objectives compare that with.

        Returns:
            Nats per answer value: nll under the right message; what null and a wrong one cost more, for the log.
        """
        (receiver,), losses, place = self._receiver, self.config.losses, self.config.codec.place
        rows, frame, weight = batch[mine], signals.frame, value_weight(losses)
        share, k = encoded.prefix_BKD.shape[:2]
        targets_BVN, answer_len = receiver.targets(rows), len(frame.ids_A)
        wrong = [signals.encoded.prefix_BKD[self._partners(batch, by)[mine]] for by in self._negatives(batch, log)]
        layout, hidden = receiver.layout(rows, k, place), losses.states is not None
        prefixes = torch.cat([encoded.prefix_BKD, *wrong])
        heard = receiver.hear(layout.repeat(1 + len(wrong)), prefixes, answer_len, states=hidden)
        every_BA = answer_nll(heard.logits_BAW, frame, targets_BVN.repeat(1 + len(wrong), 1, 1))
        nll_BA, *wrong_BA = torch.split(every_BA, share)
        signals.heard, signals.nll_BA = heard.first(share), nll_BA
        signals.nll_B = row_nll(nll_BA, frame, weight)
        if wrong_BA:
            signals.shuffled_B = row_nll(wrong_BA[0], frame, weight)
        if losses.infonce:
            signals.negatives_MBA = torch.stack(wrong_BA)
        places_V = frame.places_V.to(nll_BA.device)
        values = {"nll": nll_BA[:, places_V].mean()}
        with torch.no_grad():
            if losses.help or log:
                null_BA = self._null(rows, k, signals)
                signals.null_B = row_nll(null_BA, frame, weight)
                values["null_gap"] = (null_BA - nll_BA)[:, places_V].mean()
            if wrong_BA:
                values["shuffle_gap"] = (wrong_BA[0] - nll_BA)[:, places_V].mean()
            if losses.kl or losses.states:
                text = receiver.layout(rows, [episode.message for episode in rows])
                signals.told = receiver.hear(text, None, answer_len, states=hidden)
        return values

    def _null(self, rows: Sequence[Episode], k: int, signals: Signals) -> Tensor:
        """Answer NLL [B, A] with zeros in the slots, of each episode computed once."""
        (receiver,), frame = self._receiver, signals.frame
        fresh = [episode for episode in rows if (episode.seed, k) not in self._nulls]
        if fresh:
            layout = receiver.layout(fresh, k, self.config.codec.place)
            zeros_BKD = signals.encoded.prefix_BKD.new_zeros(len(fresh), k, receiver.width)
            logits_BAW = receiver.logits(layout, zeros_BKD, len(frame.ids_A))
            for episode, nll_A in zip(fresh, answer_nll(logits_BAW, frame, receiver.targets(fresh)), strict=True):
                self._nulls[episode.seed, k] = nll_A
        return torch.stack([self._nulls[episode.seed, k] for episode in rows])

    def _negatives(self, batch: Sequence[Episode], log: bool) -> range:
        losses = self.config.losses
        if losses.infonce:
            return range(1, 1 + min(losses.infonce.negatives, len(batch) - 1))
        return range(1, 2) if losses.contrast or log else range(0)

    @staticmethod
    def _partners(batch: Sequence[Episode], by: int) -> list[int]:
        """For each row another row, `by` places on or the next beyond with a different content."""
        partners = []
        for i, episode in enumerate(batch):
            places = [(i + by + j) % len(batch) for j in range(len(batch))]
            partners.append(next((p for p in places if batch[p].content != episode.content), places[0]))
        return partners


@torch.no_grad()
def diagnose(whole: Encoded, unit: float) -> dict[str, Tensor]:
    """How large and how different prefixes are, and how many codes they use."""
    prefix_HKD = whole.prefix_BKD.float()
    # A broken optimisation is named by the loss; the decomposition would only refuse its numbers.
    rank = effective_rank(torch.nan_to_num(prefix_HKD.flatten(1)))
    metrics = {
        "prefix_norm": prefix_HKD.norm(dim=-1).mean() / unit,
        "prefix_cosine": mean_cosine(prefix_HKD),
        "effective_rank": prefix_HKD.new_tensor(rank),
    }
    if whole.codes_BKG is not None:
        used = torch.bincount(whole.codes_BKG.flatten()).float()
        used = used[used > 0] / used.sum()
        metrics["code_perplexity"] = torch.exp(-(used * used.log()).sum())
    return metrics


class Annealer:
    """How many slots to train with: `Anneal` in `m2ray.config` says the rule."""

    def __init__(self, config: TrialConfig, steps: int, nll_without: float, nll_text: float) -> None:
        self.anneal, self.target, self.steps = config.training.anneal, config.codec.k, steps
        self.nll_without, self.nll_text = nll_without, nll_text
        self.k = self.anneal.start if self.anneal else self.target
        self.held, self.nll = 0, nll_without

    def recovered(self) -> float:
        """Share of what the text is worth to the receiver that the codec now recovers, in nats."""
        return (self.nll_without - self.nll) / max(self.nll_without - self.nll_text, 1e-6)

    def update(self, step: int, nll: float) -> None:
        """Take in the loss of a step and decide the k of the next."""
        self.nll += 0.1 * (nll - self.nll)
        self.held += 1
        if self.anneal is None or self.k <= self.target:
            return
        line = self.anneal.start - (self.anneal.start - self.target) * step / (self.anneal.deadline * self.steps)
        ready = self.held >= self.anneal.hold and self.recovered() >= self.anneal.bound
        if ready or self.k > max(line, self.target):
            self.k, self.held = self.k - 1, 0


def draw_batch(source: Source, seeds: range, samples: range, training_seed: int) -> list[Episode]:
    """The episodes of sample numbers: a walk over the training seeds that meets each once before any twice.

    A stride coprime to their number makes the walk a permutation; the training seed says where it starts.
    """
    stride = next(
        s for s in range(int(len(seeds) * 0.618) | 1, 2 * len(seeds) + 2) if math.gcd(s, len(seeds)) == 1
    )
    start = training_seed * 104_729
    return source.get([seeds[(start + number * stride) % len(seeds)] for number in samples], "train")


def learning_rate(config: TrialConfig, step: int, steps: int, per_epoch: int) -> float:
    """The learning rate of a step, counted from 0."""
    training = config.training
    warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    done = {"cosine": step / steps, "cosine_per_epoch": step % per_epoch / per_epoch, "constant": 0.0}
    return training.lr * warm * (1 + math.cos(math.pi * done[training.schedule])) / 2


def train(
    config: TrialConfig,
    training_seed: int,
    receiver: Receiver,
    folder: Path,
    report: Report,
    about: dict[str, Any],
) -> Path:
    """Train one codec; go on from `folder` where an interrupted run of the same settings left a state there.

    Args:
        config: The configuration.
        training_seed: Of initialisation and sample order.
        receiver: Frozen.
        folder: For `epoch-NN/` checkpoints and the state to resume from. All workers see the same folder.
        report: Called by every worker after each epoch with metrics and the checkpoint's folder.
        about: More to write into each checkpoint's record; `config`, the configuration's name, at least.

    Returns:
        The last checkpoint's folder.

    Raises:
        TrainingFailed: the loss is no longer finite.
        UserError: the state in `folder` is of other settings, or a tracker is not installed or does not start.
    """
    check(config.trackers)
    Source(config.task).check_disjoint(config.splits)
    check_receiver_seeds(config, receiver)
    for restart in range(config.training.restarts + 1):
        checkpoint = _train_once(config, training_seed, restart, receiver, folder, report, about)
        if checkpoint is not None:
            break
    assert checkpoint is not None
    return checkpoint


def _train_once(
    config: TrialConfig,
    training_seed: int,
    restart: int,
    receiver: Receiver,
    folder: Path,
    report: Report,
    about: dict[str, Any],
) -> Path | None:
    """`train`, from one initialisation; None where half of it shows that the codec ignores its message, and
    another restart is allowed.
    """
    rank, workers = world()
    training, source = config.training, Source(config.task)
    torch.manual_seed(training_seed + 1_000_003 * restart)
    codec = Codec(config.codec, receiver).to(receiver.device)
    heads = Heads(config, receiver).to(receiver.device)
    trainee = Trainee(config, codec, heads, receiver)
    wrapped: nn.Module = DistributedDataParallel(trainee) if workers > 1 else trainee
    optimizer = torch.optim.AdamW(
        trainee.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
    )
    per_epoch, steps = training.epoch_steps, training.steps
    seeds = config.splits.seeds("train")
    search = source.get(config.splits.seeds("search"), "search")

    probe = draw_batch(source, seeds, range(64), training_seed)
    worth = [
        float(value_nll(receiver, probe, texts, None, "message").mean())
        for texts in ([""] * len(probe), [episode.message for episode in probe])
    ]
    annealer = Annealer(config, steps, *worth)
    decisive = config.model_dump(exclude={"trackers"})
    settings = json.dumps([decisive, training_seed, receiver.digest], sort_keys=True)
    state_file, first = folder / "training.safetensors", 0
    history: list[dict[str, float]] = []
    if state_file.is_file():
        tensors, meta = load_tensors(state_file)
        if meta["settings"] != settings:
            raise UserError(f"{state_file}: made with other settings; choose another name or remove the folder")
        if meta["restart"] > restart:
            return None
        if meta["restart"] == restart and meta["step"]:
            restore_training(tensors, trainee, optimizer)
            first, history = meta["step"], meta["history"]
            annealer.k, annealer.held, annealer.nll = meta["anneal"]

    checkpoint = folder / f"epoch-{first // per_epoch:02d}"
    started = time.perf_counter()
    autocast = (
        torch.autocast(receiver.device.type, torch.bfloat16) if training.precision == "bfloat16" else nullcontext()
    )
    # One worker tells them for all.
    tracked = config if rank == 0 else config.model_copy(update={"trackers": []})
    with tracking(tracked, training_seed, about["config"], folder, first) as track:
        for step in range(first, steps):
            trainee.train()
            samples = range(step * training.batch_size, (step + 1) * training.batch_size)
            batch = draw_batch(source, seeds, samples, training_seed)
            log = step % training.log_every == 0 or (step + 1) % per_epoch == 0
            lr = learning_rate(config, step, steps, per_epoch) * 0.5**restart
            optimizer.param_groups[0]["lr"] = lr
            with autocast:
                loss, parts = wrapped(batch, annealer.k, step, log)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trainee.parameters(), training.grad_clip)
            means = world_mean(torch.stack([loss.detach(), *parts.values()]))
            values = dict(zip(["loss", *parts], means.tolist(), strict=True))
            if not math.isfinite(values["loss"]) or not math.isfinite(float(norm)):
                raise TrainingFailed(
                    f"loss {values['loss']} and gradient norm {float(norm)} at step {step}; lower lr"
                )
            optimizer.step()
            if "nll" in values:
                annealer.update(step, values["nll"])
            if log:
                now = {
                    "step": step + 1,
                    "k": annealer.k,
                    "grad_norm": float(norm),
                    "lr": lr,
                }
                history.append({**now, **values})
                if (step + 1) % per_epoch:
                    track(history[-1])
            if (step + 1) % per_epoch == 0:
                checkpoint = folder / f"epoch-{(step + 1) // per_epoch:02d}"
                trainee.eval()
                metrics: dict[str, Any] = {
                    **history[-1],
                    **search_score(receiver, codec, search, config.evaluation.batch_size),
                    "recovered": annealer.recovered(),
                    "collapsed": collapsed(history, annealer.nll_without - annealer.nll_text),
                    "restart": restart,
                    "epoch": (step + 1) // per_epoch,
                    "seconds": time.perf_counter() - started,
                }
                track(metrics)
                at_half = metrics["epoch"] == math.ceil(training.epochs / 2) < training.epochs
                gives_up = at_half and metrics["collapsed"] and restart < training.restarts
                if rank == 0:
                    record = {**about, "seed": training_seed, "step": step + 1, "trial": config.model_dump()}
                    brief = {name: value for name, value in metrics.items() if name != "episode_nll"}
                    codec.save(checkpoint, {**record, "receiver": receiver.name, "metrics": brief})
                    write_json(folder / "history.json", history)
                    meta = {
                        "settings": settings,
                        "step": 0 if gives_up else step + 1,
                        "history": history,
                        "restart": restart + gives_up,
                        "anneal": [annealer.k, annealer.held, annealer.nll],
                    }
                    save_tensors(state_file, training_tensors(trainee, optimizer), meta)
                report(metrics, checkpoint)
                if gives_up:
                    return None
    return checkpoint


def world_mean(values: Tensor) -> Tensor:
    """Mean over workers."""
    if world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values = values / world()[1]
    return values


def collapsed(history: Sequence[dict[str, float]], worth: float) -> bool:
    """Whether the codec ignores its message: a wrong one is as good as the right one, in nats a value.

    Prefixes need not be alike for that, only alike to the receiver.

    Args:
        history: Logged steps; the last few are averaged.
        worth: What the message as text is worth to the receiver over none.
    """
    gaps = [entry["shuffle_gap"] for entry in history[-COLLAPSE_STEPS:]]
    return abs(sum(gaps) / len(gaps)) < COLLAPSE_SHARE * worth


def check_receiver_seeds(config: TrialConfig, receiver: Receiver) -> None:
    """Refuse evaluation seeds that the receiver itself was trained on.

    Raises:
        UserError: a split overlaps the seeds on the receiver's card.
    """
    card = receiver.card.get("train_seeds")
    if card is None or receiver.card.get("level") != config.task.level:
        return
    start, stop = (int(part) for part in card.split(":"))
    for name in ("search", "select", "confirm"):
        seeds = config.splits.seeds(name)
        if seeds.start < stop and start < seeds.stop:
            raise UserError(f"splits.{name}: overlaps the receiver's own training seeds {card}; move it")
